"""The kinds of models that can be evaluated, and which one MODEL is."""

from enum import Enum
from pathlib import Path

from kwise.engine.artifact.names import MANIFEST


class ModelKind(Enum):
    """The kind of a model."""

    CHECKPOINT = "checkpoint"  # scored with torch
    ARTIFACT = "artifact"  # scored by an engine in this process
    SERVER = "server"  # asked over gRPC

    def __str__(self) -> str:
        return f"an {self.value}" if self is ModelKind.ARTIFACT else f"a {self.value}"


def kind_of(model: str) -> ModelKind:
    """Return the kind of MODEL: a directory, an address, or a name on the hub."""
    path = Path(model)
    if (path / MANIFEST).is_file():
        return ModelKind.ARTIFACT
    if not path.exists() and ":" in model:
        return ModelKind.SERVER
    return ModelKind.CHECKPOINT
