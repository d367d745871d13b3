"""The command `kwise recipes [NAME]`."""

import argparse

from kwise.train.options.recipe import recipe_names, summary, text_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name."""
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="print the options that this recipe sets, and what its source says; without a name, "
        "list all recipes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the recipe, or the list of recipes, and return 0."""
    if arguments.name is None:
        print(list_of_recipes(), end="")
    else:
        print(text_of(arguments.name), end="")
    return 0


def list_of_recipes() -> str:
    """Return one line per recipe."""
    width = max(map(len, recipe_names()))
    return "".join(f"{name:{width}}  {summary(name)}\n" for name in recipe_names())
