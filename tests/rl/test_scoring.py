"""The core of kwise.rl against a real server: order, groups, processes, loops, errors, restarts."""

import asyncio
import math
import multiprocessing
import pickle
import random
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from kwise.client import InvalidRequest, RewardClient, RewardServiceError
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.errors import Status
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.rl.result import ModelChanged, NotScored, ScoredResponses
from kwise.rl.scoring import Scoring
from kwise.types import Reward, TemplatedText
from tests.held_model import HeldModel, running_held_server
from tests.length_server import Service, serving
from tests.servers import PATIENCE_S, Server, running_server, wait_until

PROMPTS: list[Any] = [
    "Why is the sky blue?",
    [{"role": "user", "content": "Name a prime number."}],
    TemplatedText(text="<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n"),
]
RESPONSES = ["7", "Apple.", "Light scatters in air.", ""]
EXACT = 1e-4


@pytest.fixture
def scored_alone(tiny_server: Server) -> Iterator[Callable[[Any, Any], float]]:
    """A function that scores one response in a call of its own."""
    with RewardClient(tiny_server.address) as client:

        def reward(prompt: Any, response: Any) -> float:
            (value,) = client.score(prompt, [response]).values
            assert value is not None
            return value

        yield reward


def in_loop(scoring: Scoring, prompts: list[Any], responses: list[Any]) -> ScoredResponses:
    return asyncio.run(scoring.score_async(prompts, responses))


CALLS = pytest.mark.parametrize("call", [Scoring.score, in_loop], ids=["blocking", "asyncio"])


@CALLS
def test_rewards_have_the_order_of_the_responses_wherever_their_prompts_stand(
    call: Any, tiny_server: Server, scored_alone: Callable[[Any, Any], float]
) -> None:
    pairs = [(prompt, response) for prompt in PROMPTS for response in [*RESPONSES, RESPONSES[0]]]
    random.Random(0).shuffle(pairs)
    prompts, responses = map(list, zip(*pairs, strict=True))
    result = call(Scoring(tiny_server.address), prompts, responses)
    expected = [scored_alone(*pair) for pair in pairs]
    assert result.rewards == result.values == pytest.approx(expected, abs=EXACT)
    assert result.statistics.num_prompts == len(PROMPTS)
    assert result.statistics.num_rewards == len(pairs)


@CALLS
def test_token_ids_are_grouped_and_scored(call: Any, tiny_server: Server) -> None:
    prompts, responses = [[1, 2, 3], (1, 2, 3), [4, 5]], [[6], [7, 8], [6]]
    result = call(Scoring(tiny_server.address), prompts, responses)
    with RewardClient(tiny_server.address) as client:
        first, second = client.score([1, 2, 3], [[6], [7, 8]]), client.score([4, 5], [[6]])
    assert result.values == pytest.approx([*first.values, *second.values], abs=EXACT)
    assert result.statistics.num_prompts == 2


@CALLS
def test_a_group_over_the_servers_limit_is_split(
    call: Any, tiny_artifact: Path, scored_alone: Callable[[Any, Any], float]
) -> None:
    responses = [f"Number {number}." for number in range(7)]
    with running_server(tiny_artifact, "--max-responses", "3") as server:
        result = call(Scoring(server.address), ["Count."] * 7, responses)
    assert result.values == pytest.approx(
        [scored_alone("Count.", response) for response in responses], abs=EXACT
    )
    assert result.statistics.num_prompts == 1


@CALLS
def test_an_empty_batch_needs_no_server(call: Any) -> None:
    assert call(Scoring("localhost:1"), [], []).rewards == []


def test_metrics_are_numbers_under_the_same_keys(tiny_server: Server) -> None:
    scoring = Scoring(tiny_server.address)
    first, again = (scoring.score(["Metrics?"] * 2, ["a", "b"]).statistics for _ in range(2))
    assert first.metrics.keys() == again.metrics.keys()
    assert (first.metrics["kwise/cached_share"], again.metrics["kwise/cached_share"]) == (0, 1)
    assert first.metrics["kwise/mean_tokens"] == first.tokens / 2 > 0
    assert first.latency_s > 0
    assert first.model_ms > 0
    assert len(first.fingerprint) == 64


# Processes, threads and event loops


def score_in_child(pickled: bytes) -> list[float]:
    scoring: Scoring = pickle.loads(pickled)
    assert in_loop(scoring, ["Child?"], ["a"]).values == scoring.score(["Child?"], ["a"]).values
    return scoring.score(["Child?"] * 2, ["a", "b"]).values


