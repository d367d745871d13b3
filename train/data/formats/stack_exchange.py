"""Questions and answers of Stack Exchange, in three formats. Texts in HTML stay HTML.

- stack-exchange, `{"question", "answers": [{"text", "pm_score", "selected", …}]}`. `pm_score` is
  the score that `vote_score` computes
  (https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences).
- stack-exchange-api, `{"title", "body", "answers": [{"body", "score", "is_accepted"}]}`, of the
  Stack Exchange API; `body_markdown` is preferred to `body`
  (https://api.stackexchange.com/docs/types/answer).
- stack-exchange-paired, `{"question", "response_j", "response_k"}`, j is the better one
  (https://huggingface.co/datasets/lvwerra/stack-exchange-paired).
"""

import math
from collections.abc import Iterator

from kwise.train.data.rows.fields import (
    as_objects,
    number_field,
    required,
    string_field,
    user_prompt,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem
from kwise.train.data.rows.preference_pair import pair_of_texts
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.scored_list import read_scored_list
from kwise.train.data.rows.shapes import prompt_field


def read_stack_exchange(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of the answers by `pm_score` or --score-column."""
    prompt = prompt_field(row, "question")
    score_column = options.score_column or "pm_score"
    yield from read_scored_list(row, prompt, "answers", "text", score_column)


def read_stack_exchange_api(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of the answers by votes."""
    prompt = user_prompt(f"{string_field(row, 'title')}\n\n{_body(row, '')}")
    texts, scores = [], []
    for index, answer in enumerate(as_objects(required(row, "answers"), "answers")):
        at = f"answers[{index}]"
        texts.append(_body(answer, at))
        is_accepted = bool(required(answer, "is_accepted", at))
        scores.append(vote_score(number_field(answer, "score", at), is_accepted))
    yield RankedResponses(prompt=prompt, responses=tuple(texts), scores=tuple(scores))


def read_stack_exchange_paired(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    yield pair_of_texts(
        row,
        prompt_field(row, "question"),
        string_field(row, "response_j"),
        string_field(row, "response_k"),
    )


def vote_score(votes: float, accepted: bool) -> int:
    """Return log₂(1 + votes), rounded, plus 1 for the accepted answer; −1 if votes are negative.

    From Askell et al. 2021, arXiv:2112.00861, appendix C.1; StackLLaMA uses it too. The logarithm
    keeps the answers of a famous question comparable. The paper does not say whether an accepted
    answer with negative votes is 0 or −1; here it is −1.
    """
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def _body(post: Row, at: str) -> str:
    key = "body_markdown" if post.has("body_markdown") else "body"
    return string_field(post, key, at)
