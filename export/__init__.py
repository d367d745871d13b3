"""Export a Hugging Face checkpoint with one label to an artifact that `kwise.engine` serves."""
