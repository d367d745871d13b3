"""The rows of an Arrow file or stream, as `datasets` saves them, a few in memory at a time."""

from collections.abc import Iterator
from typing import Any

from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install
from kwise.train.data.files.arrow_rows import batch_rows
from kwise.train.rankings.errors import UnreadableFile

_BATCH_ROWS = 64
_FILE_MAGIC = b"ARROW1"


def read_arrow(path: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row), with numbers from 1. The file is mapped into memory, not read whole.

    Raises:
        ConfigError: pyarrow is not installed.
        UnreadableFile: the file is damaged.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path} is an Arrow file, which needs pyarrow: {how_to_install('data')}"
        ) from None
    number = 0
    try:
        with pyarrow.memory_map(path) as file:
            for batch in _batches(pyarrow.ipc, file):
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    for row in batch_rows(batch.slice(start, _BATCH_ROWS)):
                        number += 1
                        yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"not readable as Arrow ({str(error)[:200]})"
        raise UnreadableFile(path, reason, row=number + 1) from None


def _batches(ipc: Any, file: Any) -> Iterator[Any]:
    """Yield the record batches of a file of either kind."""
    is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    file.seek(0)
    if not is_file:
        yield from ipc.open_stream(file)
        return
    reader = ipc.open_file(file)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)
