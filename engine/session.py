"""One model on one device: token sequences in, raw rewards out. ONNX Runtime stays in this file.

A session is synchronous and used by one thread. The two layouts differ only in how a batch becomes the graph's inputs and
in what a batch costs.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.artifact import Artifact
from kwise.engine.conversation import EncodedSequence
from kwise.engine.errors import ConfigError
from kwise.engine.packing import build_trie, pack


class Session(Protocol):
    """What the batcher runs."""

    runtime: str  # for people: runtime, version, device

    def run(self, batch: Sequence[EncodedSequence]) -> tuple[NDArray[np.float32], int]:
        """Raw rewards float32[B] of the batch's sequences, in order, and the number of token rows computed."""


class OnnxSession:
    """ONNX Runtime on CPU or CUDA.

    threads: intra-op threads, 0 for one per core. device: "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the device is unknown, or this build of ONNX Runtime has no provider for it.
    """

    def __init__(self, artifact: Artifact, *, threads: int = 0, device: str = "cpu") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = ort.InferenceSession(artifact.model_path, options, providers=_providers(device))
        self._manifest = artifact.manifest
        self._input_names = {node.name for node in self._session.get_inputs()}
        self.runtime = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"

    def run(self, batch: Sequence[EncodedSequence]) -> tuple[NDArray[np.float32], int]:
        inputs, num_rows = self._trie_inputs(batch) if self._manifest.layout == "trie" else self._padded_inputs(batch)
        (rewards,) = self._session.run(None, inputs)
        rewards = np.asarray(rewards, np.float32).reshape(-1)
        if len(rewards) != len(batch):
            raise RuntimeError(f"the graph answered {len(batch)} sequences with {len(rewards)} rewards")
        return rewards, num_rows

    def _trie_inputs(self, batch: Sequence[EncodedSequence]) -> tuple[dict[str, NDArray[np.int64]], int]:
        trie = build_trie([sequence.token_ids for sequence in batch])
        return pack(trie, self._manifest.num_classes), trie.num_rows

    def _padded_inputs(self, batch: Sequence[EncodedSequence]) -> tuple[dict[str, NDArray[np.int64]], int]:
        """input_ids, attention_mask, token_type_ids: int64[B, longest], padded on the right."""
        shape = (len(batch), max(len(sequence.token_ids) for sequence in batch))
        arrays = {
            "input_ids": np.full(shape, self._manifest.pad_token_id or 0, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, sequence in enumerate(batch):
            length = len(sequence.token_ids)
            arrays["input_ids"][row, :length] = sequence.token_ids
            arrays["attention_mask"][row, :length] = 1
            if sequence.type_ids is not None:
                arrays["token_type_ids"][row, :length] = sequence.type_ids
        return {name: array for name, array in arrays.items() if name in self._input_names}, shape[0] * shape[1]


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return ["CPUExecutionProvider"]
    if kind != "cuda" or not (index or "0").isdigit():
        raise ConfigError(f"--device is {device!r}; it must be cpu, cuda or cuda:N")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ConfigError("--device cuda needs onnxruntime-gpu: install 'kwise[engine-gpu]' in an environment of its own")
    # CPU second: shape arithmetic runs there, and the golden check catches a model that fell back whole.
    return [("CUDAExecutionProvider", {"device_id": index or "0"}), "CPUExecutionProvider"]
