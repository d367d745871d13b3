"""Which devices an engine runs on: `--device` as a text → a plan of one session each.

Knows no runtime: whether a device can be had is told by the runtime that is asked for it.
"""

from dataclasses import dataclass
from enum import Enum

from kwise.errors import ConfigError


class Kind(Enum):
    """What kwise knows how to feed."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """index: which of its kind, as the CUDA runtime counts those it may see (CUDA_VISIBLE_DEVICES); a CPU has the one, 0."""

    kind: Kind
    index: int = 0

    @property
    def name(self) -> str:
        """As `--device` takes it: "cpu", "cuda:1"."""
        return self.kind.value if self.kind is Kind.CPU else f"{self.kind.value}:{self.index}"


def parse_devices(text: str) -> tuple[Device, ...]:
    """The devices of "cpu", "cuda" (which is "cuda:0"), "cuda:1" or "cuda:0,cuda:1", in their order.

    Raises:
        ConfigError: a part is empty or none of these, a device is named twice, or a CPU stands beside GPUs: it would take its
            batches like them, and each of those would wait for it many times as long.
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
    # isdecimal alone takes other scripts' digits too, which int() would read without complaint.
    if kind == Kind.CUDA.value and (not colon or (index.isascii() and index.isdecimal())):
        return Device(kind=Kind.CUDA, index=int(index or "0"))
    if part == Kind.CPU.value:
        return Device(kind=Kind.CPU)
    raise ConfigError(
        f"--device is {text!r}; it must be cpu, cuda, cuda:N or several of the last, separated by commas"
    )
