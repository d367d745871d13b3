"""Reward functions for RL libraries, on top of the clients of a kwise server.

`scoring.py` scores whole batches of any library. Each other module adapts one library to it and is
the only one that imports that library. docs/rl.md has one line of configuration per library.
"""
