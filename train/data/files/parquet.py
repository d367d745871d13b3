"""The rows of a Parquet file, one batch in memory at a time. pyarrow is imported when needed."""

from collections.abc import Iterator
from typing import Any

from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install
from kwise.train.data.files.arrow_rows import batch_rows
from kwise.train.rankings.errors import UnreadableFile

_BATCH_ROWS = 64


def read_parquet(path: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row), with numbers from 1.

    Raises:
        ConfigError: pyarrow is not installed.
        UnreadableFile: the file is damaged.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path} is Parquet, which needs pyarrow: {how_to_install('data')}"
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch_rows(batch):
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        reason = f"not readable as Parquet ({str(error)[:200]})"
        raise UnreadableFile(path, reason, row=number + 1) from None
