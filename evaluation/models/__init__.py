"""The models that can be evaluated: checkpoints, artifacts and servers."""
