"""The files that an input names: a file, a folder, a pattern, a data set saved by `datasets`."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwise.errors import ConfigError
from kwise.train.rankings.open_file import STDIN, check_input

# Only these are read of a folder. A file that is named is read whatever its name is.
_ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of the input, and how to know it again.

    Attributes:
        path: the path, or "-" for standard input.
        num_bytes: its size; 0 for standard input.
        changed_ns: when it was changed last.
    """

    path: str
    num_bytes: int
    changed_ns: int

    def as_json(self) -> list[Any]:
        """Return the file as the run record stores it."""
        return [self.path, self.num_bytes, self.changed_ns]


def input_files(given: str) -> list[InputFile]:
    """Return the files that `given` names, in the order in which they are read.

    A folder stands for the data files directly in it, a pattern for those that it matches, both
    sorted by name. A folder that `datasets` has saved stands for the files that its state lists.

    Raises:
        ConfigError: there is no such file, or the folder has no data.
    """
    if given == STDIN:
        return [InputFile(path=given, num_bytes=0, changed_ns=0)]
    path = Path(given)
    if path.is_dir():
        paths = _files_of_folder(path)
    elif not path.exists() and glob.has_magic(given):
        paths = _matches(given)
        if not paths:
            raise ConfigError(f"INPUT {given}: the pattern matches no file")
    else:
        paths = [given]
        check_input(given)
    return [_input_file(name) for name in paths]


def check_apart(files: Sequence[InputFile], outputs: Sequence[Path]) -> None:
    """Check that no output is a file of the input.

    Raises:
        ConfigError: one is.
    """
    for file in files:
        for output in outputs:
            if file.path != STDIN and output.exists() and output.samefile(file.path):
                raise ConfigError(
                    f"{output} is a file of the input as well; choose another name for the output"
                )


def _input_file(path: str) -> InputFile:
    status = Path(path).stat()
    is_file = Path(path).is_file()
    return InputFile(
        path=path,
        num_bytes=status.st_size if is_file else 0,
        changed_ns=status.st_mtime_ns if is_file else 0,
    )


def _files_of_folder(folder: Path) -> list[str]:
    if (folder / "dataset_dict.json").is_file():
        raise ConfigError(
            f"INPUT {folder}: this is a data set with several splits; name one of them, such as "
            f"{folder / _first_split(folder)}"
        )
    if (folder / "state.json").is_file():
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [str(folder / file["filename"]) for file in state["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"INPUT {folder}: state.json does not list the files of a data set"
            ) from None
    files = sorted(
        str(path)
        for path in folder.iterdir()
        if path.is_file() and path.name.removesuffix(".gz").endswith(_ENDINGS)
    )
    if not files:
        raise ConfigError(
            f"INPUT {folder}: the folder has no file whose name ends in {', '.join(_ENDINGS)} "
            "(or in .gz after it)"
        )
    return files


def _matches(pattern: str) -> list[str]:
    # Path.glob takes no absolute pattern.
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207
    return sorted(name for name in names if Path(name).is_file())


def _first_split(folder: Path) -> str:
    return min((path.name for path in folder.iterdir() if path.is_dir()), default="train")
