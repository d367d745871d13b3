"""Parse `--device` into a list of devices, one session each.

This module does not know the runtimes. The runtime says whether a device is available when it opens
it.
"""

from dataclasses import dataclass
from enum import Enum

from kwise.errors import ConfigError


class Kind(Enum):
    """The kind of a device."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device.

    index: the number of a GPU, as the CUDA runtime counts the visible ones (CUDA_VISIBLE_DEVICES);
        0 for the CPU.
    """

    kind: Kind
    index: int = 0

    @property
    def name(self) -> str:
        """The device as `--device` takes it: "cpu" or "cuda:1"."""
        return self.kind.value if self.kind is Kind.CPU else f"{self.kind.value}:{self.index}"


def parse_devices(text: str) -> tuple[Device, ...]:
    """Parse "cpu", "cuda" (the same as "cuda:0"), "cuda:1" or "cuda:0,cuda:1"; the order is kept.

    Raises:
        ConfigError: a part is empty or not a device, a device is named twice, or a CPU is combined
            with GPUs. A CPU would take batches like a GPU, and each of them would take many times
            as long.
    """
    devices = tuple(_parse(part.strip(), text) for part in text.split(","))
    names = [device.name for device in devices]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--device is {text!r}; it names {twice} twice")
    if len({device.kind for device in devices}) > 1:
        raise ConfigError(f"--device is {text!r}; it must be a CPU or GPUs, not both")
    return devices


def _parse(part: str, text: str) -> Device:
    kind, colon, index = part.partition(":")
    # isdecimal() alone accepts the digits of other scripts, which int() would read without
    # complaint.
    if kind == Kind.CUDA.value and (not colon or (index.isascii() and index.isdecimal())):
        return Device(kind=Kind.CUDA, index=int(index or "0"))
    if part == Kind.CPU.value:
        return Device(kind=Kind.CPU)
    raise ConfigError(
        f"--device is {text!r}; it must be cpu, cuda, cuda:N, or several of the last separated by "
        "commas"
    )
