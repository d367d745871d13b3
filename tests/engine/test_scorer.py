"""A request gets its own rewards and errors, whatever the requests beside it do."""

import asyncio
import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from kwise.engine.artifact.manifest import Member
from kwise.engine.artifact.read import Artifact
from kwise.engine.model.session import GraphSession, Pass
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.engine.sequence import EncodedSequence
from kwise.engine.slices import TOKEN_IDS_SLICE_ITEMS
from kwise.errors import InvalidRequest, ModelFailed, Overloaded, Unavailable
from kwise.types import Group, Message, Priority, Reward
from tests.servers import PATIENCE_S
from tests.sum_session import (
    MANIFEST,
    POISON,
    VOCAB,
    MemberSession,
    SumSession,
    entered,
    ids,
    raw,
    sum_encoder,
    sum_scorer,
)


async def test_bad_sibling_of_a_joined_response_harms_no_other_request() -> None:
    async with sum_scorer() as scorer:
        bad = asyncio.create_task(scorer.score(Group(prompt=(1,), responses=((2,), (VOCAB,)))))
        good = asyncio.create_task(scorer.score(Group(prompt=(1,), responses=((2,),))))
        _, outcome = await asyncio.wait_for(asyncio.gather(bad, good, return_exceptions=True), 5)
        assert not isinstance(outcome, BaseException), (
            f"the good request got the bad one's error: {outcome}"
        )
        assert isinstance(outcome.rewards[0], Reward)
        assert outcome.rewards[0].raw == 3


async def test_bad_response_is_named_by_its_place_whatever_is_cached() -> None:
    async with sum_scorer() as scorer:
        await scorer.score(Group(prompt=(1,), responses=((2,),)))
        scored = await scorer.score(Group(prompt=(1,), responses=((2,), (3, VOCAB))))
        outcome = scored.rewards[1]
        assert isinstance(outcome, InvalidRequest)
        assert outcome.field == "responses[1].token_ids[1]"


async def test_a_request_that_is_read_in_slices_keeps_its_order_and_its_indices() -> None:
    responses = tuple((index % 9,) * (index % 7 + 1) for index in range(3 * TOKEN_IDS_SLICE_ITEMS))
    async with sum_scorer() as scorer:
        scored = await scorer.score(Group(prompt=(1,), responses=responses))
        assert [r.raw for r in scored.rewards if isinstance(r, Reward)] == [
            1.0 + sum(r) for r in responses
        ]
        bad = len(responses) - 1
        scored = await scorer.score(Group(prompt=(1,), responses=(*responses[:-1], (VOCAB,))))
        outcome = scored.rewards[bad]
        assert isinstance(outcome, InvalidRequest)
        assert outcome.field == f"responses[{bad}].token_ids[0]"
        with pytest.raises(InvalidRequest) as raised:
            await scorer.score(Group(prompt=(VOCAB,), responses=responses))
        assert raised.value.response is None


@pytest.mark.parametrize("responses", [((2,), (2,)), ((2,), (3,), (2,))])
async def test_equal_responses_are_computed_once(responses: tuple[tuple[int, ...], ...]) -> None:
    async with sum_scorer() as scorer:
        scored = await scorer.score(Group(prompt=(1,), responses=responses))
        assert [r.raw for r in scored.rewards if isinstance(r, Reward)] == [
            1.0 + sum(r) for r in responses
        ]
        assert scorer.counters.sequences == len(set(responses))


MEMBERS = (Member(), Member(mean=1.0, std=2.0), Member(mean=-4.0))


async def test_members_are_normalised_one_by_one_and_combined() -> None:
    manifest = replace(MANIFEST, members=MEMBERS)
    async with sum_scorer(MemberSession(), manifest=manifest) as scorer:
        (computed,) = (await scorer.score(ids(1, 2))).rewards
        (cached,) = (await scorer.score(ids(1, 2))).rewards
    assert isinstance(computed, Reward) and isinstance(cached, Reward)
    values = [(3 - 0) / 1, (6 - 1) / 2, (-3 + 4) / 1]
    assert computed.members == tuple(values)
    assert (computed.value, computed.raw) == pytest.approx((np.mean(values), np.mean([3, 6, -3])))
    assert (computed.std, computed.min) == pytest.approx((np.std(values), 1.0))
    assert cached == dataclasses.replace(computed, cached=True)
    assert scorer.counters.model_passes == 1


