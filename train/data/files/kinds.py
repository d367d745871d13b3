"""The kind of a file, from its first bytes. The name does not matter, so a pipe needs no option."""

import codecs
from enum import Enum


class FileKind(Enum):
    """The way in which a file stores its rows."""

    LINES = "JSON Lines"
    ARRAY = "a JSON array"
    PARQUET = "Parquet"
    ARROW = "Arrow"
    TABLE = "CSV"


_DECOMPRESS = "decompress it first"
_WRITE = "write it as Parquet or JSON Lines first"
_OTHER_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "is compressed with zstandard", _DECOMPRESS),
    (b"\xfd7zXZ", "is compressed with xz", _DECOMPRESS),
    (b"BZh", "is compressed with bzip2", _DECOMPRESS),
    (b"PK\x03\x04", "is compressed with zip, as Excel's files are", f"{_DECOMPRESS}, or save CSV"),
    (b"SQLite format 3", "is an SQLite database", "write its table as CSV first"),
    (b"\x80\x04", "is a Python pickle", _WRITE),
    (codecs.BOM_UTF16_LE, "is text in UTF-16", "save it as UTF-8 first"),
    (codecs.BOM_UTF16_BE, "is text in UTF-16", "save it as UTF-8 first"),
    (b"version https://git-lfs", "is a pointer of Git LFS", "get the data: git lfs pull"),
    (b"<", "is a web page or XML", "download the data itself, or write it as JSON Lines"),
)

_EXTENSIONS = {".gz": "gzip", ".parquet": "Parquet", ".arrow": "Arrow"}


def unreadable_kind(beginning: bytes) -> str:
    """Return what a file is that no reader reads, and what to do; "" if one may read it."""
    for magic, name, advice in _OTHER_KINDS:
        if beginning.startswith(magic):
            return f"{name}; {advice}"
    return ""


def wrong_extension(name: str, *, is_gzip: bool) -> str:
    """Return the error of a file whose content is not of the kind that its name's extension means.

    Returns:
        "" if the extension means no compressed or binary kind.
    """
    name = name.removesuffix(".gz") if is_gzip else name
    kind = next((kind for ending, kind in _EXTENSIONS.items() if name.endswith(ending)), "")
    return f"its extension means {kind}, but its content is not {kind}" if kind else ""


def file_kind(beginning: bytes) -> FileKind:
    """Return the kind of a file from its first bytes, decompressed.

    A text that begins with neither "[" nor "{" may be a table. Its first lines decide, which the
    beginning need not contain.
    """
    if beginning.startswith(b"PAR1"):
        return FileKind.PARQUET
    if beginning.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return FileKind.ARROW
    content = beginning.removeprefix(codecs.BOM_UTF8).lstrip()
    if content.startswith(b"["):
        return FileKind.ARRAY
    return FileKind.LINES if content.startswith(b"{") or not content else FileKind.TABLE
