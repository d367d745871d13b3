"""Putting a finished artifact into its place, and telling an artifact from any other directory before it is replaced."""

import json
import shutil
import tempfile
from pathlib import Path

from kwise.engine.artifact import MANIFEST, Manifest
from kwise.errors import ConfigError


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Raises ConfigError where something is there already that must not, or may not, be replaced."""
    if not destination.exists():
        return
    if not overwrite:
        raise ConfigError(
            f"{destination} exists; choose another directory, or replace an artifact with --overwrite"
        )
    if (problem := _foreign(destination)) is not None:
        raise ConfigError(f"--overwrite: {destination} is no artifact by kwise export: {problem}")


def publish(work: Path, destination: Path) -> None:
    """Rename `work` to `destination`. What was there is moved aside and deleted last: a failure in between loses nothing."""
    _open_permissions(work)
    if not destination.exists():
        work.rename(destination)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}-replaced-", dir=destination.parent))
    destination.rename(aside)
    try:
        work.rename(destination)
    except BaseException:
        aside.rename(destination)
        raise
    shutil.rmtree(aside)


def _foreign(directory: Path) -> str | None:
    """Why a directory is not an artifact and nothing else; None where it is. Damaged files may be replaced, unknown ones not."""
    try:
        manifest = Manifest(**json.loads((directory / MANIFEST).read_text(encoding="utf-8")))
        if manifest.fingerprint != manifest.computed_fingerprint():
            return f"the fingerprint in {MANIFEST} is not that of its content"
        ours = {MANIFEST, *manifest.files}
    except (OSError, ValueError, TypeError):
        return f"it has no readable {MANIFEST}"
    return next(
        (f"it has {path.name}" for path in sorted(directory.iterdir()) if path.name not in ours),
        None,
    )


def _open_permissions(directory: Path) -> None:
    """What mkdtemp and onnx write only the owner can read; a server may run as another user."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)
