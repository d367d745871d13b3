"""Published training runs as defaults of `kwise train`: a YAML file of options by name, in
recipes/.

A recipe holds what its source states and says in comments what it does not; flags of the command
line win.
"""

import argparse
import dataclasses
import sys
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig

_FOLDER = Path(__file__).parent / "recipes"
# What is a run's own.
_NOT_OF_RECIPES = {"recipe", "data", "output", "resume", "overwrite"}


def recipe_names() -> list[str]:
    """In alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def summary(name: str) -> str:
    """The first line of the recipe, a comment."""
    return (
        (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Arguments of `TrainConfig`, from the recipe of that name or a file of one's own that ends
    with .yaml.

    Raises:
        ConfigError: there is no such recipe, or an option of it is none of `kwise train` or of
            another type; names file and key.
        OSError: the file cannot be read.
    """
    if not name.endswith(".yaml") and name not in recipe_names():
        raise ConfigError(
            f"--recipe {name}: known are {', '.join(recipe_names())}, and files that end with .yaml"
        )
    path = Path(name) if name.endswith(".yaml") else _FOLDER / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be options by name")
    hints = typing.get_type_hints(TrainConfig)
    known = {field.name for field in dataclasses.fields(TrainConfig)} - _NOT_OF_RECIPES
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{path}: {key}: no option of a recipe; known are {', '.join(sorted(known))}"
            )
    return {key: _typed(value, hints[key], f"{path}: {key}") for key, value in values.items()}


def _typed(value: Any, hint: Any, at: str) -> Any:
    """YAML's value as the option's type. YAML 1.1 reads 9e-6, which has no point, as a text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = kinds[0]
    if kind in (bool, int, str) or isinstance(value, bool):
        if type(value) is not kind:
            raise ConfigError(f"{at}: must be {_article(kind)}, not {value!r}")
        return value
    try:
        return kind(value)
    except (ValueError, TypeError):
        wanted = (
            f"one of {', '.join(member.value for member in kind)}"
            if issubclass(kind, Enum)
            else _article(kind)
        )
        raise ConfigError(f"{at}: {value!r} is not {wanted}") from None


def _article(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
        kind, f"a {kind.__name__}"
    )


class ListRecipes(argparse.Action):
    """Print what there is, and end, as `--help` does."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:  # noqa: A002 - argparse's word
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        width = max(map(len, recipe_names()))
        parser._print_message(
            "".join(f"{name:{width}}  {summary(name)}\n" for name in recipe_names()), sys.stdout
        )
        parser.exit()
