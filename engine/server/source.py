"""Where a model that is served comes from. Imports the standard library only."""

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An artifact to serve.

    Attributes:
        path: its directory.
        name: the model's name in requests and replies; "" for the artifact's own, which must then
            stay the same when the artifact is replaced.
    """

    path: Path
    name: str = ""


def name_problem(name: str) -> str:
    """Return what is wrong with a name for a model; "" if nothing is."""
    if _NAME.fullmatch(name):
        return ""
    return (
        f"the name is {name[:100]!r}; it must have 1 to 100 letters, digits, '.', '_' or '-', and "
        "begin with a letter or digit"
    )
