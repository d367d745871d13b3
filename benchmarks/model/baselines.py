"""The baselines of the benchmarks: Optimum's stock padded graph, and transformers."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact.read import read_artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence

# With more rows the attention of a padded batch would need many GB. Such a group is extrapolated:
# one of its sequences is run and its time multiplied by K.
MAX_PADDED_ROWS = 12_000
# transformers' names of the precisions that it has. For the others it runs in fp32.
_DTYPES = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


def stock_session(checkpoint: str, threads: int) -> GraphSession:
    """Export Optimum's stock padded graph in fp32 to a temporary directory and open it."""
    from kwise.export.config import ExportConfig, Layout
    from kwise.export.exporter import export

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "stock"
        export(ExportConfig(checkpoint=checkpoint, artifact=str(path), layout=Layout.PADDED))
        return GraphSession(read_artifact(path), threads=threads)


class TransformersModel:
    """A checkpoint in transformers, which computes a group as a padded batch of K."""

    def __init__(
        self, checkpoint: str, device: str, dtype: str, *, is_random: bool = False
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        self.name = f"transformers {dtype}, torch {torch.__version__}"
        self._torch, self._device = torch, device
        numbers = getattr(torch, dtype)
        if is_random:
            model = AutoModelForSequenceClassification.from_config(
                AutoConfig.from_pretrained(checkpoint), dtype=numbers
            )
        else:
            model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=numbers)
        self._model = model.to(device).eval()

    @classmethod
    def load(
        cls, checkpoint: str, device: str, precision: Precision, *, is_random: bool = False
    ) -> "TransformersModel | None":
        """Load a checkpoint in `precision`; return None without one, or if torch has no CUDA.

        is_random: the checkpoint has no weights, and random ones do.
        """
        if not checkpoint:
            return None
        import torch

        if device != "cpu" and not torch.cuda.is_available():
            print(f"skipped: transformers: torch {torch.__version__} has no CUDA")
            return None
        return cls(checkpoint, device, _DTYPES.get(precision, "float32"), is_random=is_random)

    def run(self, group: Sequence[EncodedSequence]) -> tuple[float, NDArray[np.float32]]:
        """Return (seconds from ids to rewards, both in host memory; rewards float32[K])."""
        torch = self._torch
        lengths = np.array([len(sequence.token_ids) for sequence in group])
        ids = np.full((len(group), lengths.max()), self._model.config.pad_token_id or 0, np.int64)
        for row, sequence in enumerate(group):
            ids[row, : lengths[row]] = sequence.token_ids
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        started = perf_counter()
        with torch.inference_mode():
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            on_device = {name: tensor.to(self._device) for name, tensor in inputs.items()}
            logits = self._model(**on_device).logits
            # Copying to the host waits for the device.
            rewards: NDArray[np.float32] = logits[:, 0].float().cpu().numpy()
        return perf_counter() - started, rewards
