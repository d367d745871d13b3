"""UltraFeedback: an instruction and completions with scores.

    {"instruction", "completions": [{"response", "overall_score", "annotations": {…}, …}]}

The score is `overall_score`, or another one of the completion by --score-column, such as
annotations.helpfulness.Rating. Completions were sampled with various system prompts
(`custom_system_prompt`). The annotator did not judge these, so they are not read, as in other
data sets made from it.

https://huggingface.co/datasets/openbmb/UltraFeedback; Cui et al. 2023, arXiv:2310.01377
"""

from collections.abc import Iterator

from kwise.train.data.rows.fields import string_field, user_prompt
from kwise.train.data.rows.items import ReadOptions, Row, RowItem
from kwise.train.data.rows.scored_list import read_scored_list


def read_ultrafeedback(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of the completions that have a score."""
    prompt = user_prompt(string_field(row, "instruction"))
    score_column = options.score_column or "overall_score"
    yield from read_scored_list(row, prompt, "completions", "response", score_column)
