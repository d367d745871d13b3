"""Import matplotlib whatever backend the environment names."""

import os
from importlib import import_module


def load_matplotlib() -> None:
    """Import matplotlib, without the variable MPLBACKEND.

    A notebook sets the variable for its commands too. matplotlib refuses to be imported if this
    backend is not installed beside it, and files of plots need none.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import_module("matplotlib")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
