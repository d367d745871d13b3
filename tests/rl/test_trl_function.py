"""The reward function for TRL by itself, called as TRL calls it; needs no TRL."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from kwise.rl import areal, slime, verifiers
from kwise.rl.result import NotScored
from kwise.rl.trl import RewardFunction, reward, reward_or_none
from kwise.types import TemplatedText
from tests.servers import Server, running_server

USER = {"role": "user", "content": "Name a fruit."}
CALL = {"role": "assistant", "content": "Let me look."}
RESULT = {"role": "tool", "content": "apple"}
ANSWER = {"role": "assistant", "content": "An apple."}


def called(function: Any, prompts: Any, completions: Any, **columns: Any) -> Any:
    """Call as GRPOTrainer does: by keyword, with columns that the function does not know."""
    return function(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1]] * len(prompts),
        trainer_state=object(),
        answer=["x"] * len(prompts),
        **columns,
    )


def test_messages_before_the_last_one_are_its_context(tiny_server: Server) -> None:
    (value,) = called(RewardFunction(tiny_server.address), [[USER]], [[CALL, RESULT, ANSWER]])
    with RewardClient(tiny_server.address) as client:
        assert (value,) == client.score([USER, CALL, RESULT], ["An apple."]).values


@pytest.mark.parametrize("form", ["templated", "user"])
def test_plain_prompts_are_read_as_the_option_says(form: Any, tiny_server: Server) -> None:
    function = RewardFunction(tiny_server.address, plain_prompts=form)
    (value,) = called(function, ["Name a fruit."], ["An apple."])
    prompt: Any = "Name a fruit." if form == "user" else TemplatedText(text="Name a fruit.")
    with RewardClient(tiny_server.address) as client:
        assert (value,) == client.score(prompt, ["An apple."]).values


@pytest.mark.parametrize(
    ("completion", "columns", "message"),
    [
        ([ANSWER, RESULT], {}, r"last message of completions\[0\] is not the assistant's"),
        ([], {}, "is not the assistant's"),
        ([{**ANSWER, "tool_calls": [{"name": "f"}]}], {}, "has 'tool_calls'"),
        ([{**CALL, "tool_calls": [{"name": "f"}]}, RESULT, ANSWER], {}, "has 'tool_calls'"),
        ([{**ANSWER, "reasoning_content": "hm"}], {}, "has 'reasoning_content'"),
        ([ANSWER], {"images": [["a picture"]]}, "column 'images' has images"),
    ],
)
def test_what_the_model_cannot_read_is_refused_by_name(
    completion: Any, columns: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        called(RewardFunction("localhost:1"), [[USER]], [completion], **columns)


@pytest.mark.parametrize(
    ("prompts", "completions", "error", "message"),
    [
        (["p"], [[ANSWER]], ValueError, r"prompts\[0\] is a string and completions\[0\] is a list"),
        (["p"], ["a", "b"], ValueError, "1 prompts and 2 completions; give each"),
        (["p"], [b"a"], TypeError, r"completions\[0\] must be a string or a list of .* not bytes"),
        (["p"], [None], TypeError, r"completions\[0\] must be a string or .* not NoneType"),
        (["p"], "a", TypeError, "prompts and completions must be lists"),
        ("p", ["a"], TypeError, "prompts and completions must be lists"),
        ([[1]], [[2, 3]], TypeError, r"completions\[0\] must be .*; its last item is of type int"),
        ([[USER]], [["a"]], TypeError, r"its last item is of type str"),
        ([None], [[ANSWER]], TypeError, r"prompts\[0\] must be a string or .* not NoneType"),
        ([USER], [[ANSWER]], TypeError, r"prompts\[0\] must be a string or .* not dict"),
    ],
)
def test_a_wrong_form_is_named(
    prompts: Any, completions: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        called(RewardFunction("localhost:1"), prompts, completions)


@pytest.mark.parametrize("library", [areal, slime, verifiers])
def test_the_other_libraries_have_no_reward_that_is_missing(library: Any) -> None:
    with pytest.raises(TypeError, match="on_error is for TRL only"):
        library.RewardFunction(on_error="none")


def test_empty_columns_and_calls_say_nothing(tiny_server: Server) -> None:
    completion = [{**ANSWER, "tool_calls": None}]
    values = called(RewardFunction(tiny_server.address), [[USER]], [completion], images=[None])
    assert len(values) == 1


def test_errors_and_metrics_go_to_the_trainers_log(
    tiny_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KWISE_ADDRESS", tiny_server.address)
    metrics: dict[str, float] = {}
    extra: dict[str, list[str]] = {}
    arguments: Any = (["p", "p"], ["fine", "word " * 3000])
    with pytest.raises(NotScored, match="1 of 2"):
        called(reward, *arguments)
    rewards = called(
        reward_or_none, *arguments, log_metric=metrics.__setitem__, log_extra=extra.__setitem__
    )
    assert [value is None for value in rewards] == [False, True]
    assert metrics["kwise/num_errors"] == 1
    assert extra["kwise_error"][0] == ""
    assert "limit is 2048" in extra["kwise_error"][1]
    # TRL keeps the column of an earlier call beside the completions of a later one.
    called(reward_or_none, ["p"], ["fine"], log_extra=extra.__setitem__)
    assert extra["kwise_error"] == [""]


def test_the_deviations_of_members_go_to_the_trainers_log(members_artifact: Path) -> None:
    extra: dict[str, list[Any]] = {}
    with running_server(members_artifact) as server:
        function = RewardFunction(server.address, on_error="none")
        arguments: Any = (["p", "p"], ["fine", "word " * 400])
        called(function, *arguments, log_extra=extra.__setitem__)
        assert extra["kwise_std"][0] > 0 and extra["kwise_std"][1] is None
        # TRL keeps the column of an earlier call beside the completions of a later one.
        called(function, ["p"], ["word " * 400], log_extra=extra.__setitem__)
        assert extra["kwise_std"] == [None]


def in_child(pickled: bytes) -> Any:
    return called(pickle.loads(pickled), [[USER]], [[ANSWER]])


def test_the_function_survives_pickling_into_a_spawned_process(tiny_server: Server) -> None:
    function = RewardFunction(tiny_server.address)
    values = called(function, [[USER]], [[ANSWER]])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(in_child, (pickle.dumps(function),)) == values


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ValueError, match="plain_prompts"):
        RewardFunction(plain_prompts="raw")  # type: ignore[arg-type]


def test_a_message_without_text_is_named(tiny_server: Server) -> None:
    for message in ({"role": "assistant"}, {"role": "assistant", "content": [{"type": "text"}]}):
        with pytest.raises(TypeError, match=r"completions\[0\] has no text as its content"):
            called(RewardFunction(tiny_server.address), [[USER]], [[message]])
