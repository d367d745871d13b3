"""What the forward pass of training saves for the backward pass."""
