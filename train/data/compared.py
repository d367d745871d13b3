"""Formats of comparisons, many of them of one prompt.

- summarize, `{"info": {"post", "title", "subreddit", "article", …}, "summaries": [{"text", "policy", …}, …], "choice": 0 or 1,
  "worker", …}`, the comparisons of https://huggingface.co/datasets/openai/summarize_from_feedback (Stiennon et al. 2020,
  arXiv:2009.01325). The prompt is that of the paper's models, "SUBREDDIT: r/…\\n\\nTITLE: …\\n\\nPOST: …\\n\\nTL;DR:" and for news
  "Article:\\n\\n…\\n\\nTL;DR:" (openai/summarize-from-feedback, summarize_from_feedback/tasks.py), here uncut. The space
  that joins a summary to "TL;DR:" is no part of it.
- arena, `{"conversation_a", "conversation_b", "winner", "judge", "turn", …}`, `winner` one of model_a, model_b, tie, tie (bothbad)
  (https://huggingface.co/datasets/lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments; Zheng et al. 2023,
  arXiv:2306.05685). Both kinds of tie are ties: neither response is better. `turn`, counted from 1, is the one that was judged:
  MT-bench's rows have both turns, whichever it was, and what comes after it is cut. Conversations that part before their last
  turn cannot be said as two responses to one prompt and are left out, which are those of more than one turn.
"""

from collections.abc import Iterator

from kwise.engine.types import Conversation
from kwise.train.data.fields import messages, number, records, refuse, required, text, user
from kwise.train.data.items import Compared, Item, Left, ReadOptions, Row
from kwise.train.data.pairs import PARTED
from kwise.train.data.transcript import num_common

_TIES = ("tie", "tie (bothbad)")
_WINNERS = ("model_a", "model_b", *_TIES)


def read_summarize(row: Row, _: ReadOptions) -> Iterator[Item]:
    summaries = records(required(row, "summaries"), "summaries")
    if len(summaries) != 2:
        refuse("summaries", f"has {len(summaries)}; a comparison is of 2")
    choice = required(row, "choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        refuse("choice", "must be 0 or 1")
    sides = [text(summary, "text", f"summaries[{index}]").strip() for index, summary in enumerate(summaries)]
    worker = text(row, "worker") if row.get("worker") is not None else None
    prompt = user(_summarize_prompt(required(row, "info")))
    if sides[0] == sides[1]:
        yield Left(what="row", reason="both responses are the same")
    else:
        yield Compared(prompt=prompt, better=sides[int(choice)], worse=sides[1 - int(choice)], annotator=worker)


def _summarize_prompt(post: Row) -> str:
    if not isinstance(post, dict):
        refuse("info", "must be an object")
    if post.get("article") is not None:
        return f"Article:\n\n{text(post, 'article', 'info')}\n\nTL;DR:"
    subreddit, title, body = (text(post, key, "info") for key in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {body}\n\nTL;DR:"


def read_arena(row: Row, _: ReadOptions) -> Iterator[Item]:
    a, b = (_judged(messages(required(row, key), key), row) for key in ("conversation_a", "conversation_b"))
    winner = text(row, "winner")
    if winner not in _WINNERS:
        refuse("winner", f"must be one of {', '.join(_WINNERS)}")
    shared = num_common(a, b)
    judge = text(row, "judge") if row.get("judge") is not None else None
    if a == b:
        yield Left(what="row", reason="both responses are the same")
    elif not shared:
        refuse("conversation_a", "has no turn in common with conversation_b, so there is no prompt")
    elif any(len(turns) != shared + 1 or turns[-1].role != "assistant" for turns in (a, b)):
        yield Left(what="row", reason=PARTED)
    else:
        better, worse = (b, a) if winner == "model_b" else (a, b)
        yield Compared(
            prompt=a[:shared], better=better[-1].content, worse=worse[-1].content, tied=winner in _TIES, annotator=judge
        )


def _judged(turns: Conversation, row: Row) -> Conversation:
    """The conversation up to the answer that was judged; a turn is a question and its answer."""
    if row.get("turn") is None:
        return turns
    turn = number(row, "turn")
    if turn != int(turn) or turn < 1:
        refuse("turn", "must be a whole number from 1 on")
    return turns[: 2 * int(turn) + (turns[0].role == "system")]
