"""The benchmark of a GPU: prepared steps for a machine that is at hand for fifteen minutes."""
