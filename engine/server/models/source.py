"""Where a model that is served comes from. Imports the standard library only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kwise.errors import ConfigError

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


def parse_source(argument: str) -> Source:
    """Return the artifact that an argument names: DIRECTORY or NAME=DIRECTORY.

    A directory whose own name has a = may be given as it is.

    Raises:
        ConfigError: the name is not valid.
    """
    name, equals, directory = argument.partition("=")
    if not equals or is_directory(Path(argument)):
        name, directory = "", argument
    elif problem := name_problem(name):
        raise ConfigError(f"ARTIFACT {argument}: {problem}")
    if not directory:  # it would be the current directory
        raise ConfigError(f"ARTIFACT {argument!r}: it names no directory; give NAME=DIRECTORY")
    # Absolute, so that messages name the directory of `kwise serve .`. A link stays a link, whose
    # target may be replaced before a reload.
    return Source(path=Path(directory).absolute(), name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleSource:
    """An ensemble to serve.

    Attributes:
        name: the name by which requests ask for it.
        member_names: the names of at least two models.
    """

    name: str
    member_names: tuple[str, ...]


def parse_ensembles(arguments: Sequence[str]) -> list[EnsembleSource]:
    """Return the ensembles of the option's values: NAME=MODEL,MODEL...

    Raises:
        ConfigError: a value has another form, or a name is given twice.
    """
    ensembles = [_parse_ensemble(argument) for argument in arguments]
    names = [ensemble.name for ensemble in ensembles]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"--ensemble {twice}: the name is given twice")
    return ensembles


def _parse_ensemble(argument: str) -> EnsembleSource:
    name, equals, members = argument.partition("=")
    names = tuple(members.split(","))
    problem = ""
    if not equals:
        problem = "it must have the form NAME=MODEL,MODEL"
    else:
        problem = name_problem(name) or members_problem(names)
    if problem:
        raise ConfigError(f"--ensemble {argument}: {problem}")
    return EnsembleSource(name=name, member_names=names)


def members_problem(names: Sequence[str]) -> str:
    """Return what is wrong with the names of an ensemble's members; "" if nothing is."""
    if "" in names:
        return "the name of a member is empty; give the names of at least two models"
    if len(names) < 2:
        return "there is one member; an ensemble needs at least two"
    twice = next((name for name in names if names.count(name) > 1), None)
    return "" if twice is None else f"{twice[:100]!r} is named twice; name each member once"


def is_directory(path: Path) -> bool:
    """Return whether a path is a directory that this process reaches.

    `Path.is_dir` raises for a path that is too long, and below a directory that is closed to it.
    """
    try:
        return path.is_dir()
    except OSError:
        return False


def name_problem(name: str) -> str:
    """Return what is wrong with a name for a model; "" if nothing is."""
    if _NAME.fullmatch(name):
        return ""
    return (
        f"the name is {name[:100]!r}; it must have 1 to 100 letters, digits, '.', '_' or '-', and "
        "begin with a letter or digit"
    )
