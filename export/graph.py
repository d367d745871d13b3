"""A checkpoint → model.onnx, through Optimum's own export functions.

`trie`: an `OnnxConfig` of ours given to `optimum.exporters.onnx.export`. Optimum calls `fix_dynamic_axes` on the written file;
there the placeholder for Attention becomes ONNX's own operator of opset 23, which the TorchScript exporter cannot name.
`padded`: Optimum's stock text-classification export, for bidirectional models and those with an attention of their own.
"""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import NormalizedTextConfig
from torch import Tensor
from transformers import PreTrainedModel

from kwise.engine.artifact import MODEL
from kwise.engine.packing import NOT_PAST, pack
from kwise.engine.trie import build_trie
from kwise.export.attention import PLACEHOLDER_DOMAIN, TrieBatch, on_trie
from kwise.export.rotary import patching_specs

# Calls of Attention a layer. More fit tiles' key lengths closer, and cost the start of a kernel each.
NUM_CLASSES = 8
_TRACED_OPSET, _ATTENTION_OPSET = 18, 23


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a later token leaves earlier hidden states as they are: measured, not looked up by name."""
    input_ids = torch.arange(3, 11)[None] % model.get_input_embeddings().num_embeddings
    changed = input_ids.clone()
    changed[0, -1] = 1
    with torch.inference_mode():
        states, states_changed = (model.base_model(input_ids=ids).last_hidden_state for ids in (input_ids, changed))
    return bool(torch.allclose(states[:, :-1], states_changed[:, :-1], atol=1e-5))


def supports_trie(model: PreTrainedModel) -> bool:
    """Whether the model is causal, sends its attention through `AttentionInterface`, takes positions and has a plain head."""
    forward = inspect.signature(model.base_model.forward).parameters
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and "position_ids" in forward
        and isinstance(getattr(model, "score", None), torch.nn.Module)
        and not model.config.is_encoder_decoder
        and is_causal(model)
    )


def export_trie(model: PreTrainedModel, directory: Path) -> None:
    """Write `model.onnx` and `model.onnx.data`: inputs as `kwise.engine.packing.pack` makes them, output `rewards` [B]."""
    with _without_tracer_warnings():
        optimum_export(_TrieRewards(model), _TrieOnnxConfig(model), directory / MODEL, opset=_TRACED_OPSET)
    for leftover in directory.glob(f"{MODEL}_data*"):
        leftover.unlink()


def export_padded(model: PreTrainedModel, directory: Path) -> None:
    """Write `model.onnx` and `model.onnx.data`: inputs int64[B, length], output `logits` [B, 1]."""
    with _without_tracer_warnings():
        onnx_export_from_model(model, directory, task="text-classification", do_validation=False)
    graph = onnx.load(directory / MODEL)
    _save(graph, directory / MODEL)
    for leftover in directory.iterdir():
        if leftover.name not in (MODEL, f"{MODEL}.data"):
            leftover.unlink()


@contextmanager
def _without_tracer_warnings() -> Iterator[None]:
    """torch warns of every Python value in transformers' code that tracing fixes; parity is what tells whether one matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", module="torch\\.onnx")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


