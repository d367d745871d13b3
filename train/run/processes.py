"""Several processes that train one model: who writes, who waits, and how work is dealt out.

`torchrun` and `accelerate launch` start them; accelerate's `PartialState` connects them, with gloo on CPUs. Every process holds
all weights (DistributedDataParallel), or, launched with FSDP 2, a part of them, of their gradients and of the optimizer's state:
weights are then gathered layer by layer for each pass, and a pass runs in all processes or in none. DeepSpeed's ZeRO, which does
the same, is refused: accelerate runs it on accelerators alone, where nothing of this has been tested.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from kwise.errors import ConfigError

T = TypeVar("T")
U = TypeVar("U")


def _no_tag(storage: torch.UntypedStorage) -> None:
    """What is saved is tagged as before."""


def _on_cpu(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    return storage if location.startswith("cpu:") else None


def _asked_for(plugin: str) -> bool:
    """By `accelerate launch`, which tells the processes through their environment."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


class Processes:
    """The processes of this run; one, where nothing launched several. sharded: each has a part of the weights."""

    def __init__(self) -> None:
        """Raises ConfigError where the launcher asks for what is not supported, mixed precision too, which would round rewards."""
        for plugin, name in {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}.items():
            if _asked_for(plugin):
                raise ConfigError(
                    f"launched with {name}: kwise train shards weights by FSDP 2 (train/launch/fsdp.yaml)"
                )
        if _asked_for("FSDP") and os.environ.get("FSDP_VERSION") != "2":
            raise ConfigError(
                "launched with FSDP 1: set fsdp_version: 2, as train/launch/fsdp.yaml does"
            )
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
        if precision != "no":
            raise ConfigError(
                f"launched with mixed precision {precision}, which rounds rewards: launch with --mixed_precision no, "
                "and choose by --precision"
            )
        self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.sharded = _asked_for("FSDP") and self.count > 1
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

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` in the main process alone, and return its result in all processes."""
        results: list[T | None] = broadcast_object_list([function() if self.is_main else None])
        return cast(T, results[0])

    def map(self, function: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """`function` of each of `items`, in their order and in every process; each process computes its share."""
        mine = []
        for start in range(0, len(items), self.count):
            index = start + int(self._state.process_index)
            if index < len(items):
                mine.append((index, function(items[index])))
            elif self.sharded:
                function(items[-1])  # for the others, which could not compute theirs alone
        return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]

    def close(self) -> None:
        """Leave the others, which may be waiting."""
        self.wait()
        if self.count > 1:
            self._state.destroy_process_group()
