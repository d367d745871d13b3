"""Put a finished file or directory in its place in one step.

A reader meets the old one or the new one, never a mixture. Write into a temporary place beside
the target, on the same file system, then call `publish_directory` or `publish_file`. Data reach the
disk before names do, so this holds for a crash of the machine as well as of the process.

Renaming replaces a file atomically, but POSIX has no rename that replaces a directory with files in
it. Linux can exchange two directories (renameat2 with RENAME_EXCHANGE, since 3.15). Python does not
expose it; hence ctypes. The alternative, a symbolic link that is switched over, would change what
users find in the place of their directory.
"""

import ctypes
import errno
import os
import shutil
import tempfile
from pathlib import Path

from kwise.errors import ConfigError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# The kernel is older, or the file system (NFS, most FUSE) has no exchange.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def check_writable(option: str, target: Path) -> None:
    """Raise ConfigError if nothing can be written beside `target`, where it is prepared.

    Call this before work that takes long. Directories above `target` that are missing will be made.

    Args:
        option: what the command line calls the target: "--output".
    """
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".kwise-", dir=parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {target}: nothing can be written in {parent}: {error.strerror}"
        ) from None


def publish_directory(work: Path, target: Path) -> None:
    """Make the directory `work` the directory `target`; delete the directory that was there before.

    `target` always names a complete directory: the old one until the exchange, then the new one.
    A crash leaves `work` behind, which holds the new directory before the exchange, and what is
    left of the old one after it. Both paths must be on one file system. If `target` is a symbolic
    link, the directory that it points to is replaced.

    A reader that must not mix two versions opens the directory once (`os.open`) and its files
    relative to that descriptor. If a file is missing, the directory has been replaced and is being
    deleted, so the reader opens `target` anew.

    Where there is no exchange (macOS, NFS), the old directory is renamed aside and then the new one
    renamed into its place. Readers may find no directory for that moment, but never a mixture. A
    crash in that moment leaves both directories complete beside `target`: the old one as
    `.NAME-replaced-*`, the new one as `work`.

    A directory that comes with the image of a container cannot be renamed at all (overlayfs). It is
    copied aside and deleted, and readers may find a part of it meanwhile.

    Raises:
        OSError: A rename failed, and `target` is as it was; or the new directory is in place and
            the old one could not be deleted.
    """
    target = target.resolve()
    _sync_tree(work)
    old = None
    if target.is_dir() and any(target.iterdir()):
        old = _replace(work, target)
    else:
        work.rename(target)  # also over an empty directory
    _sync(target.parent)
    if old is not None:
        shutil.rmtree(old)


def publish_file(work: Path, target: Path) -> None:
    """Make the file `work` the file `target`, replacing the file that was there before.

    Raises:
        OSError: The rename failed, and `target` is as it was.
    """
    _sync(work)
    work.replace(target)
    _sync(target.parent)


def publish_text(text: str, target: Path) -> None:
    """Make a text the content of the file `target`, by way of a temporary file beside it.

    Raises:
        OSError: It cannot be written, and `target` is as it was.
    """
    work = target.with_name(f".{target.name}.tmp")
    try:
        work.write_text(text, encoding="utf-8")
        publish_file(work, target)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def _replace(work: Path, target: Path) -> Path:
    """Put `work` in the place of a directory with files in it. Return where the old one is."""
    try:
        _exchange(work, target)
    except OSError as error:
        if error.errno in _NO_EXCHANGE:
            return _replace_in_two_steps(work, target)
        if error.errno == errno.EXDEV:
            return _replace_by_copying(work, target)
        raise
    return work


def _exchange(first: Path, second: Path) -> None:
    """Exchange two paths; raise OSError, with an errno of `_NO_EXCHANGE` if that is impossible."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = libc.renameat2(
        _AT_FDCWD,
        os.fsencode(first),
        _AT_FDCWD,
        os.fsencode(second),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first), None, str(second))


def _replace_in_two_steps(work: Path, target: Path) -> Path:
    """Rename `target` aside and `work` to `target`. Return where the old directory is."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-replaced-", dir=target.parent))
    target.rename(aside)  # over the empty directory
    try:
        work.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    return aside


def _replace_by_copying(work: Path, target: Path) -> Path:
    """Copy `target` aside, delete it, and rename `work` to it. Return where the copy is.

    overlayfs refuses to rename a directory of a lower layer, and reports that it is on another
    device.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-replaced-", dir=target.parent))
    try:
        shutil.copytree(target, aside, symlinks=True, dirs_exist_ok=True)
    except BaseException:
        shutil.rmtree(aside)
        raise
    try:
        shutil.rmtree(target)
        work.rename(target)
    except BaseException:
        shutil.copytree(aside, target, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(aside)
        raise
    return aside


def _sync_tree(directory: Path) -> None:
    """Flush all files below a directory to disk, and the directories that name them."""
    for root, _, names in os.walk(directory):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Flush a file's bytes or a directory's names to disk.

    Some network file systems (CIFS, 9P) cannot flush a directory. They write names in order.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
