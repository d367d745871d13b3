"""A scorer without a model: rewards are sums of token ids, and the test decides when."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from kwise.engine.artifact.manifest import ErrorBounds, GraphContract, Manifest
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.session import Pass
from kwise.engine.precision import Precision
from kwise.engine.scorer import Scorer
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.errors import InvalidRequest, KwiseError
from kwise.types import Group, Priority, Reward
from tests.servers import PATIENCE_S

VOCAB = 10
POISON = 9
MANIFEST = Manifest(
    name="sum",
    layout="padded",
    graphs={
        Precision.FP32: GraphContract(
            file="model.onnx",
            reward_output="logits",
            num_tile_groups=0,
            separate_last_tokens=False,
            aligned_keys=False,
        )
    },
    error_bounds={Precision.FP32: ErrorBounds(max_error=0, max_batch_change=0, report={})},
    max_tokens=64,
    vocab_size=VOCAB,
    pad_token_id=None,
    causal=True,
    special_tokens={},
    files={},
)


class SumSession:
    """A session whose rewards are sums of token ids, and which fails on `POISON`.

    A pass waits for `gate`; `entered` is set once the first has begun.
    """

    runtime = "test"
    precision = Precision.FP32
    prompt_cache = PromptCache(0)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[tuple[int, ...]]] = []

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        return partial(self.run, batch)

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        self.batches.append([tuple(sequence.token_ids.tolist()) for sequence in batch])
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        if any(POISON in sequence.token_ids for sequence in batch):
            raise RuntimeError("poisoned")
        rewards = np.array([sequence.token_ids.sum() for sequence in batch], np.float32)
        return Pass(rewards=rewards, num_rows=len(batch))


class MemberSession(SumSession):
    """A session with three members, whose rewards are the sum, twice the sum, and minus the sum."""

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        plain = super().run(batch)
        rewards = np.stack([plain.rewards, 2 * plain.rewards, -plain.rewards], axis=1)
        return Pass(rewards=rewards, num_rows=plain.num_rows)


class HeldEncoder(ConversationEncoder):
    """Tokenises while `gate` is open, and calls `before` each time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.before: Callable[[], None] = lambda: None

    def encode(self, group: Group) -> list[EncodedSequence | InvalidRequest]:
        assert self.gate.wait(PATIENCE_S)
        self.before()
        return super().encode(group)


def sum_encoder() -> HeldEncoder:
    return HeldEncoder(
        Tokenizer(models.BPE()),
        template=None,
        special_tokens={},
        limits=EncoderLimits(max_tokens=64, vocab_size=VOCAB),
        trailing_pad_id=None,
    )


def sum_scorer(
    session: Any = None,
    encoder: ConversationEncoder | None = None,
    manifest: Manifest = MANIFEST,
    **options: Any,
) -> Scorer:
    artifact = Artifact(path=Path(), manifest=manifest, golden=())
    return Scorer(
        artifact, EngineConfig(**options), encoder or sum_encoder(), [session or SumSession()]
    )


async def entered(session: SumSession) -> None:
    assert await asyncio.to_thread(session.entered.wait, PATIENCE_S)


def ids(prompt: int, *responses: int, priority: Priority = Priority.INTERACTIVE) -> Group:
    return Group(
        prompt=(prompt,), responses=tuple((response,) for response in responses), priority=priority
    )


def raw(outcome: Reward | KwiseError) -> float:
    assert isinstance(outcome, Reward), outcome
    return outcome.raw