def test_a_spawned_process_gets_the_same_rewards_after_use_in_this_one(
    tiny_server: Server,
) -> None:
    scoring = Scoring(tiny_server.address)
    expected = scoring.score(["Child?"] * 2, ["a", "b"]).values
    in_loop(scoring, ["Child?"], ["a"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(score_in_child, (pickle.dumps(scoring),)) == expected
    assert scoring.score(["Child?"] * 2, ["a", "b"]).values == expected


def test_event_loops_may_follow_each_other_and_leave_no_client(tiny_server: Server) -> None:
    scoring = Scoring(tiny_server.address)
    values = [in_loop(scoring, ["Loop?"] * 2, ["a", "b"]).values for _ in range(5)]
    assert values == [values[0]] * 5
    (clients,) = scoring._connection._by_process.values()
    assert clients.by_loop == {}


def test_threads_and_their_event_loops_share_one_object(tiny_server: Server) -> None:
    scoring = Scoring(tiny_server.address)

    def score(number: int) -> list[float]:
        prompts, responses = [f"Thread {number}?"] * 2, ["a", "b"]
        blocking = scoring.score(prompts, responses).values
        assert in_loop(scoring, prompts, responses).values == blocking
        return blocking

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(score, range(16)))
    assert together == [score(number) for number in range(16)]


# Addresses and arguments


@CALLS
def test_an_address_comes_from_the_environment_at_the_first_call(
    call: Any, tiny_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KWISE_ADDRESS", raising=False)
    scoring = Scoring()
    with pytest.raises(InvalidRequest, match=r"address.*KWISE_ADDRESS"):
        call(scoring, ["p"], ["r"])
    monkeypatch.setenv("KWISE_ADDRESS", "nonsense")
    with pytest.raises(InvalidRequest, match="KWISE_ADDRESS: must be HOST:PORT"):
        call(scoring, ["p"], ["r"])
    monkeypatch.setenv("KWISE_ADDRESS", tiny_server.address)
    assert len(call(scoring, ["p"], ["r"]).values) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"address": "localhost"}, InvalidRequest, "address: must be HOST:PORT"),
        ({"on_error": "ignore"}, ValueError, 'on_error must be "raise" or "none"'),
        ({"timeout_s": 0}, ValueError, "timeout_s must be above 0"),
        ({"priority": "high"}, ValueError, "priority must be"),
        ({"client": "\n"}, ValueError, "client must be printable"),
    ],
)
def test_wrong_arguments_are_named_at_once(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Scoring(**arguments)


@CALLS
@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["p"], ["a", "b"], "1 prompts and 2 responses"),
        ("p", ["a"], "must be lists"),
        (["p", 3], ["a", "b"], r"prompts\[1\] must be a str"),
        (["p", [{"role": "user"}]], ["a", "b"], r"prompts\[1\]\[0\] has no content"),
        (["p", "p"], ["a", None], r"responses\[1\] must be a str"),
    ],
)
def test_a_wrong_item_is_named_by_its_place(
    call: Any, prompts: Any, responses: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(Scoring("localhost:1"), prompts, responses)


# Responses that cannot be scored


LONG = "word " * 3000


@CALLS
def test_a_response_without_reward_raises_or_is_none(
    call: Any, tiny_server: Server, scored_alone: Callable[[Any, Any], float]
) -> None:
    prompts, responses = ["p", "q", "p", "p"], ["a", "b", LONG, "c"]
    with pytest.raises(NotScored, match=r"1 of 4 .* responses\[2\]: .*limit is 2048") as raised:
        call(Scoring(tiny_server.address), prompts, responses)
    assert raised.value.response == 2
    assert raised.value.status is Status.INVALID_ARGUMENT
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    result = call(Scoring(tiny_server.address, on_error="none"), prompts, responses)
    assert result.rewards[2] is None
    assert list(result.errors) == [2]
    assert result.statistics.num_errors == 1
    others = [(prompts[index], responses[index]) for index in (0, 1, 3)]
    assert [result.rewards[index] for index in (0, 1, 3)] == pytest.approx(
        [scored_alone(*pair) for pair in others], abs=EXACT
    )
    with pytest.raises(NotScored):
        _ = result.values


@CALLS
def test_a_prompt_that_is_refused_leaves_the_others_alone(call: Any, tiny_server: Server) -> None:
    scoring = Scoring(tiny_server.address, on_error="none")
    result = call(scoring, [LONG, "p", LONG], ["a", "a", "b"])
    assert [reward is None for reward in result.rewards] == [True, False, True]


@CALLS
@pytest.mark.parametrize("num_prompts", [1, 2])
@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (LONG, "a"),
        ("p", LONG),
        (TemplatedText(text=LONG), "a"),
        ([7] * 3000, [7]),
        ("word " * 300_000, "a"),
        (TemplatedText(text="word " * 300_000), "a"),
    ],
    ids=["prompt", "response", "templated", "ids", "characters", "templated characters"],
)
def test_what_is_too_long_has_no_reward_in_the_first_call_either(
    call: Any, tiny_server: Server, prompt: Any, response: Any, num_prompts: int
) -> None:
    """One meaning whatever the form of the prompt is, and whether it is alone or not."""
    prompts, responses = [prompt, "other"][:num_prompts], [response, LONG][:num_prompts]
    result = call(Scoring(tiny_server.address, on_error="none"), prompts, responses)
    assert result.rewards == [None] * num_prompts
    assert all(error.over_limit for error in result.errors.values())
    with pytest.raises(NotScored):
        call(Scoring(tiny_server.address), prompts, responses)


