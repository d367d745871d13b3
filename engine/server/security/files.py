"""Values that are read from files, and read again when the files change.

The server compares the files' inodes, sizes and times once a second. `stat` follows symbolic links,
so it sees a Kubernetes secret change, where a link to a directory is replaced. inotify would report
the link's directory only, and does not work on network file systems.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from kwise.errors import ConfigError

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1 << 20
# How often files are read again if they change while they are read.
_MAX_READS = 10


def read_file(option: str, path: Path) -> bytes:
    """Return the content of a file that an option names.

    Raises:
        ConfigError: it cannot be read, or is larger than 1 MiB. Names the option and the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{option} {path}: it is larger than {_MAX_FILE_BYTES} bytes")
    return content


class WatchedFiles(Generic[T]):
    """A value that is read from files.

    Args:
        paths: the files.
        read: reads the value; raises ConfigError.
        label: the name of the value in the log.

    Attributes:
        value: the value of the last successful read.

    Raises:
        ConfigError: the files cannot be read, or are not valid.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], label: str) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._label = label
        self._version: object = None
        self.value = self._read_unchanged()

    def reread(self) -> None:
        """Read the files again if they have changed. If they are not valid, keep the old value."""
        if _version_of(self._paths) == self._version:
            return
        try:
            self.value = self._read_unchanged()
        except ConfigError as error:
            _LOG.warning("the earlier %s stay in use: %s", self._label, error)
        else:
            _LOG.info("read the %s again, because a file has changed", self._label)

    def _read_unchanged(self) -> T:
        """Return the value of files that did not change while they were read.

        Several files, such as a certificate and its key, must be of one version.
        """
        for _ in range(_MAX_READS):
            self._version = _version_of(self._paths)
            value = self._read()
            if _version_of(self._paths) == self._version:
                return value
        names = ", ".join(map(str, self._paths))
        raise ConfigError(f"{names}: changed each time that they were read; replace them by rename")


def _version_of(paths: Sequence[Path]) -> tuple[tuple[int, ...] | None, ...]:
    """Return what differs if a file was replaced or written; None for a file that is missing."""
    versions: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            versions.append(None)
        else:
            versions.append(
                (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
            )
    return tuple(versions)