async def test_a_response_that_fails_leaves_the_members_of_its_siblings() -> None:
    manifest = replace(MANIFEST, members=MEMBERS)
    async with sum_scorer(MemberSession(), manifest=manifest) as scorer:
        first, failed, last = (await scorer.score(ids(1, 2, POISON, 3))).rewards
        again = (await scorer.score(ids(1, 2, POISON, 3))).rewards
    assert isinstance(first, Reward) and isinstance(last, Reward)
    assert isinstance(failed, ModelFailed)
    assert first.members == (3.0, 2.5, 1.0) and last.members == (4.0, 3.5, 0.0)
    assert isinstance(again[1], ModelFailed)
    assert [again[0], again[2]] == [dataclasses.replace(r, cached=True) for r in (first, last)]


async def test_a_member_that_is_not_finite_fails_its_response_alone() -> None:
    class Infinite(MemberSession):
        def run(self, batch: Sequence[EncodedSequence]) -> Pass:
            result = super().run(batch)
            result.rewards[result.rewards[:, 0] == 4, 1] = np.inf
            return result

    manifest = replace(MANIFEST, members=MEMBERS)
    async with sum_scorer(Infinite(), manifest=manifest) as scorer:
        first, failed = (await scorer.score(ids(1, 2, 3))).rewards
    assert isinstance(first, Reward) and isinstance(failed, ModelFailed)


# What fails


async def test_a_response_that_the_model_fails_on_leaves_its_siblings_scored() -> None:
    async with sum_scorer() as scorer:
        first, failed, last = (await scorer.score(ids(1, 2, POISON, 3))).rewards
        assert (raw(first), raw(last)) == (3, 4)
        assert isinstance(failed, ModelFailed)


async def test_a_call_fails_where_the_model_fails_on_every_response() -> None:
    async with sum_scorer() as scorer:
        with pytest.raises(ModelFailed):
            await scorer.score(Group(prompt=(1,), responses=((POISON,), (2, POISON))))
        assert raw((await scorer.score(ids(1, 2))).rewards[0]) == 3


async def test_whoever_joined_a_response_does_not_share_the_failure_of_its_siblings() -> None:
    """A joined reward had the error of the group that started it, which was not the joiner's."""
    session = SumSession()
    async with sum_scorer(session) as scorer:
        session.gate.clear()
        busy = asyncio.create_task(scorer.score(ids(7, 1)))
        await entered(session)
        first = asyncio.create_task(scorer.score(ids(1, 2, POISON)))
        joined = asyncio.create_task(scorer.score(ids(1, 2)))
        session.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            _, _, scored = await asyncio.gather(busy, first, joined)
        assert raw(scored.rewards[0]) == 3
        assert scorer.counters.joined == 1


async def test_a_group_without_room_for_any_response_fails_as_a_whole_even_if_joined() -> None:
    async with sum_scorer() as scorer:
        template = Group(prompt=(Message(role="system", content="x"),), responses=("a", "b"))
        calls = [scorer.score(template), scorer.score(template)]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, InvalidRequest)
            assert outcome.field == "prompt.messages"


async def test_a_tokenizer_that_panics_fails_its_own_request_alone() -> None:
    """Panics are no Exceptions; the caller once got a cancellation that nobody had asked for."""
    encoder = sum_encoder()
    async with sum_scorer(encoder=encoder) as scorer:

        class Panic(BaseException):
            pass

        def panic() -> None:
            raise Panic

        encoder.before = panic
        with pytest.raises(RuntimeError, match="tokenizer panicked"):
            await scorer.score(ids(1, 2))
        encoder.before = lambda: None
        assert raw((await scorer.score(ids(1, 2))).rewards[0]) == 3


def _padded_artifact(path: Path) -> Artifact:
    """Write an artifact with a padded graph whose reward is the sum of a table's rows.

    The table has fewer rows than the vocabulary has tokens.
    """
    helper, ids = onnx.helper, ["input_ids", "attention_mask"]
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"])
        for name in ids
    ]
    output = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch"])
    table = onnx.numpy_helper.from_array(np.arange(POISON, dtype=np.float32), "table")
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "sum", inputs, [output], [table, axes])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        path / "model.onnx",
    )
    return Artifact(path=path, manifest=MANIFEST, golden=())


