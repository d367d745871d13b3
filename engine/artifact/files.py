"""The size and hash of each file of an artifact, by which a damaged file is found."""

import hashlib
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from kwise.errors import ArtifactError


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and SHA-256 (in hex) of one file."""

    sha256: str
    bytes: Annotated[int, Meta(ge=0)]


def describe_file(path: Path) -> FileEntry:
    """Return the size and SHA-256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=sha256, bytes=path.stat().st_size)


def verify_file(path: Path, expected: FileEntry) -> None:
    """Raise ArtifactError if the file is missing, cut short or changed."""
    if not path.is_file():
        raise ArtifactError(f"{path}: the manifest lists this file, but it is missing")
    if (size := path.stat().st_size) != expected.bytes:
        raise ArtifactError(
            f"{path}: the file has {size} bytes, the manifest says {expected.bytes}"
        )
    if describe_file(path) != expected:
        raise ArtifactError(f"{path}: damaged: its SHA-256 is not the one in the manifest")
