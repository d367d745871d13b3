"""Put a finished artifact in its place, and refuse to replace any other kind of directory."""

import json
from pathlib import Path

from kwise.engine.artifact.manifest import is_intact
from kwise.engine.artifact.names import MANIFEST
from kwise.errors import ConfigError
from kwise.publish import publish_directory


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Raise ConfigError if something is at `destination` that must not be replaced."""
    if not destination.exists():
        return
    if not overwrite:
        raise ConfigError(
            f"{destination} exists; choose another directory, or replace an artifact with "
            "--overwrite"
        )
    if (problem := _foreign(destination)) is not None:
        raise ConfigError(
            f"--overwrite: {destination} is not an artifact of kwise export: {problem}"
        )


def publish_artifact(work: Path, destination: Path) -> None:
    """Make the directory `work` the artifact `destination`, readable by all users.

    Raises:
        OSError: As `publish_directory`.
    """
    _open_permissions(work)
    publish_directory(work, destination)


def _foreign(directory: Path) -> str | None:
    """Return why a directory is not an artifact and nothing else, or None if it is one.

    Damaged files of an artifact may be replaced; files that its manifest does not list may not.
    """
    try:
        # An artifact of any schema version may be replaced.
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if not is_intact(content):
            return f"the checksum in {MANIFEST} does not match its content"
        known = {MANIFEST, *content["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return f"it has no readable {MANIFEST}"
    return next(
        (
            f"it contains {path.name}"
            for path in sorted(directory.iterdir())
            if path.name not in known
        ),
        None,
    )


def _open_permissions(directory: Path) -> None:
    """Let every user read the artifact, because a server may run as another user.

    mkdtemp and onnx let only the owner read what they write.
    """
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)