async def test_a_padded_batch_that_fails_as_a_whole_fails_one_response(tmp_path: Path) -> None:
    """On the real runtime: an id outside the table ends the run for every sequence of the batch."""
    inner = GraphSession(_padded_artifact(tmp_path), threads=1)
    session = SumSession()
    session.run, held = inner.run, session.run  # type: ignore[method-assign]
    batches: list[int] = []

    def run(batch: Sequence[EncodedSequence]) -> Pass:
        batches.append(len(batch))
        if len(batches) == 1:
            held(batch)  # so that what follows is one batch
        return inner.run(batch)

    session.run = run  # type: ignore[method-assign]
    session.gate.clear()
    async with sum_scorer(session) as scorer:
        busy = asyncio.create_task(scorer.score(ids(7, 1)))
        await entered(session)
        groups = [
            ids(1, 2, 3),
            ids(2, 4, POISON, 5),
            Group(prompt=(3,), responses=((1, 1, 1, 1), (2,))),
        ]
        calls = [asyncio.create_task(scorer.score(group)) for group in groups]
        while len(scorer._batcher._policy) < 7:
            await asyncio.sleep(0)
        session.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            before, poisoned, after = await asyncio.gather(*calls)
            await busy
        assert [raw(reward) for reward in before.rewards] == [3, 4]
        assert [raw(reward) for reward in after.rewards] == [7, 5]
        assert isinstance(poisoned.rewards[1], ModelFailed)
        assert [raw(poisoned.rewards[0]), raw(poisoned.rewards[2])] == [6, 7]
        assert batches[:2] == [1, 7] and len(batches) == 8, (
            "three times a half with the fault and one without"
        )


# What waits


