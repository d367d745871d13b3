"""`kwise average`: one checkpoint from the mean weights of several runs.

command     the command
agreement   what the runs must have in common
average     the mean of the weights, and the checkpoint
"""
