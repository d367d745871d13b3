"""UltraFeedback: an instruction and completions with scores.

    {"instruction", "completions": [{"response", "overall_score", "fine-grained_score",
                                     "annotations": {…}, …}]}

The score is `overall_score`, or another one of the completion by --score-column, such as
annotations.helpfulness.Rating. The overall score of some completions is 10 where the critique gave
1 (https://github.com/OpenBMB/UltraFeedback/issues/8). The fine-grained score, which is the mean of
the ratings from 1 to 5, shows it, or these ratings do. Such completions are skipped. Completions
were sampled with various system prompts (`custom_system_prompt`). The annotator did not judge
these, so they are not read, as in other data sets made from it.

https://huggingface.co/datasets/openbmb/UltraFeedback; Cui et al. 2023, arXiv:2310.01377
"""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.rows.fields import as_objects, as_string, required
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem, Skipped
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.scored_list import NO_SCORE, read_scored_list, score_at_path
from kwise.train.data.rows.shapes import prompt_field

_OVERALL, _FINE_GRAINED = "overall_score", "fine-grained_score"
_MAX_OVERALL, _MAX_FINE_GRAINED = 10, 5
_RATINGS = ("1", "2", "3", "4", "5")
_MAX_DIFFERENCE = 0.5
"""Between the two scores as shares of their maximum; 10 and 1.25 differ by 0.75."""


def read_ultrafeedback(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of the completions that have a score."""
    prompt = prompt_field(row, "instruction")
    if options.score_column:
        yield from read_scored_list(row, prompt, "completions", "response", options.score_column)
        return
    responses, scores = [], []
    for index, completion in enumerate(as_objects(required(row, "completions"), "completions")):
        at = f"completions[{index}]"
        response = completion.get("response")
        score = score_at_path(completion, _OVERALL, at)
        if score is None:
            yield NO_SCORE
        elif _is_contradicted(completion, score, at):
            yield Skipped(
                what="response",
                reason=f"{_OVERALL} contradicts {_FINE_GRAINED} or the ratings (--score-column "
                f"{_FINE_GRAINED} ranks by another)",
            )
        else:
            responses.append(as_string(response, f"{at}.response"))
            scores.append(score)
    yield RankedResponses(prompt=prompt, responses=tuple(responses), scores=tuple(scores))


def _is_contradicted(completion: Row, overall: float, at: str) -> bool:
    """Return whether the fine-grained score, or else the mean of the ratings, says otherwise."""
    fine_grained = (
        score_at_path(completion, _FINE_GRAINED, at)
        if completion.has(_FINE_GRAINED)
        else _mean_rating(completion.peek("annotations"))
    )
    if fine_grained is None:
        return False
    difference = overall / _MAX_OVERALL - fine_grained / _MAX_FINE_GRAINED
    return abs(difference) > _MAX_DIFFERENCE


def _mean_rating(annotations: Any) -> float | None:
    """Return the mean of the ratings that are numbers; older files have no fine-grained score."""
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    written = [str(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    ratings = [float(rating) for rating in written if rating in _RATINGS]
    return sum(ratings) / len(ratings) if ratings else None
