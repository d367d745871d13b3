"""The models that the benchmark of a GPU measures, and the conversations that they score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kwise.benchmarks.gpu.shapes import read_sizes
from kwise.benchmarks.options import Cell, GpuBenchConfig
from kwise.benchmarks.workload import random_sequence, read_trie_artifact
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.devices import parse_devices
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.select import select_backend
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError, InvalidRequest
from kwise.export.parity_conversations import shipped_conversations
from kwise.types import Group, Message

# The order of what matters on a GPU: the precision to serve, its alternative, the reference.
_PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)
_NUM_CONVERSATIONS = 8
_OTHER_RESPONSES = 4
# Lengths that are not alike, from one row bucket of a GPU to several.
_LENGTHS = (40, 70, 90, 120, 150, 200, 260, 400)
_RANDOM_CELLS = (Cell(P=64, R=64, K=9), Cell(P=30, R=20, K=5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to measure.

    Attributes:
        name: for people.
        artifact: its graphs. Those of a shape are not verified.
        checkpoint: a folder with transformers' config.json, and with weights unless `is_random`;
            "" for none.
        factor: the time of the whole model is that of the graph times this.
        is_random: the weights are random, so rewards mean nothing in themselves.
    """

    name: str
    artifact: Artifact
    checkpoint: str
    factor: int = 1
    is_random: bool = False

    @property
    def vocab_size(self) -> int:
        return self.artifact.manifest.vocab_size

    def precisions(self, device: str) -> Iterator[tuple[Precision, Runtime]]:
        """Yield the precisions that the device computes, the most important one first."""
        kind = parse_devices(device)[0].kind
        available = self.artifact.manifest.available_precisions
        for precision in _PRECISIONS:
            try:
                yield select_backend((precision,), Runtime.AUTO, kind, available, cpu_has_bf16)
            except ConfigError as error:
                print(f"{self.name}: skipped: {error}", flush=True)

    def session(self, precision: Precision, runtime: Runtime, device: str) -> GraphSession:
        """Open a session without a prompt cache, so that passes do not help each other."""
        return GraphSession(
            self.artifact,
            runtime=runtime,
            precision=precision,
            device=device,
            threads=EngineConfig().runtime_threads,
        )

    def groups(self) -> list[list[EncodedSequence]]:
        """Return conversations to compare rewards on: real ones, or random ids for a shape."""
        if self.is_random:
            return [cell.group(self.vocab_size, 0) for cell in _RANDOM_CELLS]
        encoder = new_encoder(self.artifact, EngineConfig())
        pairs = shipped_conversations()
        groups = []
        for number, (prompt, response) in enumerate(pairs[:_NUM_CONVERSATIONS]):
            others = (pairs[number + step + 1][1] for step in range(_OTHER_RESPONSES))
            messages = (Message(role="user", content=prompt),)
            outcomes = encoder.encode(Group(prompt=messages, responses=(response, *others)))
            groups.append([o for o in outcomes if not isinstance(o, InvalidRequest)])
        return groups

    def unlike(self) -> list[EncodedSequence]:
        """Return conversations of unlike lengths that share no prompt."""
        if not self.is_random:
            return [group[0] for group in self.groups()]
        rng = np.random.default_rng(3)
        return [random_sequence(length, self.vocab_size, rng) for length in _LENGTHS]


def subjects(config: GpuBenchConfig, filled: Path) -> Iterator[Subject]:
    """Yield the artifact of the user, if there is one, and the shapes in the folder `filled`."""
    if config.artifact:
        artifact = read_trie_artifact(config.artifact)
        yield Subject(name=artifact.manifest.name, artifact=artifact, checkpoint=config.checkpoint)
    for name in config.models if config.shapes else ():
        if not (filled / name).is_dir():
            print(f"{name}: skipped: it did not get its weights", flush=True)
            continue
        sizes = read_sizes(filled / name)
        yield Subject(
            name=f"{name} (random weights)",
            artifact=Artifact(path=filled / name, manifest=sizes.manifest, golden=()),
            checkpoint=str(filled / name),
            factor=sizes.factor,
            is_random=True,
        )


def batch_of(
    cell: Cell, max_rows: int, vocab_size: int, first_seed: int = 0
) -> Sequence[EncodedSequence]:
    """Return groups of a cell that fill a batch of `max_rows` rows.

    The last group may lack responses. A batch holds at least one sequence.
    """
    batch: list[EncodedSequence] = []
    rows, seed = 0, first_seed
    while True:
        room = (max_rows - rows - cell.P) // cell.R
        if room < 1 and batch:
            return batch
        part = cell.group(vocab_size, seed)[: max(room, 1)]
        batch += part
        rows += cell.P + len(part) * cell.R
        seed += 1
