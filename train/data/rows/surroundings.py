"""The columns of a row other than the prompt and the responses that its format reads.

A system message and earlier turns in columns of their own are put before the prompt, whatever the
format. Any other column that changes what was judged is refused. The rest is counted.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kwise.meanings import Meaning, message_meaning, row_meaning
from kwise.train.data.rows.fields import as_list, as_string, refuse
from kwise.train.data.rows.items import ReadOptions, RowItem, RowProblem, Skipped
from kwise.train.data.rows.messages import as_messages, looks_like_messages, messages_in_text
from kwise.train.data.rows.row import Row, Unread, unread
from kwise.train.data.rows.shapes import turns_in_text
from kwise.train.rankings.json_value import JsonError, parse_json
from kwise.types import Conversation, Message

_WRITTEN_NOTHING = ("[]", "{}", "null", "None", "nan")
"""Values that say nothing in a table without nested columns, such as CSV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrounded:
    """The items with all that surrounds them; `unread` counts the paths that were not read."""

    items: Sequence[RowItem]
    unread: Counter[str]


def read_surroundings(
    items: Sequence[RowItem], row: Row, options: ReadOptions, texts: Sequence[str]
) -> Surrounded:
    """Put system message and history of `row` before the prompts, and check all unread keys.

    Args:
        texts: texts of the row that were read; an unread key that repeats them loses nothing.

    Raises:
        RowProblem: an unread key changes what was judged.
    """
    if all(isinstance(item, Skipped) for item in items):
        return Surrounded(items=items, unread=Counter(key.path for key in unread(row)))
    system, history = _system_and_history(row, options)
    surrounded = [
        item
        if isinstance(item, Skipped)
        else item.with_texts(_surrounded(item.prompt, system, history), item.texts())
        for item in items
    ]
    rest = list(unread(row))
    said = [*texts, *texts_of(surrounded)]
    lost = [
        key
        for key in rest
        if _meaning(key, options) and (key.owner.is_message or not _is_said(key.value, said))
    ]
    if lost:
        _refuse(lost, options)
    return Surrounded(items=surrounded, unread=Counter(key.path for key in rest))


def _refuse(lost: Sequence[Unread], options: ReadOptions) -> NoReturn:
    key, names = lost[0], dict.fromkeys(key.key[:40] for key in lost)
    meaning = _meaning(key, options)
    assert meaning is not None, "only keys with a meaning are lost"
    refuse(
        key.at or "row",
        f"has {key.key[:40]!a}, {meaning.value}, which kwise cannot use here; if the labels do not "
        f"depend on it, give kwise data convert --ignore-columns {' '.join(names)}",
    )


def _system_and_history(row: Row, options: ReadOptions) -> tuple[Message | None, Conversation]:
    """Return what the columns for system message and history have."""
    system: Message | None = None
    history: Conversation = ()
    for key in list(unread(row)):
        meaning = _meaning(key, options) if key.owner.is_columns else None
        if meaning is Meaning.SYSTEM:
            content = as_string(key.owner[key.key], key.path)
            if system not in (None, Message(role="system", content=content)):
                refuse(key.path, "is a second system message, which differs from the first")
            system = Message(role="system", content=content)
        elif meaning is Meaning.HISTORY:
            history = _history(key.owner[key.key], key.path, row)
    return system, history


def _meaning(key: Unread, options: ReadOptions) -> Meaning | None:
    """Return what an unread key adds to the conversation; None if nothing, or it is ignored."""
    if key.path in options.ignored_columns or key.key in options.ignored_columns:
        return None
    if key.value in _WRITTEN_NOTHING:
        return None
    return (message_meaning if key.owner.is_message else row_meaning)(key.key)


def _history(value: Any, at: str, row: Row) -> Conversation:
    """Return earlier turns: messages, pairs (question, answer), or a text that spells out turns."""
    if isinstance(value, str):
        if (turns := turns_in_text(value, at, row)) is not None:
            return turns
        try:
            value = parse_json(value.encode("utf-8", "surrogatepass"))
        except JsonError:
            refuse(at, "is a text, but neither a transcript nor JSON")
    if looks_like_messages(value):
        return as_messages(value, at)
    turns_of_pairs: list[Message] = []
    for index, pair in enumerate(as_list(value, at)):
        here = f"{at}[{index}]"
        if len(as_list(pair, here)) != 2:
            refuse(here, "must be a question and its answer")
        turns_of_pairs += (
            Message(role=role, content=as_string(text, here))
            for role, text in zip(("user", "assistant"), pair, strict=True)
        )
    return tuple(turns_of_pairs)


def _surrounded(
    prompt: Conversation, system: Message | None, history: Conversation
) -> Conversation:
    """Return the prompt after system message and history, unless it begins with them already."""
    own = prompt[:1] if prompt and prompt[0].role == "system" else ()
    turns = prompt[len(own) :]
    if history and history[0].role == "system":
        if own and own != history[:1]:
            refuse("history", "has another system message than the prompt")
        own, history = history[:1], history[1:]
    if system is not None and own and own != (system,):
        refuse("prompt", "has another system message than the system column")
    if history and turns[: len(history)] != history:
        if len(turns) > 1:
            refuse("history", "is given beside a prompt that has earlier turns itself")
        turns = history + turns
    return (own or ((system,) if system is not None else ())) + turns


def texts_of(items: Sequence[RowItem]) -> list[str]:
    """Return the texts of all prompts and responses."""
    texts: list[str] = []
    for item in items:
        if not isinstance(item, Skipped):
            texts += (*(message.content for message in item.prompt), *item.texts())
    return texts


def _is_said(value: Any, said: Sequence[str]) -> bool:
    """Return whether all texts of `value` are in `said`, or it has no text at all."""
    if isinstance(value, bool | int | float):
        return value in (False, 0)
    texts = list(_texts_in(value))
    return bool(texts) and all(any(text.strip() in other for other in said) for text in texts)


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the texts of `value`; of messages only their contents."""
    if isinstance(value, str):
        value = _messages_or_text(value)
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            is_message = looks_like_messages(item)
            pending += [v for k, v in item.items() if not (is_message and k in ("role", "from"))]
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, str):
            yield item


def _messages_or_text(text: str) -> Any:
    try:
        messages = messages_in_text(text, "")
    except RowProblem:
        return text
    return text if messages is None else messages
