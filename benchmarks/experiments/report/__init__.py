"""Tables and figures from the results of the experiments."""
