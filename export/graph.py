"""A checkpoint → model.onnx, through Optimum's own export functions.

`trie`: an `OnnxConfig` of ours given to `optimum.exporters.onnx.export`. Optimum calls `fix_dynamic_axes` on the written file;
there the placeholder for Attention becomes ONNX's own operator of opset 23, which the TorchScript exporter cannot name.
`padded`: Optimum's stock text-classification export, for bidirectional models and those with an attention of their own.
"""

import inspect
import warnings
from collections.abc import Iterator
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
from kwise.engine.packing import build_trie, pack
from kwise.export.attention import PLACEHOLDER_DOMAIN, on_trie

# Calls of Attention a layer. More fit tiles' key lengths closer, and cost the start of a kernel each.
NUM_CLASSES = 4
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
    config = _TrieOnnxConfig(model.config, task="text-classification")
    with _without_tracer_warnings():
        optimum_export(_TrieRewards(model), config, directory / MODEL, opset=_TRACED_OPSET)
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
        ends: Tensor,
        last_rows: Tensor,
        outputs: Tensor,
        queries_0: Tensor,
        keys_0: Tensor,
        queries_1: Tensor,
        keys_1: Tensor,
        queries_2: Tensor,
        keys_2: Tensor,
        queries_3: Tensor,
        keys_3: Tensor,
    ) -> dict[str, Tensor]:
        arrays = {name: value for name, value in locals().items() if isinstance(value, Tensor)}
        with on_trie(self.model, arrays, NUM_CLASSES):
            states = self.model.base_model(
                input_ids=input_ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state[0]
        return {"rewards": self.model.score(states[last_rows])[:, 0]}


class _TrieOnnxConfig(OnnxConfig):
    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DEFAULT_ONNX_OPSET = _TRACED_OPSET
    DUMMY_INPUT_GENERATOR_CLASSES: ClassVar[tuple[Any, ...]] = ()

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {name: {i: f"{name}_{i}" for i in range(array.ndim)} for name, array in _EXAMPLE.items()}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"rewards": {0: "num_sequences"}}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array) for name, array in _EXAMPLE.items()}

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


def _example() -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """A small batch to trace with: two prompts of several responses, tiles of unlike sizes in every class."""
    prompts = np.arange(3, 23), np.arange(3, 100)
    sequences = [np.concatenate([prompt, np.full(length, 5 + length)]) for prompt in prompts for length in (12, 40, 71)]
    return pack(build_trie([sequence % 32 for sequence in sequences]), NUM_CLASSES)


_EXAMPLE = _example()
