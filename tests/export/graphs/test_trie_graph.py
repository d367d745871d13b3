"""The trie graph has ONNX's own operators, each weight once, and inputs for past entries."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import external_data_helper
from transformers import AutoModelForSequenceClassification
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from kwise.engine.artifact.read import read_artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.export.graphs.rotary import patching_specs


def test_a_layer_is_one_rotation_of_queries_one_of_keys_and_one_attention_per_tile_group(
    tiny_artifact: Path,
) -> None:
    artifact = read_artifact(tiny_artifact)
    graph = onnx.load(artifact.graph_path(), load_external_data=False)
    counts = {
        kind: sum(node.op_type == kind for node in graph.graph.node)
        for kind in ("RotaryEmbedding", "Attention", "Neg")
    }
    assert counts == {
        "RotaryEmbedding": 2 * 2,
        "Attention": 2 * artifact.manifest.graphs[Precision.FP32].num_tile_groups,
        "Neg": 0,
    }
    assert {node.domain for node in graph.graph.node} == {""}, "only operators that ONNX defines"


def test_every_weight_of_the_checkpoint_is_in_the_file_beside_the_graph_once(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = read_artifact(tiny_artifact).graph_path()
    graph = onnx.load(path, load_external_data=False)
    external = [t for t in graph.graph.initializer if external_data_helper.uses_external_data(t)]
    external_data_helper.load_external_data_for_model(graph, str(path.parent))
    expected = dict(
        AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint).named_parameters()
    )
    assert sorted(tensor.name.removesuffix(".transposed") for tensor in external) == sorted(
        expected
    )
    for tensor in external:
        array, weight = (
            onnx.numpy_helper.to_array(tensor),
            expected[tensor.name.removesuffix(".transposed")].detach().numpy(),
        )
        np.testing.assert_array_equal(
            array, weight.T if tensor.name.endswith(".transposed") else weight
        )
    assert path.stat().st_size < 2_000_000, "no weight is in the graph itself"


def test_a_rotation_is_replaced_only_where_it_is_the_same() -> None:
    class Part(torch.nn.Module):
        pass

    alike, unlike = Part(), Part()
    type(alike).__module__ = modeling_llama.__name__
    assert [spec.o for spec in patching_specs(alike)] == [modeling_llama]
    type(
        unlike
    ).__module__ = modeling_gptj.__name__  # rotates neighbouring pairs and has another signature
    assert patching_specs(unlike) == []


@pytest.mark.parametrize("length", [1, 15, 16, 40, 150])
def test_a_reward_is_the_same_whatever_part_of_its_prefix_comes_from_the_cache(
    tiny_artifact: Path, length: int
) -> None:
    artifact = read_artifact(tiny_artifact)
    ids = np.random.default_rng(0).integers(3, 40_000, 160)
    fresh, caching = GraphSession(artifact), GraphSession(artifact, prompt_cache_bytes=64 << 20)

    def sequence(token_ids: NDArray[np.int64], prompt_tokens: int) -> EncodedSequence:
        return EncodedSequence(
            token_ids=token_ids,
            type_ids=None,
            num_tokens=len(token_ids),
            prompt_tokens=prompt_tokens,
        )

    # The last token is cached too, as the opening of the response, and only `ids` goes on with it.
    caching.run([sequence(ids[: length + 1], length)])
    passed = caching.run([sequence(ids, 0), sequence(np.concatenate([ids[:length], ids[:9]]), 0)])
    expected = fresh.run([sequence(ids, 0), sequence(np.concatenate([ids[:length], ids[:9]]), 0)])
    assert passed.num_reused == (length + 1 if length + 1 >= 16 else 0)
    assert passed.num_rows + passed.num_reused == expected.num_rows
    np.testing.assert_allclose(passed.rewards, expected.rewards, atol=1e-5)
