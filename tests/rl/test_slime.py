"""The reward function for slime, against the calls that slime makes. slime is not on PyPI."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kwise.client import RewardClient
from kwise.rl.slime import RewardFunction, reward
from kwise.types import TemplatedText
from tests.rl.rollouts import TOLERANCE, Messages, SlimeSample
from tests.servers import Server

PROMPT: Messages = [{"role": "user", "content": "Name a prime number."}]
TEMPLATED = SimpleNamespace(apply_chat_template=True)
NOT_TEMPLATED = SimpleNamespace(apply_chat_template=False)


@pytest.fixture
def values(tiny_server: Server) -> Callable[..., Any]:
    """A function that returns the rewards of a prompt's responses."""

    def of(prompt: Any, *responses: str) -> Any:
        with RewardClient(tiny_server.address) as client:
            return pytest.approx(list(client.score(prompt, responses).values), abs=TOLERANCE)

    return of


def call(function: Any, args: Any, sample: Any) -> Any:
    """Call a reward function as slime does."""
    return asyncio.run(function(args, sample))


def test_a_group_is_one_request_and_a_sample_is_a_number(
    monkeypatch: pytest.MonkeyPatch,
    tiny_server: Server,
    smollm2_tokenizer: Any,
    values: Callable[..., Any],
) -> None:
    monkeypatch.setenv("KWISE_ADDRESS", tiny_server.address)
    text = smollm2_tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, tokenize=False)
    group = [SlimeSample(text, f"{number}<|im_end|>") for number in (2, 3, 4)]
    expected = values(PROMPT, "2", "3", "4")
    # With --group-rm, and without it.
    assert call(reward, TEMPLATED, group) == expected
    assert [call(reward, TEMPLATED, sample) for sample in group] == expected
    assert call(reward, TEMPLATED, []) == []


def test_messages_are_a_conversation_and_a_text_without_template_is_a_users(
    tiny_server: Server, values: Callable[..., Any]
) -> None:
    """A prompt may be a list of messages even with --apply-chat-template."""
    function = RewardFunction(tiny_server.address)
    expected = values(PROMPT, "7")
    for args in (TEMPLATED, NOT_TEMPLATED):
        assert [call(function, args, SlimeSample(PROMPT, "7"))] == expected
    sample = SlimeSample("Name a prime number.", "7")
    assert [call(function, NOT_TEMPLATED, sample)] == expected
    assert [call(function, TEMPLATED, sample)] == values(
        TemplatedText(text="Name a prime number."), "7"
    )


def test_a_list_of_samples_in_a_group_is_refused(tiny_server: Server) -> None:
    """slime would set one reward for all of them."""
    function = RewardFunction(tiny_server.address)
    nested = [[SlimeSample(PROMPT, "7"), SlimeSample(PROMPT, "11")]]
    with pytest.raises(TypeError, match=r"samples\[0\] is a list of samples"):
        call(function, NOT_TEMPLATED, nested)


def test_an_end_token_in_an_answer_is_refused_where_the_template_is_not_applied(
    tiny_server: Server, values: Callable[..., Any]
) -> None:
    function = RewardFunction(tiny_server.address)
    keeps = {"rollout_skip_special_tokens": False}
    for args, prompt in ((NOT_TEMPLATED, "Name a prime."), (TEMPLATED, PROMPT)):
        with pytest.raises(ValueError, match="without --rollout-skip-special-tokens a response"):
            call(function, SimpleNamespace(**vars(args), **keeps), [SlimeSample(prompt, "7")])
    text = "<|im_start|>user\nName a prime.<|im_end|>\n<|im_start|>assistant\n"
    args = SimpleNamespace(**vars(TEMPLATED), **keeps)
    assert call(function, args, [SlimeSample(text, "7<|im_end|>")]) == values(
        TemplatedText(text=text), "7"
    )
