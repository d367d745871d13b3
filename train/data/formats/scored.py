"""Formats that score each response.

- ultrafeedback, `{"instruction", "completions": [{"response", "overall_score", "fine-grained_score", …}]}`; the score is
  `overall_score` or another of the completion by --score-column, as `annotations.helpfulness.Rating`. Completions were sampled
  under various system prompts (`custom_system_prompt`), which the annotator did not judge and which are left out here, as in the
  datasets made from it (https://huggingface.co/datasets/openbmb/UltraFeedback; Cui et al. 2023, arXiv:2310.01377).
- helpsteer2, rows `{"prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"}`, of which those
  of one prompt make a ranking by `helpfulness` or --score-column (https://huggingface.co/datasets/nvidia/HelpSteer2;
  Wang et al. 2024, arXiv:2406.08673). HelpSteer has the same columns.
- stack-exchange, `{"question", "answers": [{"text", "pm_score", "selected", …}]}`: `pm_score` is the score of `vote_score`,
  accepted answer included (https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences). Texts are HTML and
  stay so.
- stack-exchange-api, a question `{"title", "body", "answers": [{"body", "score", "is_accepted"}]}` of the Stack Exchange API,
  `body_markdown` before `body` where there is one (https://api.stackexchange.com/docs/types/answer).

A response without a score is left out and counted.
"""

import math
from collections.abc import Iterator

from kwise.train.data.formats.fields import as_number, nested, number, records, required, text, user
from kwise.train.data.formats.items import Item, Left, Ranked, Rated, ReadOptions, Row
from kwise.train.data.formats.transcript import parse_nemo
from kwise.types import Conversation

_NO_SCORE = (None, "N/A", "")  # UltraFeedback has "N/A"


def read_ultrafeedback(row: Row, options: ReadOptions) -> Iterator[Item]:
    column = options.score_column or "overall_score"
    yield from _scored(row, user(text(row, "instruction")), "completions", "response", column)


def read_stack_exchange(row: Row, options: ReadOptions) -> Iterator[Item]:
    yield from _scored(
        row, user(text(row, "question")), "answers", "text", options.score_column or "pm_score"
    )


def read_helpsteer2(row: Row, options: ReadOptions) -> Iterator[Item]:
    if (score := _score(row, options.score_column or "helpfulness")) is None:
        yield Left(what="response", reason="no score")
    else:
        yield Rated(
            prompt=parse_nemo(text(row, "prompt")), response=text(row, "response"), score=score
        )


def read_stack_exchange_api(row: Row, _: ReadOptions) -> Iterator[Item]:
    prompt = user(f"{text(row, 'title')}\n\n{_body(row, '')}")
    answers = records(required(row, "answers"), "answers")
    at = [f"answers[{index}]" for index in range(len(answers))]
    yield Ranked(
        prompt=prompt,
        responses=tuple(_body(answer, here) for answer, here in zip(answers, at, strict=True)),
        scores=tuple(
            vote_score(number(answer, "score", here), bool(required(answer, "is_accepted", here)))
            for answer, here in zip(answers, at, strict=True)
        ),
    )


def vote_score(votes: float, accepted: bool) -> int:
    """log₂(1 + votes) to the nearest whole number, and 1 more for the accepted answer; −1 for fewer than no votes.

    Askell et al. 2021, arXiv:2112.00861, appendix C.1, whose logarithm keeps a famous question's answers from being worlds
    apart; used for StackLLaMA too. Whether an accepted answer below zero is 0 or −1 the paper leaves open; here it is −1.
    """
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def _body(post: Row, at: str) -> str:
    return text(post, "body_markdown" if post.get("body_markdown") is not None else "body", at)


def _score(judged: Row, column: str, at: str = "") -> float | None:
    value, where = nested(judged, column, at)
    return None if value in _NO_SCORE else as_number(value, where)


def _scored(
    row: Row, prompt: Conversation, list_key: str, text_key: str, column: str
) -> Iterator[Item]:
    """The ranking of the responses that have a score."""
    responses, scores = [], []
    for index, answer in enumerate(records(required(row, list_key), list_key)):
        at = f"{list_key}[{index}]"
        if (score := _score(answer, column, at)) is None:
            yield Left(what="response", reason="no score")
            continue
        responses.append(text(answer, text_key, at))
        scores.append(score)
    yield Ranked(prompt=prompt, responses=tuple(responses), scores=tuple(scores))
