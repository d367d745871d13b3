"""Export: a Hugging Face checkpoint with one label in, an artifact that `kwise.engine` serves out."""
