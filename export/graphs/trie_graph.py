"""Export a checkpoint as the trie graph, through Optimum's own export function.

`optimum.exporters.onnx.export` gets our `OnnxConfig`. It names the inputs and outputs, replaces the
model's rotary embedding (`PATCHING_SPECS`), and finishes the written file (`fix_dynamic_axes`).
There the placeholders for Attention and RotaryEmbedding become ONNX's operators of opset 23, which
the TorchScript exporter does not know, and the weights are attached.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kwise.engine.artifact.manifest import GraphContract
from kwise.engine.artifact.names import MODEL
from kwise.engine.model.packing import NOT_PAST, pack
from kwise.engine.trie import build_trie
from kwise.export.graph_file import read_graph, write_graph
from kwise.export.graphs.attention import PLACEHOLDER_DOMAIN, TrieBatch, on_trie
from kwise.export.graphs.optimum_exporter import NormalizedTextConfig, OnnxConfig, export
from kwise.export.graphs.rotary import patching_specs, short_longrope
from kwise.export.graphs.tracing import ParametersAsInputs, attach_weights, without_tracer_warnings
from kwise.train.checkpoint.members import members_of

# Calls of Attention per layer. More calls fit the tiles' key lengths more closely, but each call
# has to start several kernels.
NUM_TILE_GROUPS = 8
_TRACED_OPSET, _ATTENTION_OPSET = 18, 23
_REWARDS = "rewards"


def export_trie(
    model: PreTrainedModel,
    directory: Path,
    *,
    with_type_ids: bool = True,
) -> GraphContract:
    """Write `model.onnx` and `model.onnx.data`; return the contract of this graph.

    The inputs are those that `kwise.engine.model.layouts.trie.TrieLayout` feeds. The outputs are
    `rewards`, float32[B], or float32[B, M] with M members, and `present.LAYER.key` and
    `present.LAYER.value`, float32[rows to cache, W]. `with_type_ids` has no effect, because
    models of this layout take no type ids.
    """
    traced = _TrieRewards(model)
    with without_tracer_warnings(), short_longrope(model):
        export(traced, _TrieOnnxConfig(model, traced), directory / MODEL, opset=_TRACED_OPSET)
    return GraphContract(
        file=MODEL,
        reward_output=_REWARDS,
        num_tile_groups=NUM_TILE_GROUPS,
        separate_last_tokens=False,
        aligned_keys=False,
    )


class _TrieRewards(ParametersAsInputs):
    """The backbone on the trie's rows, then the head on each sequence's last row.

    The arguments of `forward` are the graph's inputs, see
    `kwise.engine.model.layouts.trie.TrieLayout`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.config = model.config
        self._has_members = members_of(model.config) > 1

    def forward(
        self,
        weights: list[Tensor],
        input_ids: Tensor,
        positions: Tensor,
        preorder: Tensor,
        subtree_end: Tensor,
        last_rows: Tensor,
        rows_to_cache: Tensor,
        outputs: Tensor,
        queries: list[Tensor],
        keys: list[Tensor],
        past: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        batch = TrieBatch(
            positions=positions,
            preorder=preorder,
            subtree_end=subtree_end,
            queries=queries,
            keys=keys,
            outputs=outputs,
            past=past,
            rows_to_cache=rows_to_cache,
        )
        with self.holding(weights) as model, on_trie(model, batch):
            states = model.base_model(
                input_ids=input_ids[None],
                position_ids=positions[: input_ids.shape[0]][None],
                use_cache=False,
            ).last_hidden_state[0]
            outputs_of_head = model.score(states[last_rows])
        rewards = {_REWARDS: outputs_of_head if self._has_members else outputs_of_head[:, 0]}
        return rewards | {f"present.{layer}.{name}": t for layer, name, t in _named(batch.present)}


class _TrieOnnxConfig(OnnxConfig):
    """The graph's inputs and outputs by name, an example, and the finishing of the file."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DEFAULT_ONNX_OPSET = _TRACED_OPSET
    DUMMY_INPUT_GENERATOR_CLASSES: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, model: PreTrainedModel, traced: ParametersAsInputs) -> None:
        super().__init__(model.config, task="text-classification")
        self.PATCHING_SPECS = patching_specs(model)
        self._traced = traced
        self._example = _example(_layer_widths(model))

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        past = {
            f"past.{layer}.{name}": {0: "num_past"}
            for layer, name, _ in _named(self._example["past"])
        }
        arrays = {name: array for name, array in self._example.items() if isinstance(array, Tensor)}
        lists = {
            f"{name}.{c}": array
            for name in ("queries", "keys")
            for c, array in enumerate(self._example[name])
        }
        dynamic = {
            name: {i: f"{name}_{i}" for i in range(array.ndim)}
            for name, array in (arrays | lists).items()
        }
        return {name: {} for name in self._weight_inputs} | dynamic | past

    @property
    def _weight_inputs(self) -> list[str]:
        return [f"weights.{i}" for i in range(len(self._traced.names))]

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        present = {
            f"present.{layer}.{name}": {0: "num_rows_to_cache"}
            for layer, name, _ in _named(self._example["past"])
        }
        return {_REWARDS: {0: "num_sequences"}} | present

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        return {"weights": self._traced.weights} | self._example

    def fix_dynamic_axes(self, model_path: Path, **_: Any) -> None:
        path = Path(model_path)
        model = read_graph(path)
        for node in model.graph:
            if node.domain == PLACEHOLDER_DOMAIN:
                node.domain = ""
        del model.opset_imports[PLACEHOLDER_DOMAIN]
        model.opset_imports[""] = _ATTENTION_OPSET
        attach_weights(model.graph, self._weight_inputs, self._traced.names, self._traced.weights)
        write_graph(model, path)


def _named(layers: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, str, Tensor]]:
    """Return (layer, "key" or "value", tensor) for each layer's keys and values."""
    return [
        (layer, name, t)
        for layer, pair in enumerate(layers)
        for name, t in zip(("key", "value"), pair, strict=True)
    ]


def _example(widths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return a small batch to trace with.

    Two prompts with several responses each, the first part of one prompt as past entries, and tiles
    of different sizes in several groups.

    Args:
        widths: the width of each layer's keys and of its values.
    """
    prompts = np.arange(3, 23), np.arange(3, 100)
    sequences = [
        np.concatenate([prompt, np.full(length, 5 + length)])
        for prompt in prompts
        for length in (12, 40, 71)
    ]
    trie = build_trie([sequence % 32 for sequence in sequences])
    past = np.full(trie.num_nodes, NOT_PAST)
    past[:10] = np.arange(10)
    packed = pack(trie, NUM_TILE_GROUPS, past, 10)
    tensors = {name: torch.from_numpy(array) for name, array in packed.arrays.items()}
    flat = {name: tensor for name, tensor in tensors.items() if "." not in name}
    return flat | {
        "rows_to_cache": torch.arange(5),
        "queries": [tensors[f"queries.{group}"] for group in range(NUM_TILE_GROUPS)],
        "keys": [tensors[f"keys.{group}"] for group in range(NUM_TILE_GROUPS)],
        "past": [(torch.zeros(10, key), torch.zeros(10, value)) for key, value in widths],
    }


def _layer_widths(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Measure the width of each layer's keys and of its values (heads times head size).

    It runs a pass over two tokens, because GPT-2 treats a single token as a query without a causal
    mask.
    """
    packed = pack(build_trie([np.array([3, 4])]), 1).arrays
    tensors = {name: torch.from_numpy(array) for name, array in packed.items()}
    batch = TrieBatch(
        positions=tensors["positions"],
        preorder=tensors["preorder"],
        subtree_end=tensors["subtree_end"],
        queries=[tensors["queries.0"]],
        keys=[tensors["keys.0"]],
        outputs=tensors["outputs"],
    )
    with torch.inference_mode(), on_trie(model, batch):
        model.base_model(
            input_ids=tensors["input_ids"][None],
            position_ids=tensors["positions"][None],
            use_cache=False,
        )
    return [(key.shape[1], value.shape[1]) for key, value in batch.present]
