"""Which replica gets a prompt."""

from collections import Counter

import pytest

from kwise.cluster.service.replica_order import prompt_key, replicas_for
from kwise.rendezvous import ranked
from kwise.types import Group, Message, TemplatedText

NAMES = [f"replica-{number}" for number in range(5)]


def group(prompt: str, response: str = "r") -> Group:
    return Group(prompt=(Message(role="user", content=prompt),), responses=(response,))


def test_a_prompt_keeps_its_replica_whatever_the_response_and_the_order_of_the_replicas() -> None:
    for number in range(100):
        first = replicas_for("m", group(f"p{number}", "a"), NAMES, 0)
        assert first == replicas_for("m", group(f"p{number}", "b"), NAMES[::-1], 0)
        assert sorted(first) == sorted(NAMES)


def test_prompts_are_spread_evenly() -> None:
    shares = Counter(replicas_for("m", group(f"p{n}"), NAMES, 0)[0] for n in range(5000))
    assert all(900 < shares[name] < 1100 for name in NAMES), shares


@pytest.mark.parametrize("gone", NAMES)
def test_only_the_prompts_of_a_replica_that_dies_move(gone: str) -> None:
    left = [name for name in NAMES if name != gone]
    for number in range(300):
        before = replicas_for("m", group(f"p{number}"), NAMES, 0)
        after = replicas_for("m", group(f"p{number}"), left, 0)
        assert after == [name for name in before if name != gone]


def test_the_prompts_of_a_model_stay_on_its_replicas_and_the_others_follow() -> None:
    firsts = {replicas_for("m", group(f"p{n}"), NAMES, 2)[0] for n in range(200)}
    assert len(firsts) == 2
    order = replicas_for("m", group("p"), NAMES, 2)
    assert set(order[:2]) == firsts and sorted(order) == sorted(NAMES)
    assert {replicas_for(f"m{n}", group("p"), NAMES, 1)[0] for n in range(200)} == set(NAMES)


def test_a_templated_text_without_a_prompt_is_spread_by_its_responses() -> None:
    keys = {
        prompt_key("m", Group(prompt=TemplatedText(text=""), responses=(f"whole {n}",)))
        for n in range(10)
    }
    assert len(keys) == 10


def test_any_text_has_a_key() -> None:
    assert prompt_key("m", group("\ud800 \x00 é")) != prompt_key("m", group("\ud801 \x00 é"))


def test_the_ranking_is_the_same_in_every_process() -> None:
    """Python's own hash() is not, so this is a fixed value."""
    assert ranked(b"key", ["a", "b", "c", "d"]) == ["a", "d", "c", "b"]
