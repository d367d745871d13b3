"""Training: rankings in, a plain Hugging Face `…ForSequenceClassification(num_labels=1)` checkpoint out.

data        rankings/ the schema; prepared.py, batch.py; data/ other formats → rankings (`kwise data`)
model       model.py, tokenizer.py, pretrained.py, limits.py; adapter.py LoRA; precision.py bf16
a pass      layout.py trie or padded; attention.py over the trie; loss.py, objectives.py, text_regulariser.py
a run       training.py from beginning to end; trainer.py on Hugging Face's; arguments.py, order.py, processes.py, progress.py
its state   steps.py what a killed run resumes from; run.py which run that is
judgement   evaluate.py, validation.py; report.py, card.py, provenance.py, trackers.py
options     command.py; config.py, objective_config.py, adapter_config.py; recipe.py, recipes/
"""
