"""The schema of a ranking: the values that it accepts, and the messages for those it refuses."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking, parse_ranking

GOOD = {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}


def responses(*items: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "p", "responses": list(items)}


def parsed(line: Any) -> Ranking:
    return parse_ranking(json.dumps(line).encode(), origin="data.jsonl:1")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a', "line: not JSON: Unterminated string at column 2"),
        ("{", "line: not JSON"),
        ({"responses": GOOD["responses"]}, "ranking: has no 'prompt'"),
        (responses({"text": "a", "rank": 1}), "responses: has 1; a ranking needs at least 2"),
        (
            responses({"text": "a", "rank": 1}, {"text": "b", "rank": 1}),
            "responses: all 2 are tied",
        ),
        (
            responses({"text": "a", "rank": 1}, {"text": "b", "score": 1}),
            "responses[1]: ranks and scores are mixed",
        ),
        (
            responses({"text": "a", "rank": 1, "score": 2}, {"text": "b", "rank": 2}),
            "responses[0]: must have either a rank or a score",
        ),
        (
            responses({"text": "a"}, {"text": "b", "rank": 2}),
            "responses[0]: must have either a rank or a score",
        ),
        (
            responses({"text": "a", "rank": 0}, {"text": "b", "rank": 2}),
            "responses[0].rank: must be an integer of at least 1",
        ),
        (
            responses({"text": "a", "rank": True}, {"text": "b", "rank": 2}),
            "responses[0].rank: must be an integer of at least 1",
        ),
        (
            responses({"text": 3, "rank": 1}, {"text": "b", "rank": 2}),
            "responses[0].text: must be a string",
        ),
        (
            responses({"text": "\ud800", "rank": 1}, {"text": "b", "rank": 2}),
            "responses[0].text: has half of a surrogate",
        ),
        (
            {**GOOD, "prompt": [{"role": "assistant", "content": "x"}]},
            "prompt[0].role: the last message must not be the assistant",
        ),
        (
            responses({"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "a", "rank": 2}),
            "responses: [0] and [2] are the same text with different ranks",
        ),
        (
            responses({"text": "a", "score": 1}, {"text": "a", "score": 2}),
            "responses: [0] and [1] are the same text",
        ),
        (
            responses({"text": "a", "score": 1}, {"text": "b", "score": math.nan}),
            "responses[1].score: must be finite",
        ),
        (
            responses({"text": "a", "score": 10**400}, {"text": "b", "score": 1}),
            "responses[0].score: must be finite",
        ),
        (
            responses({"text": "a", "score": 1}, {"text": "b", "score": -1e39}),
            "responses[1].score: must be finite in float32",
        ),
        ({**GOOD, "prompt": [{"role": "user"}]}, "prompt[0]: has no 'content'"),
        (
            responses({"text": "a", "rank": 1.5}, {"text": "b", "rank": 2}),
            "responses[0].rank: must be an integer of at least 1",
        ),
        (
            {**GOOD, "prompt": [{"role": "User", "content": "x"}]},
            "prompt[0].role: is 'User'; write 'user', or let kwise data convert do so",
        ),
        (
            {**GOOD, "prompt": [{"role": "human", "content": "x"}]},
            "prompt[0].role: is 'human'; write 'user'",
        ),
        ({**GOOD, "promt": 1}, "ranking: unknown key 'promt'"),
        (
            '{"prompt": "a", "responses": [], "prompt": "b"}',
            "line: an object has the key 'prompt' twi",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_origin_and_field(line: Any, problem: str) -> None:
    content = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(RankingsError) as raised:
        parse_ranking(content.encode(), origin="data.jsonl:2")
    assert str(raised.value).startswith(f"data.jsonl:2: {problem}")


def test_a_rank_may_be_written_as_a_float_and_annotators_may_be_named() -> None:
    items = [{"text": "a", "rank": 2.0, "annotator": "x"}, {"text": "b", "rank": 1.0}]
    ranking = parsed({**responses(*items), "annotator": 3})
    assert ranking.ranks == (2, 1) and all(type(rank) is int for rank in ranking.ranks)


def test_scores_become_ranks_with_the_highest_first_and_ties_kept() -> None:
    items = [{"text": t, "score": s} for t, s in (("a", 0.5), ("b", 2), ("c", 0.5), ("d", -1))]
    assert parsed(responses(*items)).ranks == (2, 1, 2, 3)


def test_a_text_that_occurs_twice_with_equal_ranks_is_a_tie() -> None:
    items = [{"text": text, "rank": rank} for text, rank in (("a", 1), ("b", 2), ("b", 2))]
    ranking = parsed(responses(*items))
    assert ranking.ranks == (1, 2, 2) and ranking.num_pairs() == 2


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_a_prompt_may_end_with_any_role_except_the_assistants(role: str) -> None:
    prompt = [{"role": "user", "content": "2 + 2?"}, {"role": role, "content": "4"}]
    assert parsed({**GOOD, "prompt": prompt}).prompt[-1].role == role


def test_the_schema_needs_the_standard_library_only() -> None:
    program = (
        "import sys; before = set(sys.modules); import kwise.train.rankings.schema; "
        "loaded = {name.split('.')[0] for name in sys.modules.keys() - before}; "
        "print(sorted(loaded - sys.stdlib_module_names - {'kwise'}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "[]\n"