@CALLS
def test_a_server_that_refuses_everything_raises_in_any_case(
    call: Any, tiny_server: Server
) -> None:
    """A run whose rewards are all None would go on and train on nothing."""
    ids = [[10**9]] * 2
    with pytest.raises(NotScored, match="2 of 2"):
        call(Scoring(tiny_server.address, on_error="none"), ids, ["text", "text"])
    for prompts in (["p"], ["p", "q"]):
        with pytest.raises(RewardServiceError, match="NOT_FOUND"):
            call(
                Scoring(tiny_server.address, on_error="none", model="other"),
                prompts,
                ["a"] * len(prompts),
            )


@CALLS
@pytest.mark.parametrize("prompts", [["p"], ["p", "q"]])
def test_a_server_that_is_not_there_is_named_whatever_the_policy(call: Any, prompts: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        scoring = Scoring(address, on_error="none", connect_timeout_s=0.2)
        with pytest.raises(RewardServiceError, match=f"UNAVAILABLE at {address}"):
            call(scoring, prompts, ["a"] * len(prompts))


@CALLS
@pytest.mark.parametrize("prompts", [["p"], ["p", "q"]])
def test_a_server_that_does_not_answer_ends_the_call_whatever_the_policy(
    call: Any, prompts: Any, tiny_artifact: Path, tmp_path: Path
) -> None:
    """A hung reward server froze runs without a word (verl #6673), or its rewards became 0."""
    held = HeldModel(tmp_path)
    held.hold()
    with running_held_server(tiny_artifact, held) as server:
        scoring = Scoring(server.address, on_error="none", timeout_s=1)
        with pytest.raises(RewardServiceError, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
            call(scoring, prompts, ["a"] * len(prompts))


class Limited(Service):
    """A service with a limit that a test can change. Its model fails on "broken"."""

    def __init__(self, max_responses: int) -> None:
        self.max_responses = max_responses
        self.num_asked = 0

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self.num_asked += 1
        return pb.GetModelResponse(model="m", max_responses=self.max_responses)

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        result = self._result(request.group)
        if isinstance(result, pb.Error):
            context.abort(grpc.StatusCode[result.code], result.message)
        return pb.ScoreResponse(scored=result)

    def ScoreStream(self, request_iterator: Any, context: Any) -> Iterator[pb.ScoreStreamResponse]:
        for item in request_iterator:
            result = self._result(item.group)
            name = "error" if isinstance(result, pb.Error) else "scored"
            yield pb.ScoreStreamResponse(id=item.id, **{name: result})

    def _result(self, group: pb.Group) -> Any:
        if len(group.responses) > self.max_responses:
            return pb.Error(code="INVALID_ARGUMENT", message="responses: there are too many")
        failed = pb.Error(code="INTERNAL", message="the model failed on this response")
        rewards = [
            pb.Reward(error=failed) if response.text == "broken" else pb.Reward(value=1, tokens=1)
            for response in group.responses
        ]
        if all(reward.HasField("error") for reward in rewards):
            return failed
        return pb.ScoredGroup(rewards=rewards, model="m", fingerprint="f")


@CALLS
def test_the_limit_of_a_server_is_asked_once_and_again_after_a_refusal(call: Any) -> None:
    service = Limited(max_responses=4)
    with serving(service=service) as address:
        scoring = Scoring(address)
        for prompts in (["p"] * 6, ["p"] * 6, ["p", "p", "q"], ["p"] * 2):
            assert call(scoring, prompts, ["a"] * len(prompts)).values == [1.0] * len(prompts)
        assert service.num_asked == 1
        service.max_responses = 2  # it restarts with another option
        for prompts in (["p"] * 3, ["p"] * 3 + ["q"]):
            assert call(scoring, prompts, ["a"] * len(prompts)).values == [1.0] * len(prompts)
        assert service.num_asked == 2


@CALLS
@pytest.mark.parametrize(
    ("prompts", "responses", "failed"),
    [
        (["p", "p"], ["a", "broken"], [1]),  # an error in the group
        (["p"], ["broken"], [0]),  # the error of a call
        (["p", "q"], ["a", "broken"], [1]),  # the error of a group of a stream
    ],
)
def test_a_response_on_which_the_model_failed_has_none_whoever_its_neighbours_are(
    call: Any, prompts: Any, responses: Any, failed: list[int]
) -> None:
    with serving(service=Limited(max_responses=4)) as address:
        scoring = Scoring(address, on_error="none")
        call(scoring, ["p"], ["a"])
        assert list(call(scoring, prompts, responses).errors) == failed
        strict = Scoring(address)
        call(strict, ["p"], ["a"])
        with pytest.raises(NotScored, match="the model failed on this response") as raised:
            call(strict, prompts, responses)
        assert raised.value.status is Status.INTERNAL


def test_metrics_of_a_call_without_rewards_are_finite(tiny_server: Server) -> None:
    """A mean of nothing is NaN, and one NaN spoils a metric of TRL for a whole logging step."""
    scored = Scoring(tiny_server.address, on_error="none").score(["p"], [LONG])
    assert scored.rewards == [None]
    assert all(math.isfinite(value) for value in scored.statistics.metrics.values())


# Servers that change


@CALLS
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_a_server_that_is_killed_in_mid_call_costs_no_reward(
    call: Any, num_prompts: int, tiny_artifact: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    held = HeldModel(tmp_path)
    held.hold()
    prompts = [f"Restart {number % num_prompts}?" for number in range(6)]
    responses = [f"Response {number}." for number in range(6)]
    with ThreadPoolExecutor(1) as thread:
        with running_held_server(tiny_artifact, held, "--port", str(port)) as server:
            scoring = Scoring(server.address, timeout_s=PATIENCE_S)
            waiting = thread.submit(call, scoring, prompts, responses)
            held.wait_for_batches(1)
            server.process.kill()
        with running_server(tiny_artifact, "--port", str(port)) as server:
            values = waiting.result(PATIENCE_S).values
            assert values == call(Scoring(server.address), prompts, responses).values


@CALLS
def test_a_changed_model_raises_unless_it_is_allowed(
    call: Any, tiny_artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "served"
    shutil.copytree(tiny_artifact, path)
    old = read_manifest(path)
    new = msgspec.structs.replace(old, reward_mean=7.0).signed()
    with running_server(path) as server, RewardClient(server.address) as client:
        strict, lenient = Scoring(server.address), Scoring(server.address, allow_model_change=True)
        before = [call(scoring, ["p"], ["r"]) for scoring in (strict, lenient)]
        (path / MANIFEST).write_text(new.to_json())
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: client.get_model().fingerprint == new.fingerprint)
        with pytest.raises(ModelChanged, match="allow_model_change=True") as raised:
            call(strict, ["p"], ["r"])
        assert (raised.value.old, raised.value.new) == (old.fingerprint, new.fingerprint)
        assert old.fingerprint in str(raised.value)
        after = call(lenient, ["p"], ["r"])
        assert after.statistics.fingerprint == new.fingerprint
        assert after.values != before[1].values
        # Another process starts with the model that is served now.
        assert pickle.loads(pickle.dumps(strict)).score(["p"], ["r"]).values == after.values


@CALLS
def test_a_model_with_members_says_how_unsure_each_reward_is(
    members_artifact: Path, call: Callable[..., ScoredResponses]
) -> None:
    with running_server(members_artifact) as server:
        with RewardClient(server.address) as client:
            alone = [client.score(p, ["7"]).rewards[0] for p in ("p", "q")]
        scored = call(
            Scoring(server.address, on_error="none"),
            ["p", "p", "q"],
            ["7", "word " * 400, "7"],
        )
    stds = [reward.std for reward in alone if isinstance(reward, Reward)]
    assert scored.stds == [pytest.approx(stds[0]), None, pytest.approx(stds[1])]
    mean = scored.statistics.metrics["kwise/mean_std"]
    assert mean == pytest.approx(sum(std or 0 for std in stds) / 2)


def test_a_model_without_members_has_no_deviations(tiny_server: Server) -> None:
    scored = Scoring(tiny_server.address).score(["p"], ["7"])
    assert scored.stds == [None]
    assert "kwise/mean_std" not in scored.statistics.metrics
