"""The memory of training: the tensors that a forward pass saves for the backward pass."""
