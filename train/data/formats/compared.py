"""Formats of comparisons, many of them of one prompt, or with ties.

- summarize, `{"info": {"post", "title", "subreddit", "article", …}, "summaries": [{"text", "policy", …}, …], "choice": 0 or 1,
  "worker", …}`, the comparisons of https://huggingface.co/datasets/openai/summarize_from_feedback (Stiennon et al. 2020,
  arXiv:2009.01325). The prompt is that of the paper's models, "SUBREDDIT: r/…\\n\\nTITLE: …\\n\\nPOST: …\\n\\nTL;DR:" and for news
  "Article:\\n\\n…\\n\\nTL;DR:" (openai/summarize-from-feedback, summarize_from_feedback/tasks.py), here uncut. The space
  that joins a summary to "TL;DR:" is no part of it.
- arena, `{"conversation_a", "conversation_b", "winner", "judge", "turn", …}`, `winner` one of model_a, model_b, tie, and tie
  (bothbad) or both_bad (https://huggingface.co/datasets/lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments,
  lmarena-ai/arena-human-preference-140k; Zheng et al. 2023, arXiv:2306.05685); and `{"prompt", "response_a", "response_b",
  "winner_model_a", "winner_model_b", "winner_tie", …}`, the first three lists with an element a turn, written as JSON
  (https://huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k). Both kinds of tie are ties: neither response is
  better. `turn`, counted from 1, is the one that was judged: MT-bench's rows have both turns, whichever it was, and what comes
  after it is cut. Conversations that part before their last turn cannot be said as two responses to one prompt and are left
  out, which are most of those of more than one turn.
- helpsteer-preference, `{"prompt", "response_1", "response_2", "preference_strength", …}`, the strength from -3 (the first is much
  better) to 3 (the second is), 0 a tie (https://huggingface.co/datasets/nvidia/HelpSteer2, preference; Wang et al. 2024,
  arXiv:2410.01257); in HelpSteer3 `{"context", "response1", "response2", "overall_preference", …}`, the context being messages
  (https://huggingface.co/datasets/nvidia/HelpSteer3; Wang et al. 2025, arXiv:2505.11475). The strength is written as the
  scores of the two, strength and 0, as a margin is.
"""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.formats.fields import (
    as_list,
    as_text,
    is_unicode,
    messages,
    number,
    records,
    refuse,
    required,
    text,
    user,
)
from kwise.train.data.formats.items import Compared, Item, Left, ReadOptions, Row
from kwise.train.data.formats.pairs import PARTED
from kwise.train.data.formats.transcript import num_common, parse_nemo
from kwise.train.rankings.json_value import JsonError, parse_json
from kwise.types import Conversation, Message

_TIES = ("tie", "tie (bothbad)", "both_bad")
_WINNERS = ("model_a", "model_b", *_TIES)
_SAME = "both responses are the same"
_MAX_STRENGTH = 3


