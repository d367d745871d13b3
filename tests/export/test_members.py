"""A checkpoint whose heads are members of an ensemble exports with a reward for each member."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import check_golden, new_encoder
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.session import GraphSession
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ArtifactError, ConfigError
from kwise.export.precision.matmuls import layer_groups
from kwise.types import Group, Message
from tests.exports import export_quietly
from tests.real_data import read_examples
from tests.tiny_models import PADDED, byte_tokenizer, tiny_model

NUM_MEMBERS = 3
HEADS = {"num_labels": NUM_MEMBERS, "kwise_members": NUM_MEMBERS}
ENCODER = {**PADDED["bert"][1], **HEADS, "kwise_member_means": [0.5, -1.0, 2.0], "std": 2.0}


def _rewards(checkpoint: Path, sequences: Sequence[EncodedSequence]) -> NDArray[np.float64]:
    """Return the rewards of plain transformers, [B, M]."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        rewards = [model(torch.from_numpy(s.token_ids)[None]).logits[0] for s in sequences]
    return torch.stack(rewards).double().numpy()


def _sequences(artifact: Artifact) -> list[EncodedSequence]:
    encoder = new_encoder(artifact, EngineConfig())
    sequences: list[Any] = []
    for messages, responses in read_examples()[:2]:
        prompt = (Message(role="user", content=messages[-1]["content"][:100]),)
        texts = tuple(response[:100] for response in responses[:3])
        sequences += encoder.encode(Group(prompt=prompt, responses=texts))
    assert all(isinstance(sequence, EncodedSequence) for sequence in sequences)
    return sequences


@pytest.fixture(scope="module")
def encoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "checkpoint"
    return tiny_model(PADDED["bert"][0], ENCODER, byte_tokenizer(), path, 5)


def _assert_parity(checkpoint: Path, artifact: Artifact, session: GraphSession) -> None:
    sequences = _sequences(artifact)
    expected = _rewards(checkpoint, sequences)
    assert expected.shape == (len(sequences), NUM_MEMBERS)
    assert expected.std(axis=0).min() > 1e-2, "rewards so alike would hide a wrong graph"
    alone = np.concatenate([session.run([sequence]).rewards for sequence in sequences])
    together = session.run(sequences).rewards
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    np.testing.assert_allclose(together, expected, atol=1e-4)
    backwards = session.run(sequences[::-1]).rewards[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-4)


def test_each_member_has_the_reward_of_transformers_over_a_trie(
    members_checkpoint: Path, members_artifact: Path
) -> None:
    artifact = read_artifact(members_artifact)
    assert (artifact.manifest.layout, artifact.manifest.num_members) == ("trie", NUM_MEMBERS)
    _assert_parity(members_checkpoint, artifact, GraphSession(artifact, prompt_cache_bytes=1 << 20))
    _assert_parity(members_checkpoint, artifact, GraphSession(artifact, runtime=Runtime.OPENVINO))


def test_the_graph_for_cuda_gives_a_column_per_member_in_padded_shapes(
    members_checkpoint: Path, members_artifact: Path
) -> None:
    """On a GPU, batches are padded to few shapes, and the rewards of the padding are cut off."""
    artifact = read_artifact(members_artifact)
    cuda = artifact.manifest.cuda_graphs[Precision.FP32]
    session = GraphSession(artifact.with_graph(Precision.FP32, cuda), prompt_cache_bytes=1 << 20)
    session._graph = BucketedGraph(session._graph)
    _assert_parity(members_checkpoint, artifact, session)


@pytest.mark.parametrize("layout", ["padded", "separate"])
def test_each_member_has_the_reward_of_transformers_in_rows(
    encoder_checkpoint: Path, tmp_path: Path, layout: str
) -> None:
    artifact = read_artifact(
        export_quietly(encoder_checkpoint, tmp_path / "artifact", layout=_layout(layout))
    )
    assert artifact.manifest.layout == layout
    _assert_parity(encoder_checkpoint, artifact, GraphSession(artifact))
    members = artifact.manifest.members or ()
    assert [(member.mean, member.std) for member in members] == [(0.5, 2), (-1, 2), (2, 2)]


def _layout(name: str) -> Any:
    from kwise.export.config import Layout

    return Layout(name)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.INT8])
def test_a_lower_precision_leaves_the_heads_in_fp32(
    members_artifact: Path, precision: Precision
) -> None:
    artifact = read_artifact(members_artifact)
    bounds = artifact.manifest.error_bounds[precision]
    assert "layers.*.mlp.up_proj" in layer_groups(artifact.graph_path(), attention=False)
    assert "score" not in layer_groups(artifact.graph_path(), attention=False)
    if precision is Precision.INT8:  # the only one that every CPU computes
        sequences = _sequences(artifact)
        errors = np.abs(
            GraphSession(artifact, precision=precision).run(sequences).rewards
            - GraphSession(artifact).run(sequences).rewards
        )
        assert 0 < errors.max() < 2 * bounds.max_error


def test_a_golden_reward_of_one_member_that_comes_out_wrong_is_refused(
    members_artifact: Path,
) -> None:
    artifact = read_artifact(members_artifact)
    first, *others = artifact.golden
    assert isinstance(first.reward, tuple) and len(first.reward) == NUM_MEMBERS
    wrong = replace(first, reward=(*first.reward[:-1], first.reward[-1] + 0.01))
    changed = replace(artifact, golden=(wrong, *others))
    session, encoder = GraphSession(artifact), new_encoder(artifact, EngineConfig())
    check_golden(artifact, encoder, session)
    with pytest.raises(ArtifactError, match=r"golden.jsonl:1: .* instead of the checkpoint's"):
        check_golden(changed, encoder, session)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"kwise_members": None}, "set kwise_members in config.json"),
        (
            {"kwise_members": 2},
            r"its head is classifier.bias \[3\]",
        ),
        ({"kwise_members": "3"}, "kwise_members '3'; it must be an integer from 2 to 100"),
        ({"mean": [1.0, 2.0]}, r"mean \[1.0, 2.0\]; it must be a finite number, or a list of 3"),
        ({"std": [1.0, 0.0, 2.0]}, "std 0.0; it must be at least 1e-30"),
    ],
)
def test_heads_that_are_not_stated_to_be_members_are_refused(
    tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    family, options = PADDED["bert"]
    heads = {name: value for name, value in {**HEADS, **stated}.items() if value is not None}
    path = tiny_model(family, {**options, **heads, "num_labels": 3}, byte_tokenizer(), tmp_path)
    with pytest.raises(ConfigError, match=message):
        export_quietly(path, tmp_path / "artifact")
