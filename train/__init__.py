"""Training: rankings in, a plain Hugging Face checkpoint with one label out.

command     `kwise train`
options     the options: objectives, adapters, recipes; imports no torch
rankings    the format of the training data: schema, reader, split
data        `kwise data`: other formats to rankings, statistics
model       a checkpoint as a reward model: tokenizer, head, layout, adapters, precision
step        one pass: batches, losses, the text regulariser
run         a run from beginning to end: Trainer, processes, step checkpoints, validation
report      what a run leaves: training_report.json, model card, evaluation
average     `kwise average`: the mean of several runs' weights
launch      configurations of `accelerate launch`
"""
