"""Recipes: the options of published training runs, as defaults of `kwise train`.

A recipe is a YAML file of options by name, in recipes/. It has what its source states, and says in
comments what the source does not state. Options on the command line take precedence.
"""

import argparse
import dataclasses
import sys
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from kwise.errors import ConfigError
from kwise.libraries.errors import library_errors
from kwise.options import flag_of
from kwise.train.options.config import TrainConfig

_FOLDER = Path(__file__).parent / "recipes"
# Options that describe a single run.
_NOT_OF_RECIPES = {"recipe", "data", "validation", "output", "resume", "overwrite"}


def recipe_names() -> list[str]:
    """Return the names of all recipes in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def summary(name: str) -> str:
    """Return the first line of the recipe, a comment."""
    return (
        (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    )


def text_of(name: str) -> str:
    """Return the file of a recipe: its options, and what its source states and does not state.

    Raises:
        ConfigError: the recipe does not exist.
    """
    if name not in recipe_names():
        raise ConfigError(f"recipe {name}: not known; known are {', '.join(recipe_names())}")
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def as_options(values: dict[str, Any]) -> str:
    """Return options as they are written on the command line, for a message."""
    shown = []
    for name, value in values.items():
        if isinstance(value, bool):
            shown.append(flag_of(name) if value else flag_of(name).replace("--", "--no-", 1))
        elif value is not None:
            shown.append(f"{flag_of(name)} {value.value if isinstance(value, Enum) else value}")
    return " ".join(shown)


def read_recipe(name: str) -> dict[str, Any]:
    """Return arguments of `TrainConfig` from a recipe.

    Args:
        name: the name of a recipe, or the path of a file that ends with .yaml.

    Raises:
        ConfigError: the recipe does not exist, or has an unknown option or a value of another type;
            the message names file and key.
        OSError: the file cannot be read.
    """
    if not name.endswith(".yaml") and name not in recipe_names():
        raise ConfigError(
            f"--recipe {name}: not known; known are {', '.join(recipe_names())}, and .yaml files"
        )
    import yaml  # imported late: it comes with the extra [train], and --help needs no extra

    path = Path(name) if name.endswith(".yaml") else _FOLDER / f"{name}.yaml"
    with path.open("rb") as file, library_errors(f"{path}: is not YAML"):
        values = yaml.safe_load(file) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of options to values")
    values = {str(key): value for key, value in values.items()}
    hints = typing.get_type_hints(TrainConfig)
    known = {field.name for field in dataclasses.fields(TrainConfig)} - _NOT_OF_RECIPES
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{path}: {key}: is not an option of a recipe; known are {', '.join(sorted(known))}"
            )
    return {key: _typed(value, hints[key], f"{path}: {key}") for key, value in values.items()}


def _typed(value: Any, hint: Any, at: str) -> Any:
    """Return a YAML value in the option's type.

    YAML 1.1 reads 9e-6 as a string, because it has no decimal point.
    """
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
        expected = (
            f"one of {', '.join(member.value for member in kind)}"
            if issubclass(kind, Enum)
            else _article(kind)
        )
        raise ConfigError(f"{at}: {value!r} is not {expected}") from None


def _article(kind: type) -> str:
    return {bool: "true or false", int: "an integer", float: "a number", str: "a string"}.get(
        kind, f"a {kind.__name__}"
    )


class ListRecipes(argparse.Action):
    """An option that prints the recipes and exits, as `--help` does."""

    def __init__(
        self,
        option_strings: list[str],
        dest: str,
        help: str | None = None,  # noqa: A002 - argparse's name
    ) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        width = max(map(len, recipe_names()))
        parser._print_message(
            "".join(f"{name:{width}}  {summary(name)}\n" for name in recipe_names()), sys.stdout
        )
        parser.exit()
