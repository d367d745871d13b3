"""Rankings: K responses to one prompt, ordered by preference. The schema of the training data, its reader and its split.

One JSON object a line (JSON Lines, UTF-8, gzipped or not, which the content tells and not the name):

    {"prompt": "Why is the sky blue?",
     "responses": [{"text": "Air scatters blue light more than red.", "rank": 1},
                   {"text": "It reflects the oceans.", "rank": 2},
                   {"text": "It is painted.", "rank": 2}]}

- `prompt`: a text, or messages `[{"role": "system", "content": …}, {"role": "user", "content": …}]`. The last one may be of any
  role that the chat template takes but the assistant's, for the response is the assistant's turn.
- `responses`: at least two. Each has a `rank` (1 is the best; equal ranks are a tie; gaps mean nothing), or each has a
  `score` (a finite number, higher is better), of which objectives use the order alone unless they are asked for more. A text may
  occur twice with equal ranks, a tie; with different ones the ranking contradicts itself and is an error.
- `id`, `source` and `metadata` are allowed on the ranking and on each response, and ignored. Every other key is an error:
  a misspelt or unsupported key must not train a model silently.

Standard library only, so that tools which only look at data start at once.
"""

import gzip
import hashlib
import io
import json
import math
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kwise.types import Conversation, Message

MAX_PROBLEMS = 20
"""So many bad lines are told at once: enough to see the pattern, few enough to read."""

_IGNORED_KEYS = frozenset({"id", "source", "metadata"})


class RankingsError(ValueError):
    """The data is not usable. One line per problem, "FILE:LINE: field: problem", never with the texts themselves."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """K responses to one prompt; `ranks[i]` is the rank of `responses[i]`, dense from 1 (the best), ties equal. `scores`: where
    the ranks come from scores, higher better.

    `origin` ("FILE:LINE") is for messages and is no part of the ranking's identity.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    origin: str = field(default="", compare=False)

    def conversations(self) -> list[Conversation]:
        """The K conversations, each the prompt and one response."""
        return [(*self.prompt, Message(role="assistant", content=text)) for text in self.responses]

    def num_pairs(self) -> int:
        """How many of the C(K,2) pairs have a preferred side."""
        return sum(self.ranks[i] != self.ranks[j] for i in range(len(self.ranks)) for j in range(i))


def read_rankings(path: str | Path, *, allow_tied: bool = False) -> list[Ranking]:
    """The rankings of a JSON Lines file, gzipped or not, or of standard input (`-`). Blank lines are skipped.

    allow_tied: whether a ranking may be one tie throughout, which says something to objectives that learn from ties alone.

    Raises:
        RankingsError: up to `MAX_PROBLEMS` bad lines, one problem of each; or there is no ranking.
        OSError: the file cannot be read.
    """
    name = display_name(str(path))
    rankings: list[Ranking] = []
    problems: list[str] = []
    try:
        for checked in read_checked(str(path), allow_tied=allow_tied):
            if isinstance(checked, Ranking):
                rankings.append(checked)
            elif len(problems) == MAX_PROBLEMS:
                problems.append(f"{name}: stopped after {MAX_PROBLEMS} problems; there are more")
                break
            else:
                problems.append(checked)
    except RankingsError as error:
        problems += error.problems
    if not rankings and not problems:
        problems.append(f"{name}: no rankings")
    if problems:
        raise RankingsError(problems)
    return rankings