async def test_groups_that_wait_for_a_tokenizer_thread_are_refused_beyond_the_limit() -> None:
    """Only the queue behind the tokenizer was bounded: a flood of text piled up before it."""
    encoder = sum_encoder()
    encoder.gate.clear()
    async with sum_scorer(encoder=encoder, max_queue_tokens=160, tokenizer_threads=1) as scorer:
        calls = [
            asyncio.create_task(scorer.score(_text(f"{number:03}" + "x" * 97)))
            for number in range(10)
        ]
        done, waiting = await asyncio.wait(
            calls, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        while (
            len(done) < 7
        ):  # 26 tokens each by the estimate, which may be as many as are left free: three fit
            done, waiting = await asyncio.wait(
                calls, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
            )
            await asyncio.sleep(0)
        assert len(waiting) == 3
        assert all(isinstance(call.exception(), Overloaded) for call in done)
        assert scorer.counters.rejected_groups == 7
        encoder.gate.set()
        await asyncio.wait(waiting, timeout=PATIENCE_S)
        assert scorer._admission.num_tokens == 0


def _text(prompt: str) -> Group:
    return Group(prompt=(Message(role="user", content=prompt),), responses=("y",))


async def test_what_everybody_left_is_not_tokenised() -> None:
    encoder = sum_encoder()
    encoder.gate.clear()
    async with sum_scorer(encoder=encoder, tokenizer_threads=1) as scorer:
        first, gone = (
            asyncio.create_task(scorer.score(ids(1, 2))),
            asyncio.create_task(scorer.score(ids(1, 3))),
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        encoded: list[None] = []
        encoder.before = lambda: encoded.append(None)
        encoder.gate.set()
        await first
        await scorer.score(ids(1, 4))
        assert len(encoded) == 2


@pytest.mark.parametrize(
    ("options", "num_batches"),
    [({}, 2), ({"device": "cuda"}, 1), ({"device": "cuda", "max_batch_tokens": 2048}, 2)],
)
async def test_batches_are_larger_on_a_gpu(options: dict[str, Any], num_batches: int) -> None:
    session = SumSession()
    responses = tuple((*divmod(number, 8), *[1] * 61) for number in range(48))
    async with sum_scorer(session, **options) as scorer:
        await scorer.score(Group(prompt=(1,), responses=responses))
    assert len(session.batches) == num_batches


async def test_an_interactive_request_does_not_wait_for_the_bulk_turn_of_what_it_joins() -> None:
    session = SumSession()
    async with sum_scorer(session, max_batch_tokens=16) as scorer:
        session.gate.clear()
        busy = asyncio.create_task(scorer.score(ids(7, 1)))
        await entered(session)
        long = [
            Group(prompt=(1,), responses=((number,) * 15,), priority=Priority.BULK)
            for number in (2, 3, 4)
        ]
        bulk = [asyncio.create_task(scorer.score(group)) for group in long]
        while len(scorer._batcher._policy) < 3:
            await asyncio.sleep(0)
        joined = asyncio.create_task(scorer.score(Group(prompt=(1,), responses=((4,) * 15,))))
        await asyncio.sleep(0)
        session.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(busy, joined, *bulk)
        assert [batch[0][-1] for batch in session.batches] == [1, 4, 2, 3]


async def test_a_reward_joined_before_it_was_tokenised_has_the_joiners_turn_too() -> None:
    session, encoder = SumSession(), sum_encoder()
    async with sum_scorer(session, encoder, max_batch_tokens=16, tokenizer_threads=1) as scorer:
        session.gate.clear()
        busy = asyncio.create_task(scorer.score(ids(7, 1)))
        await entered(session)
        encoder.gate.clear()
        long = [
            Group(prompt=(1,), responses=((number,) * 15,), priority=Priority.BULK)
            for number in (2, 3)
        ]
        bulk = [asyncio.create_task(scorer.score(group)) for group in long]
        await asyncio.sleep(0)
        joined = asyncio.create_task(scorer.score(Group(prompt=(1,), responses=((3,) * 15,))))
        await asyncio.sleep(0)
        encoder.gate.set()
        while len(scorer._batcher._policy) < 2:
            await asyncio.sleep(0)
        session.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(busy, joined, *bulk)
        assert [batch[0][-1] for batch in session.batches] == [1, 3, 2]


async def test_a_request_that_joins_never_gets_the_refusal_of_another() -> None:
    """The refusal of the group that asked first once went to those who had joined its rewards."""
    encoder = sum_encoder()
    encoder.gate.clear()
    async with sum_scorer(encoder=encoder, max_queue_tokens=100, tokenizer_threads=1) as scorer:
        first = asyncio.create_task(scorer.score(ids(1, *range(2, 9))))
        await asyncio.sleep(0)
        large = Group(prompt=(1,), responses=((2,), *((3,) * n for n in range(2, 30))))
        with pytest.raises(Overloaded):
            await scorer.score(large)
        assert scorer.counters.rejected_groups == 1
        assert scorer.counters.joined == 0, "a refused request joins nothing"
        joined = asyncio.create_task(scorer.score(ids(1, 2, 3)))
        await asyncio.sleep(0)
        assert scorer.counters.joined == 2
        encoder.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await first
            assert [raw(reward) for reward in (await joined).rewards] == [3, 4]
        assert scorer._admission.num_tokens == 0 and not scorer._in_flight


async def test_a_reward_is_computed_for_the_one_who_joined_it_if_the_first_leaves() -> None:
    session = SumSession()
    async with sum_scorer(session) as scorer:
        session.gate.clear()
        busy = asyncio.create_task(scorer.score(ids(7, 1)))
        await entered(session)
        first = asyncio.create_task(scorer.score(ids(1, 2, 3)))
        joined = asyncio.create_task(scorer.score(ids(1, 2)))
        while len(scorer._batcher._policy) < 2:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert len(scorer._batcher._policy) == 1, "nobody waits for the other response"
        session.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await busy
            assert raw((await joined).rewards[0]) == 3
        assert session.batches == [[(7, 1)], [(1, 2)]]
        assert scorer._admission.num_tokens == 0 and not scorer._in_flight


async def test_what_was_computed_is_cached_even_if_a_sibling_is_left() -> None:
    """A group with one long queue behind it is cancelled: what it has is not computed again."""
    session = SumSession()
    async with sum_scorer(session, max_batch_tokens=16) as scorer:
        group = Group(prompt=(1,), responses=((2,) * 15, (3,) * 15))
        call = asyncio.create_task(scorer.score(group))
        await entered(session)
        session.gate.clear()
        while scorer.counters.sequences < 1:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        session.gate.set()
        scored = await scorer.score(Group(prompt=(1,), responses=((2,) * 15,)))
        assert isinstance(scored.rewards[0], Reward) and scored.rewards[0].cached


# The end


async def test_stopping_answers_what_is_tokenised_waits_or_runs() -> None:
    session, encoder = SumSession(), sum_encoder()
    async with sum_scorer(session, encoder, max_batch_tokens=16, tokenizer_threads=1) as scorer:
        session.gate.clear()
        running, waiting = (
            asyncio.create_task(scorer.score(ids(7, response))) for response in (1, 2)
        )
        await entered(session)
        encoder.gate.clear()
        tokenised = asyncio.create_task(scorer.score(ids(7, 3)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await scorer.stop()
        async with asyncio.timeout(PATIENCE_S):
            outcomes = await asyncio.gather(
                running, waiting, tokenised, scorer.score(ids(7, 4)), return_exceptions=True
            )
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 4
        encoder.gate.set()
        session.gate.set()


async def test_a_reward_is_freed_at_once_when_the_last_request_leaves() -> None:
    """Full garbage collections are rare, and a reward holds all tokens of its conversation."""

    def rewards_in_memory() -> int:
        return sum(type(item) is RewardInFlight for item in gc.get_objects())

    encoder = sum_encoder()
    # With one tokenizer thread, a later request is answered after all jobs that were in it.
    async with sum_scorer(encoder=encoder, tokenizer_threads=1) as scorer:
        gc.collect()
        gc.disable()
        num_of_other_tests = rewards_in_memory()
        try:
            too_long = Group(prompt=(1,), responses=((4,), (5,) * 64))
            assert isinstance((await scorer.score(too_long)).rewards[1], InvalidRequest)
            encoder.gate.clear()
            abandoned = [asyncio.create_task(scorer.score(ids(n, 6, 7))) for n in range(4)]
            await asyncio.sleep(0)
            for call in abandoned:
                call.cancel()
            await asyncio.wait(abandoned)
            encoder.gate.set()
            await scorer.score(ids(8, 8))  # the job that was in the thread is done as well
            await scorer.score(ids(8, 7))
            del call, abandoned
            assert rewards_in_memory() <= num_of_other_tests
        finally:
            gc.enable()


# Counters


async def test_each_group_and_reward_is_counted_once() -> None:
    session = SumSession()
    async with sum_scorer(session) as scorer:
        counters = scorer.counters
        session.gate.clear()
        asking = [asyncio.create_task(scorer.score(ids(1, 2, 3))) for _ in range(2)]
        await entered(session)
        assert scorer.state.rewards_in_flight == 2
        session.gate.set()
        await asyncio.gather(*asking)
        assert (counters.cache_misses, counters.joined, counters.cache_hits) == (4, 2, 0)
        assert counters.rewards.values.count == counters.rewards.queue_s.count == 2
        before = dict(counters.rewards.values.cumulative())
        await scorer.score(ids(1, 2, 3))
        assert dict(counters.rewards.values.cumulative()) == before
        assert (counters.cache_misses, counters.cache_hits) == (4, 2)
        with pytest.raises(InvalidRequest):
            await scorer.score(Group(prompt=(VOCAB,), responses=((2,),)))
        assert (counters.answered_groups, counters.cached_groups) == (3, 1)
        assert counters.failed_groups == 1
        state = scorer.state
        assert (state.queue_tokens, state.queue_sequences, state.rewards_in_flight) == (0, 0, 0)
        assert state.reward_cache.entries == 2


async def test_values_are_counted_as_replies_have_them() -> None:
    """The manifest's mean and std are those of `kwise calibrate`."""
    manifest = replace(MANIFEST, reward_mean=4.0, reward_std=2.0)
    async with sum_scorer(manifest=manifest) as scorer:
        scored = await scorer.score(Group(prompt=(1,), responses=((2,), (3, 4))))
        assert scored.values == (-0.5, 2.0)
        statistics = scorer.counters.rewards
        assert statistics.mean_value == pytest.approx(0.75, abs=1e-3)
        assert [count for _, count in statistics.values.cumulative()].count(1) == 5
        assert statistics.correlation == pytest.approx(1)


async def test_a_sequence_on_which_the_model_fails_is_counted() -> None:
    async with sum_scorer() as scorer:
        await scorer.score(ids(1, 2, POISON))
        assert scorer.counters.failed_sequences == 1
        assert scorer.counters.rewards.values.count == 1
        assert scorer.counters.passes.sequences.count == scorer.counters.model_passes
