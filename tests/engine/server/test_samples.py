"""The samples of a body do not refuse each other, and calls that must not be refused are held."""

import asyncio
import copy
import re
import shutil
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
import pytest

from kwise.client import RewardClient
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies import score, sglang, tei, vllm
from kwise.engine.server.http.bodies.inputs import of_input
from kwise.engine.server.http.bodies.score import ScoreRequest
from kwise.engine.server.http.bodies.sglang import ScoringRequest
from kwise.engine.server.http.bodies.tei import PredictRequest
from kwise.engine.server.http.bodies.vllm import ClassifyInput
from kwise.engine.server.http.requests import GroupBody, to_group
from kwise.engine.server.samples.sample import Sample, of_pair, of_token_ids
from kwise.engine.server.samples.scoring import score_samples
from kwise.engine.server.service import RewardService
from kwise.engine.slices import SLICE_TOKEN_IDS
from kwise.errors import InvalidRequest
from kwise.types import Group, ScoredGroup
from tests.exports import export_quietly
from tests.held_model import HeldModel, running_held_server
from tests.http_caller import HttpCaller
from tests.servers import PATIENCE_S, wait_until
from tests.tiny_models import PADDED, tiny_model


def call_of(service: RewardService) -> Call:
    return Call(service=service, client="test")


def pairs(count: int) -> list[Sample]:
    return [of_pair(f"Question {i}?", "Yes.", f"a[{i}]", f"b[{i}]") for i in range(count)]


@pytest.fixture
async def narrow(tiny_artifact: Path) -> AsyncIterator[RewardService]:
    """A service whose queue has room for the tokens of a few short groups."""
    scorer = Scorer.load(tiny_artifact, EngineConfig(max_queue_tokens=16))
    scorer.start()
    service = RewardService([scorer])
    yield service
    await service.stop()


async def test_the_groups_of_a_body_wait_for_each_other_in_a_full_queue(
    narrow: RewardService,
) -> None:
    samples = pairs(40)
    scored = await score_samples(call_of(narrow), samples)
    assert narrow.model().counters.rejected_groups > 0
    for sample, reward in zip(samples, scored.rewards, strict=True):
        alone = await score_samples(call_of(narrow), [sample])
        assert alone.rewards[0].raw == reward.raw
    assert scored.num_tokens == sum(reward.tokens for reward in scored.rewards)


async def test_one_bad_sample_fails_the_call_by_its_field_and_the_others_are_scored(
    narrow: RewardService,
) -> None:
    samples = pairs(5)
    for index in (3, 1):
        samples[index] = replace(samples[index], response="blue " * 3000)
    with pytest.raises(InvalidRequest) as raised:
        await score_samples(call_of(narrow), samples)
    assert (raised.value.field, raised.value.response) == ("b[1]", 1)
    assert str(raised.value).endswith("(2 of 5 items cannot be scored; this is the first)")
    assert narrow.model().counters.sequences == 3


async def test_all_rewards_of_a_body_come_from_one_model(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_artifact, other)
    changed = msgspec.structs.replace(read_manifest(other), reward_mean=7.0).signed()
    (other / MANIFEST).write_text(changed.to_json())

    class Swapping(RewardService):
        """A service whose model is replaced after the first group has been scored."""

        num_groups = 0

        async def score(self, group: Group, model: str = "") -> ScoredGroup:
            self.num_groups += 1
            if self.num_groups == 2:
                new = Scorer.load(other)
                new.start()
                await self.add(new)
            return await super().score(group, model)

    scorer = Scorer.load(tiny_artifact)
    scorer.start()
    service = Swapping([scorer])
    try:
        scored = await score_samples(call_of(service), pairs(2))
        assert scored.fingerprint == changed.fingerprint
        assert service.num_groups == 4
        assert all(r.value == pytest.approx(r.raw - 7.0) for r in scored.rewards)
    finally:
        await service.stop()


@pytest.mark.parametrize(
    ("sequences", "prompt", "responses"),
    [
        ([[1, 2, 3], [1, 2, 4]], (1, 2), [(3,), (4,)]),
        ([[1, 2, 3]], (1, 2), [(3,)]),
        ([[1, 2], [1, 2]], (1,), [(2,), (2,)]),
        ([[1]], (1,), [()]),
        ([[1, 2], [1]], (1,), [(2,), ()]),
    ],
)
async def test_what_sequences_of_token_ids_share_is_their_prompt(
    sequences: list[list[int]], prompt: Any, responses: list[Any]
) -> None:
    fields = [f"input[{i}]" for i in range(len(sequences))]
    samples = await of_token_ids(sequences, fields, max_tokens=3)
    assert {sample.prompt for sample in samples} == {prompt}
    assert [sample.response for sample in samples] == responses


async def test_sequences_that_share_nothing_are_groups_of_their_own() -> None:
    samples = await of_token_ids([[1, 2], [3, 4], [3]], ["a", "b", "c"], max_tokens=2)
    assert [(s.prompt, s.response) for s in samples] == [((1,), (2,)), ((3,), (4,)), ((3,), ())]