def read_summarize(row: Row, _: ReadOptions) -> Iterator[Item]:
    summaries = records(required(row, "summaries"), "summaries")
    if len(summaries) != 2:
        refuse("summaries", f"has {len(summaries)}; a comparison is of 2")
    choice = required(row, "choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        refuse("choice", "must be 0 or 1")
    sides = [
        text(summary, "text", f"summaries[{index}]").strip()
        for index, summary in enumerate(summaries)
    ]
    worker = text(row, "worker") if row.get("worker") is not None else None
    prompt = user(_summarize_prompt(required(row, "info")))
    if sides[0] == sides[1]:
        yield Left(what="row", reason=_SAME)
    else:
        yield Compared(
            prompt=prompt, better=sides[int(choice)], worse=sides[1 - int(choice)], annotator=worker
        )


def _summarize_prompt(post: Row) -> str:
    if not isinstance(post, dict):
        refuse("info", "must be an object")
    if post.get("article") is not None:
        return f"Article:\n\n{text(post, 'article', 'info')}\n\nTL;DR:"
    subreddit, title, body = (text(post, key, "info") for key in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {body}\n\nTL;DR:"


def read_arena(row: Row, _: ReadOptions) -> Iterator[Item]:
    if "winner_tie" in row:
        yield from _read_arena_55k(row)
        return
    a, b = (
        _judged(messages(required(row, key), key), row)
        for key in ("conversation_a", "conversation_b")
    )
    winner = text(row, "winner")
    if winner not in _WINNERS:
        refuse("winner", f"must be one of {', '.join(_WINNERS)}")
    judge = text(row, "judge") if row.get("judge") is not None else None
    yield _battle(a, b, winner, judge)


def _read_arena_55k(row: Row) -> Iterator[Item]:
    prompts, a, b = (_texts(row, key) for key in ("prompt", "response_a", "response_b"))
    won = {winner: number(row, f"winner_{winner}") for winner in ("model_a", "model_b", "tie")}
    if sorted(won.values()) != [0, 0, 1]:
        refuse(
            "winner_model_a",
            "winner_model_b and winner_tie: one of the three must be 1, the others 0",
        )
    for key, answers in (("response_a", a), ("response_b", b)):
        if len(answers) != len(prompts):
            refuse(key, f"has {len(answers)} turns for the {len(prompts)} of the prompt")
    if None in (*prompts, *a, *b):
        yield Left(what="row", reason="a turn of it has no text")
    elif not all(is_unicode(turn) for turn in (*prompts, *a, *b)):
        yield Left(what="row", reason="a turn of it has half of a surrogate pair")
    else:
        [winner] = (winner for winner, is_won in won.items() if is_won)
        yield _battle(_conversation(prompts, a), _conversation(prompts, b), winner, None)


def _texts(row: Row, key: str) -> list[Any]:
    """The texts, or nulls, of the turns."""
    value = required(row, key)
    if isinstance(value, str):
        try:
            value = parse_json(value.encode("utf-8", "surrogatepass"))
        except JsonError as error:
            refuse(key, str(error))
    if not as_list(value, key):
        refuse(key, "must not be empty")
    return [
        turn if turn is None else as_text(turn, f"{key}[{index}]")
        for index, turn in enumerate(value)
    ]


def _conversation(prompts: list[str], answers: list[str]) -> Conversation:
    turns = zip(prompts, answers, strict=True)
    return tuple(
        Message(role=role, content=said)
        for turn in turns
        for role, said in zip(("user", "assistant"), turn, strict=True)
    )


def _battle(a: Conversation, b: Conversation, winner: str, judge: str | None) -> Item:
    """The comparison of the answers with which two conversations end."""
    shared = num_common(a, b)
    if a == b:
        return Left(what="row", reason=_SAME)
    if not shared:
        refuse("conversation_a", "has no turn in common with conversation_b, so there is no prompt")
    if any(len(turns) != shared + 1 or turns[-1].role != "assistant" for turns in (a, b)):
        return Left(what="row", reason=PARTED)
    better, worse = (b, a) if winner == "model_b" else (a, b)
    return Compared(
        prompt=a[:shared],
        better=better[-1].content,
        worse=worse[-1].content,
        tied=winner in _TIES,
        annotator=judge,
    )


def _judged(turns: Conversation, row: Row) -> Conversation:
    """The conversation up to the answer that was judged; a turn is a question and its answer."""
    if row.get("turn") is None:
        return turns
    turn = number(row, "turn")
    if turn != int(turn) or turn < 1:
        refuse("turn", "must be a whole number from 1 on")
    end = 2 * int(turn) + (turns[0].role == "system")
    if end > len(turns):
        refuse("turn", f"is {int(turn)}, and a conversation has only {len(turns)} messages")
    return turns[:end]


def read_helpsteer_preference(row: Row, _: ReadOptions) -> Iterator[Item]:
    is_third = "context" in row
    prompt = (
        messages(required(row, "context"), "context")
        if is_third
        else parse_nemo(text(row, "prompt"))
    )
    first, second = (
        text(row, key)
        for key in (("response1", "response2") if is_third else ("response_1", "response_2"))
    )
    column = "overall_preference" if is_third else "preference_strength"
    strength = number(row, column)
    if abs(strength) > _MAX_STRENGTH or strength != int(strength):
        refuse(column, f"must be a whole number from -{_MAX_STRENGTH} to {_MAX_STRENGTH}")
    better, worse = (second, first) if strength > 0 else (first, second)
    if first == second:
        yield Left(what="row", reason=_SAME)
    elif strength:
        yield Compared(prompt=prompt, better=better, worse=worse, scores=(abs(strength), 0))
    else:
        yield Compared(prompt=prompt, better=better, worse=worse, tied=True)
