"""Parsing a GGUF file once.

transformers parses it five times while a model is loaded: for its config, its tokenizer and its
weights. A vocabulary of 49,152 tokens takes seconds each time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import gguf


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Let `gguf.GGUFReader` return the same reader for the same file."""
    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]
