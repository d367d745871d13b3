"""The threads of torch, for training and export."""

import os

import torch

from kwise.engine.model.cpu import available_cpus


def use_available_cpus() -> None:
    """Give torch at most one thread per CPU that this process may use.

    torch takes one per core of the machine, also in a container with a quota of two CPUs. The
    variable OMP_NUM_THREADS wins.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())