def read_checked(path: str, *, allow_tied: bool) -> Iterator[Ranking | str]:
    """Each line's ranking, or its problem as "FILE:LINE: field: problem"; one line in memory at a time.

    Raises:
        RankingsError: the file is not a whole gzip file.
        OSError: the file cannot be read.
    """
    name = display_name(path)
    with open_plain(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse_ranking(line, origin=f"{name}:{number}", allow_tied=allow_tied)
            except RankingsError as error:
                yield error.problems[0]


def parse_ranking(line: bytes, *, origin: str, allow_tied: bool = False) -> Ranking:
    """The ranking that one line describes; `allow_tied` as in `read_rankings`.

    Raises:
        RankingsError: its first problem, as "ORIGIN: field: problem".
    """
    try:
        return _ranking(parse_json(line), origin, allow_tied)
    except JsonError as error:
        raise RankingsError([f"{origin}: line: {error}"]) from None
    except _Problem as problem:
        raise RankingsError([f"{origin}: {problem}"]) from None


def split_by_prompt(
    rankings: Sequence[Ranking], fraction: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """(training, validation), each in the given order.

    Rankings of one prompt stay on one side: a model that has trained on a prompt knows more about its other responses
    than about the world. Distinct prompts are ordered by a hash of their content and the seed, and the first
    round(fraction · n) of them, at least 1 and at most n − 1, are the validation side: the split depends neither on the
    order of the file nor on the machine. A fraction of 0 leaves all for training.

    Raises:
        RankingsError: a fraction above 0 and fewer than two distinct prompts.
    """
    if fraction == 0:
        return list(rankings), []
    prompts = sorted(
        {ranking.prompt for ranking in rankings}, key=lambda prompt: _prompt_hash(prompt, seed)
    )
    if len(prompts) < 2:
        raise RankingsError(
            [f"a validation split needs at least 2 distinct prompts; there is {len(prompts)}"]
        )
    held_out = set(prompts[: min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)])
    training = [ranking for ranking in rankings if ranking.prompt not in held_out]
    validation = [ranking for ranking in rankings if ranking.prompt in held_out]
    return training, validation


def _prompt_hash(prompt: Conversation, seed: int) -> bytes:
    turns = [[message.role, message.content] for message in prompt]
    return hashlib.sha256(json.dumps([seed, turns]).encode()).digest()


def display_name(path: str) -> str:
    return "<stdin>" if path == "-" else path


@contextmanager
def open_plain(path: str) -> Iterator["io.BufferedReader[Any]"]:
    """The bytes of `path`, or of standard input (`-`), unpacked where they begin as gzip does, whatever the name.

    Raises:
        RankingsError: a gzip file that is damaged or cut short, met while reading.
        OSError: the file cannot be read.
    """
    raw = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115 - closed below, but standard input is not
    try:
        buffered: io.BufferedReader[Any] = (
            raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
        )
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            buffered = io.BufferedReader(gzip.GzipFile(fileobj=buffered))
        yield buffered
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RankingsError([f"{display_name(path)}: not a complete gzip file ({error})"]) from None
    finally:
        if path != "-":
            raw.close()


class JsonError(ValueError):
    """Why bytes are not JSON, in words for people."""


def parse_json(content: bytes) -> Any:
    """The value that `content`, UTF-8, is.

    Raises:
        JsonError: it is none, or none that Python can hold.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise JsonError(
            "not JSON that can be read: too deep, or a number of thousands of digits"
        ) from None


def kind(value: Any) -> str:
    """JSON's name for the type of `value`; Python's where JSON has none, as for dates from Parquet."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), "null" if value is None else type(value).__name__)


class _Problem(Exception):
    """`field: problem` of the line at hand; `parse_ranking` adds where the line is."""


def _refuse(field_name: str, problem: str) -> NoReturn:
    raise _Problem(f"{field_name}: {problem}")


def _ranking(value: Any, origin: str, allow_tied: bool) -> Ranking:
    _check_object(value, "ranking", required=("prompt", "responses"))
    prompt = _prompt(value["prompt"])
    responses = value["responses"]
    if not isinstance(responses, list):
        _refuse("responses", f"must be a list, not {kind(responses)}")
    if len(responses) < 2:
        _refuse("responses", f"has {len(responses)}; a ranking needs at least 2")
    texts, judgements = [], []
    for index, response in enumerate(responses):
        at = f"responses[{index}]"
        _check_object(response, at, required=("text",), optional=("rank", "score"))
        texts.append(_text(response["text"], f"{at}.text"))
        if ("rank" in response) == ("score" in response):
            _refuse(at, "must have a rank or a score, and not both")
        if ("rank" in response) != ("rank" in responses[0]):
            _refuse(at, "ranks and scores are mixed in one ranking")
        judgements.append(
            _rank(response["rank"], at) if "rank" in response else -_score(response["score"], at)
        )
    order = sorted(set(judgements))
    if len(order) == 1 and not allow_tied:
        _refuse(
            "responses",
            f"all {len(responses)} are tied: there is no pair to learn from; --ties does, kwise data convert leaves it out",
        )
    _check_twins(texts, judgements)
    place = {judgement: rank for rank, judgement in enumerate(order, start=1)}
    scores = tuple(-judgement for judgement in judgements) if "score" in responses[0] else None
    ranks = tuple(place[judgement] for judgement in judgements)
    return Ranking(prompt=prompt, responses=tuple(texts), ranks=ranks, scores=scores, origin=origin)


def _check_twins(texts: Sequence[str], judgements: Sequence[float]) -> None:
    """Refuse one text with two ranks: its pairs would pull the same reward both ways."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        twin = first.setdefault(text, index)
        if judgements[twin] != judgements[index]:
            _refuse(
                "responses",
                f"[{twin}] and [{index}] are the same text with different ranks; the ranking contradicts itself",
            )


def _prompt(value: Any) -> Conversation:
    if isinstance(value, str):
        return (Message(role="user", content=_text(value, "prompt")),)
    if not isinstance(value, list) or not value:
        _refuse("prompt", "must be a text or a list of messages, and not empty")
    messages = []
    for index, message in enumerate(value):
        at = f"prompt[{index}]"
        _check_object(message, at, required=("role", "content"), ignored=())
        role, content = (
            _text(message["role"], f"{at}.role"),
            _text(message["content"], f"{at}.content"),
        )
        if not role:
            _refuse(f"{at}.role", "must not be empty")
        messages.append(Message(role=role, content=content))
    if messages[-1].role == "assistant":
        at = f"prompt[{len(messages) - 1}].role"
        _refuse(
            at, "the last message must not be the assistant's: the response is the assistant's turn"
        )
    return tuple(messages)


def _check_object(
    value: Any,
    at: str,
    *,
    required: Iterable[str],
    optional: Iterable[str] = (),
    ignored: Iterable[str] = _IGNORED_KEYS,
) -> None:
    if not isinstance(value, dict):
        _refuse(at, f"must be an object, not {kind(value)}")
    required, known = set(required), {*required, *optional}
    if missing := sorted(required - value.keys()):
        _refuse(at, f"has no {missing[0]!r}")
    if unknown := sorted(value.keys() - known - set(ignored)):
        _refuse(
            at,
            f"unknown key {unknown[0][:40]!a}; known are {', '.join(sorted({*known, *ignored}))}",
        )


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        _refuse(at, f"must be a text, not {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        _refuse(at, f"has half of a surrogate pair at character {error.start}")
    return value


def _rank(value: Any, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse(f"{at}.rank", "must be a whole number from 1 (the best) on")
    return value


_MAX_SCORE = (2 - 2**-23) * 2.0**127  # of float32, in which training has them


def _score(value: Any, at: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(f"{at}.score", f"must be a number, not {kind(value)}")
    try:
        score = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        score = math.inf
    if not abs(score) <= _MAX_SCORE:
        _refuse(
            f"{at}.score", f"must be finite in float32, from -{_MAX_SCORE:.6e} to {_MAX_SCORE:.6e}"
        )
    return score
