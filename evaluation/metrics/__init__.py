"""The figures of an evaluation, each computed from rewards and labels alone."""
