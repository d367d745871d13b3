"""Exports of test models."""

import warnings
from pathlib import Path
from typing import Any


def export_quietly(checkpoint: Path, artifact: Path, **options: Any) -> Path:
    """Export the checkpoint, ignore the warnings that tracing raises, and return `artifact`.

    torch's tracer warns about transformers' own code, which no test here is about.
    """
    from kwise.export.config import ExportConfig
    from kwise.export.exporter import export  # imports torch: slow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(ExportConfig(checkpoint=str(checkpoint), artifact=str(artifact), **options))
    return artifact
