"""The rows of the input, and the groups that they describe."""
