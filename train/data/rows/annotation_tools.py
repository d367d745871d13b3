"""Choices that exports of annotation tools leave open, for Argilla and Label Studio.

Which field is the prompt? Which response does an option of the question name? A choice is made
only if there is exactly one possibility; otherwise the error names the option that decides it.
The choices are returned with the ranking, so that `convert/` can check that all rows agree on
them: one row does not show that another row has a second question.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kwise.meanings import Meaning, letters_of, row_meaning
from kwise.train.data.rows.fields import refuse
from kwise.train.data.rows.messages import looks_like_messages
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.shapes import prompt_field
from kwise.types import Conversation

_USUAL_PROMPTS = ("prompt", "instruction", "question", "input")
_NOT_PROMPTS = (Meaning.SYSTEM, Meaning.HISTORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPrompt:
    """The prompt; `guesses` as in `RankedResponses`."""

    prompt: Conversation
    guesses: tuple[tuple[str, str], ...]


def choose_prompt(fields: Row, responses: Collection[str], column: str, at: str) -> ChosenPrompt:
    """Return the prompt among `fields`, which are at the path `at`.

    It is the field `column` if that is not empty; else the only field that has text or messages,
    is not in `responses` and is neither a system message nor a history; else the only one of these
    with a usual name.
    """
    if column and column not in fields:
        refuse("--prompt-column", f"there is no field {column!r}; fields: {join_names(fields)}")
    candidates = [
        name
        for name, value in fields.items()
        if name not in responses
        and row_meaning(name) not in _NOT_PROMPTS
        and fields.has(name)
        and (isinstance(value, str) or looks_like_messages(value))
    ]
    possible = [column] if column else candidates
    if len(possible) > 1:
        possible = [name for name in possible if name.lower() in _USUAL_PROMPTS] or possible
    if sorted(possible) == ["input", "instruction"]:
        possible = ["instruction"]  # `prompt_field` joins the two
    if len(possible) != 1:
        names = join_names(possible) or "none of them"
        refuse("fields", f"the prompt could be {names}; choose it with --prompt-column")
    [chosen] = possible
    return ChosenPrompt(
        prompt=prompt_field(fields, chosen, at),
        guesses=() if column else (("--prompt-column", chosen),),
    )


def matching_field(option: str, fields: Mapping[str, Any]) -> str | None:
    """Return the field that `option` names, or None if it is not exactly one.

    The names must be equal, or else equal in their letters and digits, ignoring case.
    """
    if option in fields:
        return option
    matching = [name for name in fields if letters_of(name) == letters_of(option)]
    return matching[0] if len(matching) == 1 else None


def required_field(option: str, fields: Mapping[str, Any], at: str) -> str:
    """Return the field that `option` names; `at` is the path of the option."""
    if (name := matching_field(option, fields)) is None:
        names = join_names(fields)
        refuse(at, f"the option {option[:40]!a} does not name exactly one field; fields: {names}")
    return name


def choose_question(names: Collection[str], chosen: str) -> str:
    """Return the ranking question to read: `chosen`, or the only one if `chosen` is empty."""
    if chosen and chosen not in names:
        refuse("--question", f"there is no ranking {chosen!r} here; rankings: {join_names(names)}")
    if not chosen and len(names) > 1:
        refuse("row", f"has the rankings {join_names(names)}; choose one with --question")
    return chosen or next(iter(names))


def join_names(names: Collection[str]) -> str:
    """Return up to 8 names for a message, each cut to 40 characters."""
    shown = [name[:40] for name in names]
    return ", ".join(shown[:8]) + (" and more" if len(shown) > 8 else "")
