"""HelpSteer: scored responses, and preferences with a strength.

- helpsteer2, `{"prompt", "response", "helpfulness", "correctness", "coherence", "complexity",
  "verbosity"}`, one response per row. The rows of a prompt make a ranking by `helpfulness` or
  --score-column (https://huggingface.co/datasets/nvidia/HelpSteer2; Wang et al. 2024,
  arXiv:2406.08673). HelpSteer has the same columns.
- helpsteer-preference, `{"prompt", "response_1", "response_2", "preference_strength", …}`; the
  strength is an integer from -3 (the first is much better) to 3 (the second is), 0 is a tie (same
  data set; Wang et al. 2024, arXiv:2410.01257). HelpSteer3 has `{"context": messages, "response1",
  "response2", "overall_preference", …}` (https://huggingface.co/datasets/nvidia/HelpSteer3; Wang
  et al. 2025, arXiv:2505.11475). The strength becomes the scores |strength| and 0.
"""

from collections.abc import Iterator

from kwise.train.data.rows.fields import number_field, refuse, required, string_field
from kwise.train.data.rows.items import (
    ComparedPair,
    ReadOptions,
    RowItem,
    ScoredResponse,
    Skipped,
)
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.scored_list import NO_SCORE, score_at_path
from kwise.train.data.rows.shapes import prompt_field
from kwise.train.data.rows.transcript import parse_nemo
from kwise.types import Conversation

_MAX_STRENGTH = 3


def read_helpsteer2(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the response of a row with its score."""
    if (score := score_at_path(row, options.score_column or "helpfulness")) is None:
        yield NO_SCORE
    else:
        yield ScoredResponse(
            prompt=_prompt(row),
            response=string_field(row, "response"),
            score=score,
        )


def read_helpsteer_preference(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    if "context" in row:
        prompt = prompt_field(row, "context")
        keys, strength_key = ("response1", "response2"), "overall_preference"
    else:
        prompt = _prompt(row)
        keys, strength_key = ("response_1", "response_2"), "preference_strength"
    first, second = (string_field(row, key) for key in keys)
    strength = number_field(row, strength_key)
    if abs(strength) > _MAX_STRENGTH or strength != int(strength):
        refuse(strength_key, f"must be an integer from -{_MAX_STRENGTH} to {_MAX_STRENGTH}")
    better, worse = (second, first) if strength > 0 else (first, second)
    if first == second:
        yield Skipped(what="row", reason="both responses are the same")
    elif strength:
        yield ComparedPair(prompt=prompt, better=better, worse=worse, scores=(abs(strength), 0))
    else:
        yield ComparedPair(prompt=prompt, better=better, worse=worse, tied=True)


def _prompt(row: Row) -> Conversation:
    prompt = required(row, "prompt")
    return parse_nemo(prompt) if isinstance(prompt, str) else prompt_field(row, "prompt")