class _TrieRewards(torch.nn.Module):
    """The backbone on the trie's rows, then the head on each sequence's last row."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        orders: Tensor,
        ends: Tensor,
        last_rows: Tensor,
        kept: Tensor,
        outputs: Tensor,
        queries: list[Tensor],
        keys: list[Tensor],
        past: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        batch = TrieBatch(
            positions=positions,
            orders=orders,
            ends=ends,
            queries=queries,
            keys=keys,
            outputs=outputs,
            past=past,
            kept=kept,
        )
        with on_trie(self.model, batch):
            states = self.model.base_model(
                input_ids=input_ids[None], position_ids=positions[: input_ids.shape[0]][None], use_cache=False
            ).last_hidden_state[0]
        rewards = {"rewards": self.model.score(states[last_rows])[:, 0]}
        return rewards | {f"present.{layer}.{name}": t for layer, name, t in _named(batch.present)}


class _TrieOnnxConfig(OnnxConfig):
    """Inputs as `pack` makes them, `kept` and `past.LAYER.key|value`; outputs `rewards` and `present.LAYER.key|value`."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DEFAULT_ONNX_OPSET = _TRACED_OPSET
    DUMMY_INPUT_GENERATOR_CLASSES: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model.config, task="text-classification")
        self.PATCHING_SPECS = patching_specs(model)
        self._example = _example(_layer_widths(model))

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        past = {f"past.{layer}.{name}": {0: "num_past"} for layer, name, _ in _named(self._example["past"])}
        arrays = {name: array for name, array in self._example.items() if isinstance(array, Tensor)}
        lists = {f"{name}.{c}": array for name in ("queries", "keys") for c, array in enumerate(self._example[name])}
        return {name: {i: f"{name}_{i}" for i in range(array.ndim)} for name, array in (arrays | lists).items()} | past

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        present = {f"present.{layer}.{name}": {0: "num_kept"} for layer, name, _ in _named(self._example["past"])}
        return {"rewards": {0: "num_sequences"}} | present

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        return self._example

    def fix_dynamic_axes(self, model_path: Path, **_: Any) -> None:
        graph = onnx.load(model_path)
        for node in graph.graph.node:
            if node.domain == PLACEHOLDER_DOMAIN:
                node.domain = ""
        opsets = [opset for opset in graph.opset_import if opset.domain != PLACEHOLDER_DOMAIN]
        for opset in opsets:
            if opset.domain == "":
                opset.version = _ATTENTION_OPSET
        del graph.opset_import[:]
        graph.opset_import.extend(opsets)
        _save(graph, Path(model_path))


def _save(graph: onnx.ModelProto, path: Path) -> None:
    """Weights beside the graph, where runtimes can map them and no 2 GB limit holds."""
    onnx.save(
        graph,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=1024,
    )


def _named(layers: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, str, Tensor]]:
    return [(layer, name, t) for layer, pair in enumerate(layers) for name, t in zip(("key", "value"), pair, strict=True)]


def _example(widths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """A small batch to trace with: two prompts of several responses, one of them known, tiles of unlike sizes in classes."""
    prompts = np.arange(3, 23), np.arange(3, 100)
    sequences = [np.concatenate([prompt, np.full(length, 5 + length)]) for prompt in prompts for length in (12, 40, 71)]
    trie = build_trie([sequence % 32 for sequence in sequences])
    past = np.full(trie.num_nodes, NOT_PAST)
    past[:10] = np.arange(10)
    packed = pack(trie, NUM_CLASSES, past, 10)
    tensors = {name: torch.from_numpy(array) for name, array in packed.arrays.items()}
    flat = {name: tensor for name, tensor in tensors.items() if "." not in name}
    return flat | {
        "kept": torch.arange(5),
        "queries": [tensors[f"queries.{c}"] for c in range(NUM_CLASSES)],
        "keys": [tensors[f"keys.{c}"] for c in range(NUM_CLASSES)],
        "past": [(torch.zeros(10, key), torch.zeros(10, value)) for key, value in widths],
    }


def _layer_widths(model: PreTrainedModel) -> list[tuple[int, int]]:
    """The width of each layer's keys and values (heads times head size), measured by a pass over one token."""
    packed = pack(build_trie([np.array([3])]), 1).arrays
    tensors = {name: torch.from_numpy(array) for name, array in packed.items()}
    batch = TrieBatch(
        positions=tensors["positions"],
        orders=tensors["orders"],
        ends=tensors["ends"],
        queries=[tensors["queries.0"]],
        keys=[tensors["keys.0"]],
        outputs=tensors["outputs"],
    )
    with torch.inference_mode(), on_trie(model, batch):
        model.base_model(input_ids=tensors["input_ids"][None], position_ids=tensors["positions"][None], use_cache=False)
    return [(key.shape[1], value.shape[1]) for key, value in batch.present]
