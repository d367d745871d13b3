"""A chosen and a rejected response, as texts or as the ends of two conversations.

The label decides the order. Scores that do not put the chosen response above the rejected one
(UltraFeedback has ties) are dropped, and the report counts them.
"""

import re
from collections.abc import Iterator

from kwise.train.data.rows.fields import number_field, refuse
from kwise.train.data.rows.items import ComparedPair, RowItem, Skipped
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.transcript import num_common_turns
from kwise.types import Conversation

DIVERGED = "the conversations differ before the last turn, and a response is one turn"
_SAME = "chosen and rejected are the same"
_SCORES_DROPPED = "scores do not put chosen above rejected: the label is kept, the scores are not"
_SCORES_DIFFER = "columns of scores contradict each other: the label is kept, the scores are not"
# What is left of the name of a score column without "chosen": score_chosen, chosen-rating, …
_SCORE_NAME = re.compile(r"(?:avg|average|mean|overall|final|total)?(?:score|rating|reward)s?")


def pair_of_texts(
    row: Row, prompt: Conversation, chosen: str, rejected: str, *, note: str = ""
) -> RowItem:
    """Return the pair, with the scores or the margin that `row` has for it."""
    if chosen == rejected:
        return Skipped(what="row", reason=_SAME)
    scores, problem = _scores(row)
    if problem:
        note = f"{note}; {problem}" if note else problem
    return ComparedPair(prompt=prompt, better=chosen, worse=rejected, scores=scores, note=note)


def pair_of_conversations(row: Row, chosen: Conversation, rejected: Conversation) -> RowItem:
    """Return the pair of the last turns; the common turns before them are the prompt."""
    num_common = num_common_turns(chosen, rejected)
    if chosen == rejected:
        return Skipped(what="row", reason=_SAME)
    if not num_common:
        refuse("chosen", "has no turn in common with rejected, so there is no prompt")
    ends = (chosen[num_common:], rejected[num_common:])
    if any(len(turns) != 1 or turns[0].role != "assistant" for turns in ends):
        return Skipped(what="row", reason=DIVERGED)
    return pair_of_texts(row, chosen[:num_common], ends[0][0].content, ends[1][0].content)


def _scores(row: Row) -> tuple[tuple[float, float] | None, str]:
    """Return the scores of (chosen, rejected), and why they are not used if they are not.

    The first of several pairs of columns is used. A margin gives the scores `margin` and 0.
    """
    pairs = [
        (number_field(row, chosen), number_field(row, rejected))
        for chosen, rejected in _score_columns(row)
    ]
    if not pairs and row.has("margin"):
        pairs = [(number_field(row, "margin"), 0.0)]
    if not pairs:
        return None, ""
    if not pairs[0][0] > pairs[0][1]:
        return None, _SCORES_DROPPED
    if any(chosen < rejected for chosen, rejected in pairs):
        return None, _SCORES_DIFFER
    return pairs[0], ""


def _score_columns(row: Row) -> Iterator[tuple[str, str]]:
    for chosen in row:
        rest = re.sub(r"[^a-z]", "", chosen.lower().replace("chosen", "", 1))
        rejected = chosen.replace("chosen", "rejected", 1)
        if (
            rejected != chosen
            and _SCORE_NAME.fullmatch(rest)
            and row.has(chosen)
            and row.has(rejected)
        ):
            yield chosen, rejected
