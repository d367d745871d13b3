"""Battles of two models: Chatbot Arena, LMArena and MT-bench (Zheng et al. 2023, arXiv:2306.05685).

- `{"conversation_a", "conversation_b", "winner", "judge", "turn", …}`; `winner` is model_a,
  model_b, tie, "tie (bothbad)" or both_bad. `turn`, counted from 1, is the judged turn; the later
  turns are dropped (https://huggingface.co/datasets/lmsys/chatbot_arena_conversations,
  lmsys/mt_bench_human_judgments, lmarena-ai/arena-human-preference-140k).
- `{"prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie", …}`;
  the first three are lists with one element per turn, written as JSON
  (https://huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k).

All kinds of ties are ties, because neither response is better. Two conversations that differ
before their last turn, as most with several turns do, have no common prompt and are skipped.
"""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.rows.fields import (
    as_list,
    as_string,
    is_encodable,
    number_field,
    refuse,
    required,
    string_field,
)
from kwise.train.data.rows.items import ComparedPair, ReadOptions, RowItem, Skipped
from kwise.train.data.rows.preference_pair import DIVERGED
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.shapes import turns_field
from kwise.train.data.rows.transcript import num_common_turns
from kwise.train.rankings.json_value import JsonError, parse_json
from kwise.types import Conversation, Message

_TIES = ("tie", "tie (bothbad)", "both_bad")
_WINNERS = ("model_a", "model_b", *_TIES)


def read_arena(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    yield _read_55k(row) if "winner_tie" in row else _read_conversations(row)


def _read_conversations(row: Row) -> RowItem:
    a, b = (
        _judged_part(turns_field(row, key), row) for key in ("conversation_a", "conversation_b")
    )
    winner = string_field(row, "winner")
    if winner not in _WINNERS:
        refuse("winner", f"must be one of {', '.join(_WINNERS)}")
    judge = string_field(row, "judge") if row.get("judge") is not None else None
    return _battle(a, b, winner, judge)


def _read_55k(row: Row) -> RowItem:
    prompts, a, b = (_turn_texts(row, key) for key in ("prompt", "response_a", "response_b"))
    won = {
        winner: number_field(row, f"winner_{winner}") for winner in ("model_a", "model_b", "tie")
    }
    if sorted(won.values()) != [0, 0, 1]:
        refuse(
            "winner_model_a",
            "winner_model_b and winner_tie: one of the three must be 1, the others 0",
        )
    for key, answers in (("response_a", a), ("response_b", b)):
        if len(answers) != len(prompts):
            refuse(key, f"has {len(answers)} turns, but the prompt has {len(prompts)}")
    if None in (*prompts, *a, *b):
        return Skipped(what="row", reason="a turn has no text")
    if not all(is_encodable(turn) for turn in (*prompts, *a, *b)):
        return Skipped(what="row", reason="a turn has half of a surrogate pair")
    [winner] = (winner for winner, is_winner in won.items() if is_winner)
    return _battle(_conversation(prompts, a), _conversation(prompts, b), winner, None)


def _turn_texts(row: Row, key: str) -> list[Any]:
    """Return the text, or None, of each turn."""
    value = required(row, key)
    if isinstance(value, str):
        try:
            value = parse_json(value.encode("utf-8", "surrogatepass"))
        except JsonError as error:
            refuse(key, str(error))
    if not as_list(value, key):
        refuse(key, "must not be empty")
    return [
        turn if turn is None else as_string(turn, f"{key}[{index}]")
        for index, turn in enumerate(value)
    ]


def _conversation(prompts: list[str], answers: list[str]) -> Conversation:
    return tuple(
        Message(role=role, content=content)
        for turn in zip(prompts, answers, strict=True)
        for role, content in zip(("user", "assistant"), turn, strict=True)
    )


def _battle(a: Conversation, b: Conversation, winner: str, judge: str | None) -> RowItem:
    """Return the comparison of the last answers of two conversations."""
    num_common = num_common_turns(a, b)
    if a == b:
        return Skipped(what="row", reason="both responses are the same")
    if not num_common:
        refuse("conversation_a", "has no turn in common with conversation_b, so there is no prompt")
    if any(len(turns) != num_common + 1 or turns[-1].role != "assistant" for turns in (a, b)):
        return Skipped(what="row", reason=DIVERGED)
    better, worse = (b, a) if winner == "model_b" else (a, b)
    return ComparedPair(
        prompt=a[:num_common],
        better=better[-1].content,
        worse=worse[-1].content,
        tied=winner in _TIES,
        annotator=judge,
    )


def _judged_part(turns: Conversation, row: Row) -> Conversation:
    """Return the conversation up to the judged answer; a turn is a question and its answer."""
    if row.get("turn") is None:
        return turns
    turn = number_field(row, "turn")
    if turn != int(turn) or turn < 1:
        refuse("turn", "must be an integer of at least 1")
    end = 2 * int(turn) + (turns[0].role == "system")
    if end > len(turns):
        refuse("turn", f"is {int(turn)}, but a conversation has only {len(turns)} messages")
    if end < len(turns):
        row.note("turns after the judged one are not written")
    return turns[:end]
