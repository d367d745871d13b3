"""What exports of annotation tools leave to be guessed: which field is the prompt, which the response that an option names.

A guess is made only where there is one possibility; everything else is an error that names the option to decide it. Guesses go
with the ranking, for `convert.py` to see that rows agree on them: a row alone does not show that another has a second question.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kwise.train.data.formats.fields import is_messages, messages, refuse, user
from kwise.types import Conversation

_USUAL_PROMPTS = ("prompt", "instruction", "question", "input")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPrompt:
    """`guesses` and `note` as in `Ranked`."""

    prompt: Conversation
    guesses: tuple[tuple[str, str], ...]
    note: str


def choose_prompt(
    fields: Mapping[str, Any], responses: Collection[str], column: str
) -> ChosenPrompt:
    """`column`, or the only field that is a text or messages and no response, or the only one of those with a
    usual name."""
    if column and column not in fields:
        refuse("--prompt-column", f"there is no field {column!r}; there are {listed(fields)}")
    texts = [
        name
        for name, value in fields.items()
        if name not in responses and (isinstance(value, str) or is_messages(value))
    ]
    possible = [column] if column else texts
    if len(possible) > 1:
        possible = [name for name in possible if name.lower() in _USUAL_PROMPTS] or possible
    if len(possible) != 1:
        refuse(
            "fields",
            f"the prompt may be {listed(possible) or 'none of them'}; say which with --prompt-column",
        )
    [chosen] = possible
    value = fields[chosen]
    dropped = sorted(name for name in texts if name != chosen)
    return ChosenPrompt(
        prompt=user(value) if isinstance(value, str) else messages(value, chosen),
        guesses=() if column else (("--prompt-column", chosen),),
        note=f"fields that are neither the prompt nor ranked are not written: {listed(dropped)}"
        if dropped
        else "",
    )


def field_named(option: str, fields: Mapping[str, Any], at: str) -> str:
    """The field that `option` names: the one of its name, or else of its letters and digits. "" where there is none and `at` is
    empty."""
    if option in fields:
        return option
    found = [name for name in fields if _plain(name) == _plain(option)]
    if len(found) != 1 and at:
        refuse(
            at,
            f"the option {option[:40]!a} is not the name of one field; there are {listed(fields)}",
        )
    return found[0] if len(found) == 1 else ""


def one_question(names: Collection[str], chosen: str) -> str:
    """The ranking question to read: `chosen`, or the only one."""
    if chosen and chosen not in names:
        refuse("--question", f"there is no ranking {chosen!r} here; there are {listed(names)}")
    if not chosen and len(names) > 1:
        refuse("row", f"has the rankings {listed(names)}; say which with --question")
    return chosen or next(iter(names))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def listed(names: Collection[str]) -> str:
    shown = [name[:40] for name in names]
    return ", ".join(shown[:8]) + (" and more" if len(shown) > 8 else "")
