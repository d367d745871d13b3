"""Training: rankings in, a plain Hugging Face `…ForSequenceClassification(num_labels=1)` checkpoint out."""
