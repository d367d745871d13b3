"""The boundary around other libraries: their exceptions become one line that says what to do.

transformers, PEFT, Optimum, ONNX Runtime, OpenVINO, tokenizers, Jinja, safetensors and PyYAML raise
many kinds of exceptions for input that they cannot handle, some of them pages long.
`library_errors` goes around a call of such a library, and around nothing else:

    with library_errors(f"--model {name}: cannot be read"):
        model = AutoModelForSequenceClassification.from_pretrained(name)

A bug in kwise must not look like bad input. So an exception from a function of kwise that the block
calls passes unchanged, and `kwise.cli` reports it as a bug. The exception stays the cause of the
error, and `--debug` shows its traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kwise.errors import ConfigError

_MAX_CHARACTERS = 300
# What torch appends to its messages.
_STACKS = ("\nException raised from", "\nC++ CapturedCallStack")
# From here on, torch explains its allocator.
_ALLOCATOR = " Of the allocated memory "
# Failures of the machine, which say nothing about the input.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO}
# Python's exceptions with a sentence as their message; others, such as KeyError, need their name.
_SENTENCES = (OSError, ValueError, RuntimeError, ImportError)


@contextmanager
def library_errors(
    problem: str,
    *,
    advice: str = "",
    memory_advice: str = "",
    raises: type[Exception] = ConfigError,
) -> Iterator[None]:
    """Turn exceptions of other libraries in this block into `raises` with one line.

    Args:
        problem: the option, file or architecture, and what failed: "--model x: cannot be read".
        advice: what the user can do; it ends the line.
        memory_advice: the same if memory was too small.
        raises: the class of the error. `kwise` exits with 2 for a ConfigError, which is right for
            what the command line names, and with 1 for an ArtifactError.
    """
    try:
        yield
    except BaseException as error:  # a panic in Rust code is not an Exception
        if not is_foreign(error):
            raise
        text = f"{problem}: {cause_of(error)}"
        if memory_advice and _is_out_of_memory(error):
            advice = memory_advice
        raise raises(f"{text}; {advice}" if advice else text) from error


def is_foreign(error: BaseException) -> bool:
    """Return whether an exception comes from another library, and may be due to its input.

    Call it where the exception was caught. Errors of kwise, failures of the machine, and exceptions
    that a function of kwise raised below the `try` are not foreign.
    """
    kind = type(error)
    if not isinstance(error, Exception):
        return kind.__name__ == "PanicException"  # pyo3's, for tokenizers and safetensors
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _MACHINE:
        return False
    if isinstance(error, NotImplementedError):
        return True  # of kwise too: it has met a model that it cannot handle, and says so
    root = kind.__module__.partition(".")[0]
    if root == "kwise":
        return False
    if root != "builtins" or kind is Exception:  # tokenizers raises plain exceptions
        return True
    frames = _frames(error)
    # A library that is not written in Python has no frame of its own: the last one is its caller's.
    return not frames or not _is_ours(frames[-1]) or frames[-1] is frames[0]


def cause_of(error: BaseException) -> str:
    """Return the message of an exception on one line of at most 300 characters."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"  # without "[Errno 2]"
    for stack in (*_STACKS, _ALLOCATOR):
        text = text.partition(stack)[0]
    text = " ".join(text.split())
    if not text:
        return type(error).__name__
    kind = type(error)
    if kind.__module__ == "builtins" and not issubclass(kind, _SENTENCES) and kind is not Exception:
        text = f"{kind.__name__}: {text}"
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def root_of(error: BaseException) -> BaseException:
    """Return the exception with which it began. Those of HTTP libraries wrap one another."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def origin_of(error: BaseException) -> str:
    """Return FILE:LINE of the last function of kwise that an exception passed."""
    places, step = "", error.__traceback__
    while step is not None:
        if _is_ours(step.tb_frame):
            name = step.tb_frame.f_globals["__name__"]
            places = f"{name.replace('.', '/')}.py:{step.tb_lineno}"
        step = step.tb_next
    return places


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _frames(error: BaseException) -> list[FrameType]:
    """Return the frames from the one with the `try` to the one that raised."""
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append(step.tb_frame)
        step = step.tb_next
    while frames and frames[0].f_code.co_filename in _OWN_FILES:
        frames.pop(0)
    return frames


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "kwise"


_OWN_FILES = {str(Path(__file__)), contextmanager.__code__.co_filename}
