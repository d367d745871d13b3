"""What the trie's graphs are measured beside, each made of the same checkpoint."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact import read_artifact
from kwise.engine.model.precision import Precision
from kwise.engine.model.session import GraphSession
from kwise.engine.sequence import EncodedSequence

# Beyond so many rows the attention of a padded batch would need many GB: it is measured by one of its sequences, times K.
MOST_PADDED_ROWS = 12_000


def stock_session(checkpoint: str, threads: int) -> GraphSession:
    """Optimum's stock padded graph, in fp32 on ONNX Runtime; the artifact is not kept."""
    from kwise.export.exporter import ExportConfig, Layout, export

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "stock"
        export(ExportConfig(checkpoint=checkpoint, artifact=str(path), layout=Layout.PADDED))
        return GraphSession(read_artifact(path), threads=threads)


# transformers' names of the precisions that it has too; for others it runs in fp32.
_DTYPES = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


class Transformers:
    """transformers on the same device, in the same precision, a padded batch of K."""

    def __init__(self, checkpoint: str, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self.name = f"transformers {dtype}, torch {torch.__version__}"
        self._torch, self._device = torch, device
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype)
        )
        self._model = model.to(device).eval()

    @classmethod
    def load(cls, checkpoint: str, device: str, precision: Precision) -> "Transformers | None":
        """None where no checkpoint is given, or torch does not know the device; the latter is said."""
        if not checkpoint:
            return None
        import torch

        if device != "cpu" and not torch.cuda.is_available():
            print(f"torch {torch.__version__} has no CUDA: transformers is not measured beside")
            return None
        return cls(checkpoint, device, _DTYPES.get(precision, "float32"))

    def run(self, group: Sequence[EncodedSequence]) -> tuple[float, NDArray[np.float32]]:
        """(seconds from ids on the host to rewards on the host, rewards float32[K])."""
        torch = self._torch
        lengths = np.array([len(sequence.token_ids) for sequence in group])
        ids = np.full((len(group), lengths.max()), self._model.config.pad_token_id or 0, np.int64)
        for row, sequence in enumerate(group):
            ids[row, : lengths[row]] = sequence.token_ids
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        started = perf_counter()
        with torch.inference_mode():
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            logits = self._model(
                **{name: tensor.to(self._device) for name, tensor in inputs.items()}
            ).logits
            rewards: NDArray[np.float32] = (
                logits[:, 0].float().cpu().numpy()
            )  # waits for the device
        return perf_counter() - started, rewards
