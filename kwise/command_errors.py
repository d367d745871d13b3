"""Tell an error of a command in one line, and choose the exit code.

An error that kwise expects is its message. Any other exception is a bug, or a cause in the input
that kwise does not know yet: its line asks for a report, and the traceback is written to a file.
"""

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from kwise.errors import ArtifactError, ConfigError, KwiseError, LibraryFailed
from kwise.libraries.errors import cause_of, is_foreign, origin_of
from kwise.libraries.extras import how_to_install

_EXPECTED = (ConfigError, ArtifactError, KwiseError, LibraryFailed)
_WRONG_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def exit_code_of(error: Exception, argv: Sequence[str]) -> int:
    """Return 2 if the command line `argv` is at fault, else 1; see `kwise.cli.main`."""
    if isinstance(error, ConfigError):
        return 2
    # Of the files that cannot be opened, those that the command line names are its mistake.
    return 2 if isinstance(error, _WRONG_PATHS) and str(error.filename) in argv else 1


def report(error: Exception, *, program: str, extra: str, debug: bool) -> None:
    """Print one line about an error on standard error.

    Args:
        program: what the line begins with: "kwise train".
        extra: the extra of the distribution that installs the packages of this command.
        debug: also print the traceback.
    """
    if debug:
        traceback.print_exception(error)
    line = _line(error, extra)
    if line is None:
        line = f"unexpected error: {cause_of(error)} (at {origin_of(error)}); "
        line += "please report this as a bug of kwise"
        line += ", with the traceback above" if debug else f", with {_write_traceback(error)}"
    elif error.__cause__ is not None and not isinstance(error, KwiseError | OSError):
        line += "" if debug else " (--debug shows the traceback)"
    print(f"{program}: {line}", file=sys.stderr)


def _line(error: Exception, extra: str) -> str | None:
    """Return the line of an error that kwise expects, else None."""
    if isinstance(error, _EXPECTED):
        return str(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("kwise"):
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            return f"needs the package {package}: {how_to_install(extra)}"
        if is_foreign(error):
            return (
                f"the installed packages do not fit together: {cause_of(error)}; in a new "
                f"environment, {how_to_install(extra)}"
            )
    if isinstance(error, ModuleNotFoundError) and _is_without_links():
        return (
            f"{error.name} is missing, because this copy of the repository has no symbolic links: "
            "install it (pip install .), or clone with git config core.symlinks true"
        )
    if isinstance(error, MemoryError):
        return f"out of memory: {cause_of(error)}"
    if isinstance(error, OSError):
        if error.filename is None or error.strerror is None:
            return cause_of(error)
        return f"{error.filename}: {error.strerror}"
    return None


def _is_without_links() -> bool:
    return not Path(__file__).with_name("client").is_dir()


def _write_traceback(error: Exception) -> str:
    """Write the traceback to a temporary file and return its path, or the traceback itself."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", prefix="kwise-", suffix=".log", delete=False
        ) as file:
            file.write(text)
    except OSError:
        return f"this traceback:\n{text}"
    return f"the traceback in {file.name}"
