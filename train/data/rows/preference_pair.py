"""A chosen and a rejected response, as texts or as the ends of two conversations.

The label decides the order. Scores that do not put the chosen response above the rejected one
(UltraFeedback has ties) are dropped, and the report counts them.
"""

from kwise.train.data.rows.fields import number_field, refuse
from kwise.train.data.rows.items import ComparedPair, Row, RowItem, Skipped
from kwise.train.data.rows.transcript import num_common_turns
from kwise.types import Conversation

DIVERGED = "the conversations differ before the last turn, and a response is one turn"
_SAME = "chosen and rejected are the same"
_SCORES_DROPPED = "scores do not put chosen above rejected: the label is kept, the scores are not"
_SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


def pair_of_texts(
    row: Row, prompt: Conversation, chosen: str, rejected: str, *, note: str = ""
) -> RowItem:
    """Return the pair, with the scores or the margin that `row` has for it."""
    if chosen == rejected:
        return Skipped(what="row", reason=_SAME)
    scores = _scores(row)
    if scores is not None and not scores[0] > scores[1]:
        scores = None
        note = f"{note}; {_SCORES_DROPPED}" if note else _SCORES_DROPPED
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


def _scores(row: Row) -> tuple[float, float] | None:
    """Return the scores of (chosen, rejected). A margin gives the scores `margin` and 0."""
    for chosen, rejected in _SCORE_COLUMNS:
        if row.get(chosen) is not None and row.get(rejected) is not None:
            return number_field(row, chosen), number_field(row, rejected)
    return (number_field(row, "margin"), 0.0) if row.get("margin") is not None else None
