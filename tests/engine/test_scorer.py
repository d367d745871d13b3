"""What one request does wrong is told to it alone, by the place in its own request."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from kwise.engine.artifact import Artifact, Manifest
from kwise.engine.config import EngineConfig
from kwise.engine.conversation import ConversationEncoder, EncodedSequence, EncoderLimits
from kwise.engine.errors import InvalidRequest
from kwise.engine.scorer import Scorer
from kwise.engine.types import Group, Reward

VOCAB = 10


class SumSession:
    """Rewards are sums of token ids."""

    runtime = "test"

    def run(self, batch: Sequence[EncodedSequence]) -> tuple[NDArray[np.float32], int]:
        return np.array([sequence.token_ids.sum() for sequence in batch], np.float32), len(batch)


def _scorer() -> Scorer:
    manifest = Manifest(
        name="sum",
        layout="padded",
        dtype="fp32",
        num_classes=0,
        max_tokens=64,
        vocab_size=VOCAB,
        pad_token_id=None,
        causal=True,
        special_tokens={},
        golden_tolerance=0,
        files={},
    )
    encoder = ConversationEncoder(
        Tokenizer(models.BPE()),
        template=None,
        special_tokens={},
        limits=EncoderLimits(max_tokens=64, vocab_size=VOCAB),
        trailing_pad_id=None,
    )
    artifact = Artifact(path=Path(), manifest=manifest, golden=())
    return Scorer(artifact, EngineConfig(), encoder, [SumSession()])


async def test_bad_sibling_of_a_joined_response_harms_no_other_request() -> None:
    async with _scorer() as scorer:
        bad = asyncio.create_task(scorer.score(Group(prompt=(1,), responses=((2,), (VOCAB,)))))
        good = asyncio.create_task(scorer.score(Group(prompt=(1,), responses=((2,),))))
        _, outcome = await asyncio.wait_for(asyncio.gather(bad, good, return_exceptions=True), 5)
        assert not isinstance(outcome, BaseException), f"the good request got the bad one's error: {outcome}"
        assert isinstance(outcome.rewards[0], Reward)
        assert outcome.rewards[0].raw == 3


async def test_bad_response_is_named_by_its_place_whatever_is_cached() -> None:
    async with _scorer() as scorer:
        await scorer.score(Group(prompt=(1,), responses=((2,),)))
        try:
            outcome = (await scorer.score(Group(prompt=(1,), responses=((2,), (3, VOCAB))))).rewards[1]
        except InvalidRequest as error:
            outcome = error  # type: ignore[assignment]
        assert isinstance(outcome, InvalidRequest)
        assert outcome.field == "responses[1].token_ids[1]"


@pytest.mark.parametrize("responses", [((2,), (2,)), ((2,), (3,), (2,))])
async def test_equal_responses_are_computed_once(responses: tuple[tuple[int, ...], ...]) -> None:
    async with _scorer() as scorer:
        scored = await scorer.score(Group(prompt=(1,), responses=responses))
        assert [r.raw for r in scored.rewards if isinstance(r, Reward)] == [1.0 + sum(r) for r in responses]
        assert scorer.counters.sequences == len(set(responses))
