"""The schema of a ranking: K responses to one prompt, ordered by preference. One JSON object:

    {"prompt": "Why is the sky blue?",
     "responses": [{"text": "Air scatters blue light more than red.", "rank": 1},
                   {"text": "It reflects the oceans.", "rank": 2},
                   {"text": "It is painted.", "rank": 2}]}

- `prompt`: a string, or messages `[{"role": "user", "content": …}, …]`. The last message may have
  any role of the chat template except the assistant's, because the response is the assistant's.
- `responses`: at least two. Each has a `rank` (1 is the best, equal ranks are a tie, gaps mean
  nothing), or each has a `score` (a finite number, higher is better). Most objectives use only
  the order of scores. A text may occur twice if both have the same rank.
- `id`, `source`, `annotator` and `metadata` are allowed on the ranking and on a response, and
  ignored. Every other key is an error: a misspelt key must not train a model silently.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kwise.roles import standard_role
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.json_value import JsonError, json_type, parse_json
from kwise.types import Conversation, Message

IGNORED_KEYS = frozenset({"id", "source", "annotator", "metadata"})
"""Keys of a ranking or a response that training does not read."""

# Training stores scores as float32.
_MAX_SCORE = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """K responses to one prompt and their ranks.

    ranks: `ranks[i]` belongs to `responses[i]`. Ranks start at 1 (the best) without gaps; tied
        responses have equal ranks.
    scores: the scores from which the ranks were made, higher is better; None if the data has
        ranks.
    origin: "FILE:LINE", for messages. Two rankings with different origins are equal.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    origin: str = field(default="", compare=False)

    def conversations(self) -> list[Conversation]:
        """Return K conversations, each the prompt followed by one response."""
        return [(*self.prompt, Message(role="assistant", content=text)) for text in self.responses]

    def num_pairs(self) -> int:
        """Return the number of the C(K,2) pairs that are not tied."""
        return sum(self.ranks[i] != self.ranks[j] for i in range(len(self.ranks)) for j in range(i))


def parse_ranking(line: bytes, *, origin: str, allow_tied: bool = False) -> Ranking:
    """Return the ranking that one line of JSON describes.

    origin: "FILE:LINE", the beginning of the error message.
    allow_tied: accept a ranking whose responses are all tied.

    Raises:
        RankingsError: the first problem of the line, as "ORIGIN: field: problem".
    """
    try:
        value = parse_json(line)
    except JsonError as error:
        raise RankingsError([f"{origin}: line: {error}"]) from None
    return ranking_of(value, origin=origin, allow_tied=allow_tied)


def ranking_of(value: Any, *, origin: str, allow_tied: bool = False) -> Ranking:
    """Return the ranking that a parsed JSON value describes; see `parse_ranking`."""
    try:
        return _ranking(value, origin, allow_tied)
    except _FieldError as error:
        raise RankingsError([f"{origin}: {error}"]) from None


class _FieldError(Exception):
    """A problem of one field, as "field: problem". `parse_ranking` adds the line."""


def _refuse(field_name: str, problem: str) -> NoReturn:
    raise _FieldError(f"{field_name}: {problem}")