class Unread(list[int]):
    """Token ids that nobody may look at."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("the ids were read before their number was checked")


async def test_the_number_of_token_ids_is_checked_before_they_are_read(
    narrow: RewardService,
) -> None:
    call, limit = call_of(narrow), narrow.model().max_tokens
    long = Unread([1] * (limit + 1))
    problem = f"the conversation has {limit + 1} tokens and the limit is {limit}"
    for body, field in (([Unread([1]), long], "input[1]"), (long, "input")):
        with pytest.raises(InvalidRequest, match=re.escape(f"{field}: {problem}")):
            await of_input(call.served(), cast(Any, body))
    with pytest.raises(InvalidRequest, match=re.escape("prompt: " + problem)):
        to_group(GroupBody(prompt=cast(Any, long), responses=[(1,)]), "test", limit)
    for query, items, field in (([1], [[2], long], "items[1]"), (long, [[2]], "query")):
        with pytest.raises(InvalidRequest, match=re.escape(f"{field}: the conversation has")):
            await sglang.score(call, ScoringRequest(query=query, items=cast(Any, items)))


async def test_other_requests_run_while_token_ids_are_converted() -> None:
    sequences = [list(range(SLICE_TOKEN_IDS)) for _ in range(8)]
    num_turns = 0

    async def other_request() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(other_request())
    await of_token_ids(sequences, [""] * 8, SLICE_TOKEN_IDS)
    other.cancel()
    assert num_turns >= 8


def test_a_call_is_held_while_the_queue_is_full_and_answered_when_the_server_drains(
    tiny_artifact: Path, held: HeldModel
) -> None:
    options = ("--http-port", "0", "--max-queue-tokens", "16", "--cache-bytes", "0")
    query = {"query": ["<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo it is."]}
    with (
        ThreadPoolExecutor(3) as threads,
        running_held_server(tiny_artifact, held, *options) as server,
        RewardClient(server.address, timeout_s=PATIENCE_S) as client,
    ):
        caller = HttpCaller(server, client)
        for ends in (held.release, lambda: server.process.send_signal(signal.SIGTERM)):
            held.hold()
            num_batches, num_tokenised = len(held.batches), held.num_tokenised
            num_rejected = _num_rejected(client)
            first = threads.submit(client.score, "One", ["waits in the model"])
            held.wait_for_batches(num_batches + 1)
            second = threads.submit(client.score, "Two", ["waits in the queue"])
            held.wait_for_tokenised(num_tokenised + 2)
            call = threads.submit(caller.send, "/get_reward", query)
            wait_until(partial(_is_over, client, num_rejected))
            # A client that comes back by itself is refused at once.
            body = {"prompt": "Three", "response": "is refused by the queue"}
            status, answer = HttpCaller(server, client).send("/slime/reward", body)
            assert (status, answer["error"]["code"]) == (429, "RESOURCE_EXHAUSTED")
            assert not call.done()
            ends()
            status, answer = call.result(PATIENCE_S)
            if ends == held.release:
                assert status == 200, answer
                assert len(answer["rewards"]) == 1
            else:
                assert (status, answer["error"]["code"]) == (503, "UNAVAILABLE")
                held.release()
            assert len(first.result(PATIENCE_S).rewards) == len(second.result().rewards) == 1


def _num_rejected(client: RewardClient) -> int:
    return client.get_model().counters.rejected_groups


def _is_over(client: RewardClient, num_rejected: int) -> bool:
    return _num_rejected(client) > num_rejected


@pytest.fixture
async def pair_model(smollm2_tokenizer: Any, tmp_path: Path) -> AsyncIterator[Call]:
    """A call to the service of a model without a chat template."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = None
    checkpoint = tiny_model(*PADDED["bert"], tokenizer, tmp_path / "checkpoint")
    scorer = Scorer.load(export_quietly(checkpoint, tmp_path / "artifact"))
    scorer.start()
    service = RewardService([scorer])
    yield call_of(service)
    await service.stop()


async def test_a_model_that_reads_pairs_takes_pairs_and_refuses_whole_conversations(
    pair_model: Call,
) -> None:
    scored = await score_samples(pair_model, [of_pair("Why?", "So.", "a", "b")])
    expected = scored.rewards[0].value
    answers = [
        await score.score(
            pair_model, ScoreRequest(text_1="Why?", text_2="So.", use_activation=False)
        ),
        await sglang.score(pair_model, ScoringRequest(query="Why?", items=["So."])),
        await sglang.score(
            pair_model, ScoringRequest(query="So.", items=["Why?"], item_first=True)
        ),
        await tei.predict(pair_model, PredictRequest(inputs=["Why?", "So."], raw_scores=True)),
    ]
    scores, row, turned, prediction = (answer.body for answer in answers)
    assert [scores.data[0].score, prediction[0].score] == [expected, expected]
    assert row.scores == turned.scores == [[expected]]
    for refused, beginning in (
        (vllm.classify(pair_model, ClassifyInput(input=["a"])), "input[0]: this model has no chat"),
        (vllm.classify(pair_model, ClassifyInput(input=[1, 2])), "input: this model reads a promp"),
        (tei.predict(pair_model, PredictRequest(inputs="a")), "inputs: this model has no chat"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            await refused
        assert str(raised.value).startswith(beginning)
