"""Each architecture of the trie layout on CUDA: placement, attention, copies and CUDA graphs."""

from collections import Counter
from pathlib import Path

import pytest

from kwise.engine.artifact.read import read_artifact
from kwise.engine.model.runtime.captured_graphs import MIN_PASSES
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from tests.cuda.passes import attention_kernels, batch, copies, nodes
from tests.cuda.standin.events import StandIn
from tests.exports import export_quietly
from tests.tiny_models import TRIE, byte_tokenizer, tiny_model

# Layers with a sliding window have a mask, which flash attention does not take.
_MASKED = {
    "mistral": Counter({"memory-efficient": 2}),
    "gemma2": Counter({"memory-efficient": 1, "flash": 1}),
}


@pytest.mark.parametrize("name", TRIE)
def test_fp16_stays_on_the_gpu_and_repeated_shapes_are_replayed(
    name: str, tmp_path: Path, stand_in: StandIn
) -> None:
    family, options = TRIE[name]
    checkpoint = tiny_model(family, options, byte_tokenizer(), tmp_path / "checkpoint")
    # Weights are random, so rounding may change the order of many pairs.
    exported = export_quietly(
        checkpoint, tmp_path / "artifact", dtype="fp32,fp16", min_agreement=0.01
    )
    session = GraphSession(
        read_artifact(exported), precision=Precision.FP16, device="cuda:0", threads=1
    )
    assert not any(op.startswith("Memcpy") for ops in nodes(session).values() for op in ops)
    for seed in range(MIN_PASSES):
        stand_in.clear()
        session.run(batch(seed, prompt=64, response=32))
    events = stand_in.events()
    assert len(copies(events, "h2d")) == len(copies(events, "d2h")) == 1
    assert attention_kernels(events) == _MASKED.get(name, Counter({"flash": 2}))
    session.run(batch(prompt=64, response=32))
    stand_in.clear()
    session.run(batch(prompt=64, response=32))
    events = stand_in.events()
    assert not any(event.is_launch for event in events)
    assert sum(event.kind == "replay" for event in events) == 1
