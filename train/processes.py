"""Several processes that train one model: who writes, who waits, and how work is dealt out.

`torchrun` and `accelerate launch` start them; accelerate's `PartialState` connects them, with gloo on CPUs. Every process holds
all weights (DistributedDataParallel). Sharded weights, of FSDP and of DeepSpeed, are refused: evaluation and the final checkpoint
read whole ones.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from kwise.engine.errors import ConfigError

T = TypeVar("T")
U = TypeVar("U")


def _no_tag(storage: torch.UntypedStorage) -> None:
    """What is saved is tagged as before."""


def _on_cpu(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    return storage if location.startswith("cpu:") else None


class Processes:
    """The processes of this run; one, where nothing launched several."""

    def __init__(self) -> None:
        """Raises ConfigError where the launcher asks for sharded weights, or for a precision, in which rewards would be."""
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true"):
                raise ConfigError(f"launched with {name}: kwise train needs whole weights in every process; launch it with DDP")
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
        if precision != "no":
            raise ConfigError(
                f"launched with mixed precision {precision}, which rounds rewards: launch with --mixed_precision no, "
                "and choose by --precision"
            )
        self._state = PartialState(cpu=not torch.accelerator.is_available())
        if self.count > 1:
            # accelerate calls a process's CPU "cpu:0", Trainer loads the optimizer's state to there, and torch knows "cpu" alone.
            torch.serialization.register_package(0, _no_tag, _on_cpu)

    @property
    def count(self) -> int:
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints; one does."""
        return bool(self._state.is_main_process)

    def wait(self) -> None:
        """Until all processes are here."""
        self._state.wait_for_everyone()

    def map(self, function: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """`function` of each of `items`, in their order and in every process; each process computes its share."""
        mine = [(index, function(items[index])) for index in range(self._state.process_index, len(items), self.count)]
        return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]

    def close(self) -> None:
        """Leave the others, which may be waiting."""
        self.wait()
        if self.count > 1:
            self._state.destroy_process_group()
