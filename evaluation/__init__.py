"""`kwise eval`: measure how well the rewards of a model agree with rankings."""
