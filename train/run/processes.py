"""The processes that train one model together.

`torchrun` or `accelerate launch` starts them, and accelerate's `PartialState` connects them, with
gloo on CPUs. Each process holds all weights (DistributedDataParallel) or, launched with FSDP 2, a
part of the weights, gradients and optimizer state. FSDP gathers the weights layer by layer in each
pass, so all processes must run the same passes. DeepSpeed's ZeRO does the same and is refused:
accelerate runs it only on accelerators, where kwise has not been tested with it.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from kwise.errors import ConfigError, LibraryFailed
from kwise.libraries.errors import library_errors

T = TypeVar("T")
U = TypeVar("U")


def _no_tag(storage: torch.UntypedStorage) -> None:
    """Leave the tags of what is saved as they are."""


def _on_cpu(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    return storage if location.startswith("cpu:") else None


def _is_requested(plugin: str) -> bool:
    """Return whether `accelerate launch` asked for a plugin, through the environment."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


class Processes:
    """The processes of this run; a single one unless a launcher started several.

    Attributes:
        sharded: whether each process has only a part of the weights.
    """

    def __init__(self) -> None:
        """Connect the processes.

        Raises:
            ConfigError: the launcher asks for something that is not supported, such as mixed
                precision, which would round rewards.
            LibraryFailed: torch cannot reach the other processes.
        """
        for plugin, name in {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}.items():
            if _is_requested(plugin):
                raise ConfigError(
                    f"launched with {name}, which is not supported; use FSDP 2 "
                    "(train/launch/fsdp.yaml)"
                )
        if _is_requested("FSDP") and os.environ.get("FSDP_VERSION") != "2":
            raise ConfigError(
                "launched with FSDP 1, which is not supported; set fsdp_version: 2 "
                "(train/launch/fsdp.yaml)"
            )
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
        if precision != "no":
            raise ConfigError(
                f"launched with mixed precision {precision}, which rounds rewards: launch with "
                "--mixed_precision no, and give kwise train --precision"
            )
        with library_errors("the processes cannot be connected", raises=LibraryFailed):
            self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.sharded = _is_requested("FSDP") and self.count > 1
        if self.count > 1:
            # accelerate calls the CPU "cpu:0", and Trainer loads the optimizer's state to it, but
            # torch only knows "cpu".
            torch.serialization.register_package(0, _no_tag, _on_cpu)

    @property
    def count(self) -> int:
        """The number of processes."""
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes and prints."""
        return bool(self._state.is_main_process)

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self._state.wait_for_everyone()

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` in the main process alone, and return its result in all processes.

        Raises:
            ConfigError: the function raises one; all processes raise it, so that none waits.
        """
        outcome: T | ConfigError | None = None
        if self.is_main:
            try:
                outcome = function()
            except ConfigError as error:
                if self.count == 1:
                    raise
                outcome = error
        (outcome,) = broadcast_object_list([outcome])
        if isinstance(outcome, ConfigError):
            raise outcome
        return cast(T, outcome)

    def map(self, function: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Return `function` of each item, in order; each process computes its share."""
        mine = []
        for start in range(0, len(items), self.count):
            index = start + int(self._state.process_index)
            if index < len(items):
                mine.append((index, function(items[index])))
            elif self.sharded:
                function(items[-1])  # the others cannot run their passes without this process
        return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]

    def close(self) -> None:
        """Wait for the others, then disconnect."""
        self.wait()
        if self.count > 1:
            self._state.destroy_process_group()