def _ranking(value: Any, origin: str, allow_tied: bool) -> Ranking:
    _check_object(value, "ranking", required=("prompt", "responses"))
    prompt = _prompt(value["prompt"])
    responses = value["responses"]
    if not isinstance(responses, list):
        _refuse("responses", f"must be a list, not {json_type(responses)}")
    if len(responses) < 2:
        _refuse("responses", f"has {len(responses)}; a ranking needs at least 2")
    texts = []
    labels = []  # the lower, the better: ranks or negated scores
    for index, response in enumerate(responses):
        at = f"responses[{index}]"
        _check_object(response, at, required=("text",), optional=("rank", "score"))
        texts.append(_string(response["text"], f"{at}.text"))
        if ("rank" in response) == ("score" in response):
            _refuse(at, "must have either a rank or a score")
        if ("rank" in response) != ("rank" in responses[0]):
            _refuse(at, "ranks and scores are mixed in one ranking")
        labels.append(
            _rank(response["rank"], at) if "rank" in response else -_score(response["score"], at)
        )
    distinct_labels = sorted(set(labels))
    if len(distinct_labels) == 1 and not allow_tied:
        _refuse(
            "responses",
            f"all {len(responses)} are tied, so there is no pair to learn from; train with --ties, "
            "or let kwise data convert skip such rankings",
        )
    _check_repeated_texts(texts, labels)
    rank_of = {label: rank for rank, label in enumerate(distinct_labels, start=1)}
    return Ranking(
        prompt=prompt,
        responses=tuple(texts),
        ranks=tuple(rank_of[label] for label in labels),
        scores=tuple(-label for label in labels) if "score" in responses[0] else None,
        origin=origin,
    )


def _check_repeated_texts(texts: Sequence[str], labels: Sequence[float]) -> None:
    """Refuse a text with two ranks: its pairs would pull the same reward both ways."""
    first_index: dict[str, int] = {}
    for index, text in enumerate(texts):
        first = first_index.setdefault(text, index)
        if labels[first] != labels[index]:
            _refuse(
                "responses",
                f"[{first}] and [{index}] are the same text with different ranks; "
                "the ranking contradicts itself",
            )


def _prompt(value: Any) -> Conversation:
    if isinstance(value, str):
        return (Message(role="user", content=_string(value, "prompt")),)
    if not isinstance(value, list) or not value:
        _refuse("prompt", "must be a string or a non-empty list of messages")
    messages = []
    for index, message in enumerate(value):
        at = f"prompt[{index}]"
        _check_object(message, at, required=("role", "content"), ignored=())
        role = _string(message["role"], f"{at}.role")
        content = _string(message["content"], f"{at}.content")
        if not role:
            _refuse(f"{at}.role", "must not be empty")
        if (standard := standard_role(role)) != role:
            _refuse(
                f"{at}.role",
                f"is {role[:40]!a}; write {standard!r}, or let kwise data convert do so",
            )
        messages.append(Message(role=role, content=content))
    if messages[-1].role == "assistant":
        _refuse(
            f"prompt[{len(messages) - 1}].role",
            "the last message must not be the assistant's, because the response is",
        )
    return tuple(messages)


def _check_object(
    value: Any,
    at: str,
    *,
    required: Iterable[str],
    optional: Iterable[str] = (),
    ignored: Iterable[str] = IGNORED_KEYS,
) -> None:
    if not isinstance(value, dict):
        _refuse(at, f"must be an object, not {json_type(value)}")
    required, known = set(required), {*required, *optional}
    if missing := sorted(required - value.keys()):
        _refuse(at, f"has no {missing[0]!r}")
    if unknown := sorted(value.keys() - known - set(ignored)):
        known_keys = ", ".join(sorted({*known, *ignored}))
        _refuse(at, f"unknown key {unknown[0][:40]!a}; known keys are {known_keys}")


def _string(value: Any, at: str) -> str:
    if not isinstance(value, str):
        _refuse(at, f"must be a string, not {json_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        _refuse(at, f"has half of a surrogate pair at character {error.start}")
    return value


def _rank(value: Any, at: str) -> int:
    # JSON writers that store numbers as floats write the rank 1 as 1.0.
    is_integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_integer or isinstance(value, bool) or value < 1:
        _refuse(f"{at}.rank", "must be an integer of at least 1 (1 is the best)")
    return int(value)


def _score(value: Any, at: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(f"{at}.score", f"must be a number, not {json_type(value)}")
    try:
        score = float(value)
    except OverflowError:  # an integer of hundreds of digits
        score = math.inf
    if not abs(score) <= _MAX_SCORE:
        limits = f"from -{_MAX_SCORE:.6e} to {_MAX_SCORE:.6e}"
        _refuse(f"{at}.score", f"must be finite in float32, {limits}")
    return score
