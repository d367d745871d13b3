"""Give free memory back to the system during a pass.

glibc's heap grows in one piece. Tensors that are dropped leave holes between those that are kept,
and the holes stay resident: 0.5 of 4.7 GB for SmolLM2 and rankings of 1,408 rows. Small objects
take the few bytes beside a tensor, so a hole is often too short for the next tensor of its size.
`malloc_trim` gives the pages of all holes back. Free memory at the end of the heap stays, because
the next layers use it.

Pages that are used again must be faulted in again, and page faults take several percent of the time
of a pass (docs/log.md). So it is called only where resident memory would otherwise be highest:
twice in the second half of a forward pass, while the gradients of earlier passes are in memory. In
fp32 it is also called before the first pass after the gradients are dropped, whose activations do
not fit into the holes that they leave. All calls get a small share of the time. A step of one pass
has none of them. Where gradient checkpointing computes layers again, the hooks call it in the
backward pass as well, because gradients are in memory there too.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any

from torch import nn

_MAX_SHARE = 0.05
_PARTS = (1 / 2, 5 / 6)  # of the layers, below a call
_KEPT_AT_THE_END = ctypes.c_size_t(-1)  # bytes: all of them


class FreeMemory:
    """A function that gives free memory back, if all calls took at most `_MAX_SHARE` of the time.

    Args:
        trim: gives free memory back.
        clock: the time in seconds.
    """

    def __init__(
        self, trim: Callable[[], object], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._trim, self._clock = trim, clock
        self._created_s, self._spent_s = clock(), 0.0

    def __call__(self) -> None:
        """Give free memory back, if there is time for it."""
        started_s = self._clock()
        if self._spent_s <= _MAX_SHARE * (started_s - self._created_s):
            self._trim()
            self._spent_s += self._clock() - started_s


def free_memory_between_layers(model: nn.Module, *, after_gradients: bool) -> None:
    """Let forward passes of `model`, in host memory, call `FreeMemory` where it is most needed.

    It has no effect with other C libraries than glibc, which have no `malloc_trim`.

    Args:
        after_gradients: whether to call it also before the first pass of training after the
            gradients are dropped. In bf16 this call saves no memory, and it causes half of the page
            faults of a step.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    layers = _layers(model)
    if trim is None or not len(layers):
        return
    free_memory = FreeMemory(lambda: trim(_KEPT_AT_THE_END))
    had_gradients = False  # at the beginning of the last pass

    def before_the_first_layer(*_: Any) -> None:
        nonlocal had_gradients
        if not model.training:  # an evaluation keeps no activations
            return
        has_gradients = _has_gradients(model)
        if had_gradients and not has_gradients:
            free_memory()
        had_gradients = has_gradients

    def beside_gradients(*_: Any) -> None:
        if _has_gradients(model):
            free_memory()

    if after_gradients:
        layers[0].register_forward_pre_hook(before_the_first_layer)
    for index in {int(part * len(layers)) for part in _PARTS}:
        layers[index].register_forward_pre_hook(beside_gradients)


def _has_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in model.parameters())


def _layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of modules that has most of the weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=_num_weights, default=nn.ModuleList())


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
