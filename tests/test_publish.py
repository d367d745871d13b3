"""A published directory is the old or the new one: for readers, after a crash, without exchange."""

import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from kwise import publish
from kwise.publish import publish_directory, publish_file, publish_text

NUM_VERSIONS = 150
# Publishes versions of a pair of files, as many as it is told, and writes a line after each.
WRITER = """
import sys
from pathlib import Path
from kwise.publish import publish_directory

target, count = Path(sys.argv[1]), int(sys.argv[2])
for version in range(1, count + 1):
    work = target.with_name(f"work-{version}")
    work.mkdir()
    for name in ("config", "weights"):
        (work / name).write_text(str(version))
    publish_directory(work, target)
    print(version, flush=True)
"""


def write_version(directory: Path, version: int) -> Path:
    directory.mkdir()
    for name in ("config", "weights"):
        (directory / name).write_text(str(version))
    return directory


def read_text(name: str, directory: int) -> str:
    with open(name, opener=lambda path, flags: os.open(path, flags, dir_fd=directory)) as file:
        return file.read()


def read_version(target: Path) -> int:
    """Read both files of one directory, as the docstring of `publish_directory` advises."""
    while True:
        directory = os.open(target, os.O_RDONLY)  # never fails: there is always a directory
        try:
            config, weights = (read_text(name, directory) for name in ("config", "weights"))
        except FileNotFoundError:
            assert not os.path.samestat(os.fstat(directory), target.stat()), (
                "the directory in place lacks a file"
            )
            continue
        finally:
            os.close(directory)
        assert config == weights, "a mixture of two versions"
        return int(config)


def start_writer(target: Path, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(target), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_reader_never_finds_a_mixture_or_nothing(tmp_path: Path) -> None:
    target = write_version(tmp_path / "target", 0)
    versions = []
    with start_writer(target, NUM_VERSIONS) as writer:
        while writer.poll() is None:
            versions.append(read_version(target))
        writer.communicate()
    assert writer.returncode == 0
    versions.append(read_version(target))
    assert versions == sorted(versions)
    assert versions[-1] == NUM_VERSIONS
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("lines_before", [1, 2, 3, 5, 8, 13])
def test_a_writer_that_is_killed_leaves_a_complete_directory(
    tmp_path: Path, lines_before: int
) -> None:
    target = write_version(tmp_path / "target", 0)
    with start_writer(target, 10**6) as writer:
        assert writer.stdout is not None
        for _ in range(lines_before):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert read_version(target) >= lines_before
    publish_directory(write_version(tmp_path / "new", 10**6), target)
    assert read_version(target) == 10**6


def test_a_directory_may_be_new_or_behind_a_symbolic_link(tmp_path: Path) -> None:
    publish_directory(write_version(tmp_path / "work", 1), tmp_path / "target")
    (tmp_path / "link").symlink_to("target")
    publish_directory(write_version(tmp_path / "work", 2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_version(tmp_path / "target") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target"}


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("file")
    with pytest.raises(NotADirectoryError):
        publish_directory(write_version(tmp_path / "work", 1), tmp_path / "target")
    assert (tmp_path / "target").read_text() == "file"


def test_an_error_of_the_exchange_leaves_both_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(first: Path, second: Path) -> None:
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(publish, "_exchange", refuse)
    target, work = write_version(tmp_path / "target", 1), write_version(tmp_path / "work", 2)
    with pytest.raises(PermissionError, match="refused"):
        publish_directory(work, target)
    assert (read_version(target), read_version(work)) == (1, 2)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_where_there_is_no_exchange_two_renames_replace_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(first: Path, second: Path) -> None:
        raise OSError(code, "no exchange here")

    monkeypatch.setattr(publish, "_exchange", refuse)
    target, work = write_version(tmp_path / "target", 1), write_version(tmp_path / "work", 2)
    rename = Path.rename

    def rename_but_work(self: Path, to: Path) -> Path:
        if self == work:
            raise OSError("no space left")
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_but_work)
        with pytest.raises(OSError, match="no space left"):
            publish_directory(work, target)
    assert (read_version(target), read_version(work)) == (1, 2)
    publish_directory(work, target)
    assert read_version(target) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_directory_of_a_containers_image_is_replaced_although_it_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """overlayfs refuses to rename a directory of a lower layer, but not to replace an empty one."""
    target, work = write_version(tmp_path / "target", 1), write_version(tmp_path / "work", 2)
    rename = Path.rename

    def refuse(first: Path, second: Path) -> None:
        raise OSError(errno.EXDEV, "of a lower layer")

    def rename_but_target(self: Path, to: Path) -> Path:
        if self == target or fails:
            raise OSError(errno.EXDEV, "of a lower layer")
        return rename(self, to)

    monkeypatch.setattr(publish, "_exchange", refuse)
    monkeypatch.setattr(Path, "rename", rename_but_target)
    if fails:
        with pytest.raises(OSError, match="of a lower layer"):
            publish_directory(work, target)
        assert (read_version(target), read_version(work)) == (1, 2)
        assert {path.name for path in tmp_path.iterdir()} == {"target", "work"}
    else:
        publish_directory(work, target)
        assert read_version(target) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_an_empty_directory_is_replaced_by_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(first: Path, second: Path) -> None:
        raise OSError(errno.EXDEV, "of a lower layer")

    monkeypatch.setattr(publish, "_exchange", refuse)
    (tmp_path / "target").mkdir()
    publish_directory(write_version(tmp_path / "work", 1), tmp_path / "target")
    assert read_version(tmp_path / "target") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(("code", "is_published"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_need_not_flush_directories_but_must_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_published: bool
) -> None:
    """CIFS and 9P answer EINVAL, and a training run ended without its checkpoint."""

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    work, target = write_version(tmp_path / "work", 1), tmp_path / "target"
    with nullcontext() if is_published else pytest.raises(OSError, match="Input/output"):
        publish_directory(work, target)
    assert target.exists() == is_published


def test_a_file_is_replaced(tmp_path: Path) -> None:
    for content in ("old", "new"):
        (tmp_path / "work").write_text(content)
        publish_file(tmp_path / "work", tmp_path / "target")
        assert (tmp_path / "target").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_text_that_cannot_be_published_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    publish_text("old", target)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        publish_text("new", target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
