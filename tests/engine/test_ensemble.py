"""An ensemble answers with the mean of its members, and says how far they disagree."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from kwise.engine.artifact.files import FileEntry
from kwise.engine.ensemble import Ensemble
from kwise.engine.scorer import Scorer
from kwise.errors import InvalidRequest, KwiseError, Overloaded, Unavailable
from kwise.types import Group, Reward, TemplatedText
from tests.sum_session import MANIFEST, POISON, SumSession, entered, ids, sum_scorer

FILES = {"tokenizer.json": FileEntry(sha256="same", bytes=1)}


@asynccontextmanager
async def ensemble(**members: Scorer) -> AsyncIterator[Ensemble]:
    for member in members.values():
        member.start()
    try:
        yield Ensemble("both", list(members), members.__getitem__)
    finally:
        for member in members.values():
            await member.stop()


def member(
    mean: float = 0.0,
    std: float = 1.0,
    session: SumSession | None = None,
    files: Mapping[str, FileEntry] = FILES,
    **options: Any,
) -> Scorer:
    manifest = msgspec.structs.replace(
        MANIFEST, reward_mean=mean, reward_std=std, files=dict(files)
    ).signed()
    return sum_scorer(session, manifest=manifest, **options)


async def test_the_reward_is_the_mean_of_the_members_values() -> None:
    async with ensemble(a=member(), b=member(mean=1.0, std=2.0), c=member(mean=-3.0)) as both:
        group = ids(1, 2, 3, 4)
        scored = await both.score(group)
        for reward, raw in zip(scored.rewards, (3.0, 4.0, 5.0), strict=True):
            assert isinstance(reward, Reward)
            values = [raw, (raw - 1) / 2, raw + 3]
            assert reward.members == tuple(values)
            assert reward.value == pytest.approx(np.mean(values))
            assert reward.std == pytest.approx(np.std(values))
            assert (reward.min, reward.raw, reward.cached) == (min(values), raw, False)
        again = await both.score(group)
        assert all(isinstance(r, Reward) and r.cached for r in again.rewards)
        assert scored.model == "both"
        assert scored.fingerprint == both.info(max_responses=1, max_pairs=1).fingerprint
        assert both.counters.answered_groups == 2
        await asyncio.wait_for(both.idle(), 60)


async def test_a_response_that_one_member_cannot_score_has_its_error() -> None:
    async with ensemble(a=member(), b=member()) as both:
        scored = await both.score(ids(1, 2, POISON, 3))
        kinds = [isinstance(reward, KwiseError) for reward in scored.rewards]
        assert kinds == [False, True, False]


async def test_a_member_that_refuses_ends_the_work_of_the_others() -> None:
    held, full = SumSession(), SumSession()
    held.gate.clear()
    full.gate.clear()
    narrow = member(session=full, max_queue_tokens=16)
    async with ensemble(a=member(session=held), b=narrow) as both:
        running = asyncio.create_task(narrow.score(ids(1, *range(2, 6))))
        await entered(full)
        waiting = asyncio.create_task(narrow.score(ids(2, *range(2, 9))))
        await asyncio.sleep(0)
        while not narrow.state.queue_tokens:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await both.score(ids(3, *range(1, 9)))
        a = both.members[0]
        assert isinstance(a, Scorer)
        assert a.num_tokens_in_flight == 0
        held.gate.set()
        full.gate.set()
        await asyncio.gather(running, waiting)


async def test_members_that_would_read_token_ids_differently_are_not_asked() -> None:
    other = {"tokenizer.json": FileEntry(sha256="other", bytes=1)}
    await refuses_what_is_rendered(files=other)


async def test_members_with_other_chat_templates_are_not_asked_for_what_is_rendered() -> None:
    await refuses_what_is_rendered(
        files={**FILES, "chat_template.jinja": FileEntry(sha256="other", bytes=1)}
    )


async def refuses_what_is_rendered(files: Mapping[str, FileEntry]) -> None:
    async with ensemble(a=member(), b=member(files=files)) as both:
        templated = Group(prompt=TemplatedText(text="p"), responses=("r",))
        for group in (ids(1, 2), templated):
            with pytest.raises(InvalidRequest, match=r"ensemble's members differ; send messages"):
                await both.score(group)
        assert all(not m.counters.groups.failure.count for m in both.members)


async def test_a_caller_that_leaves_cancels_all_members() -> None:
    sessions = SumSession(), SumSession()
    for session in sessions:
        session.gate.clear()
    async with ensemble(a=member(session=sessions[0]), b=member(session=sessions[1])) as both:
        call = asyncio.create_task(both.score(ids(1, 2)))
        for session in sessions:
            await entered(session)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(both.idle(), 60)
        for member_ in both.members:
            assert isinstance(member_, Scorer)
            assert member_.num_tokens_in_flight == 0
        for session in sessions:
            session.gate.set()


async def test_members_that_stop_answer_with_unavailable() -> None:
    async with ensemble(a=member(), b=member()) as both:
        await both.members[0].stop()
        with pytest.raises(Unavailable):
            await both.score(ids(1, 2))


def test_the_fingerprint_follows_from_the_members_and_their_order() -> None:
    members = {"a": member(), "b": member(mean=1.0), "c": member()}

    def fingerprint(*names: str) -> str:
        combined = Ensemble("e", names, members.__getitem__)
        return combined.info(max_responses=1, max_pairs=1).fingerprint

    assert fingerprint("a", "b") == fingerprint("c", "b") != fingerprint("b", "a")
