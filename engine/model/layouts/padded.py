"""The layouts of Optimum's stock export: a row of tokens per sequence, and no prompt cache.

The graph runs for one sequence at a time (`SeparateLayout`) if the model's rewards depend on
padding or on the other sequences of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from kwise.engine.artifact.manifest import GraphContract, Manifest
from kwise.engine.model.batch_builder import (
    BatchBuilder,
    PaddedBatchBuilder,
    SeparateBatchBuilder,
)
from kwise.engine.model.layouts.protocol import Arrays, Pass, Prepared, rewards_of
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.runtime.protocol import Graph, Shape
from kwise.engine.sequence import EncodedSequence


class PaddedLayout:
    """One row of tokens per sequence, padded on the right to the longest. Nothing is reused.

    It needs no shape buckets: its batches are of similar lengths, and a length beyond a model's
    positions is an error.
    """

    pads_sequences: ClassVar[bool] = True
    bucket: ClassVar[Callable[[Graph], Graph] | None] = None

    def __init__(
        self, manifest: Manifest, contract: GraphContract, inputs: Mapping[str, Shape]
    ) -> None:
        self._reward_output = contract.reward_output
        self._num_members = manifest.num_members
        self._pad_token_id = manifest.pad_token_id or 0
        self._names = inputs.keys()

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        return PaddedBatchBuilder()

    def inputs(self, batch: Sequence[EncodedSequence]) -> Arrays:
        """Return those of input_ids, attention_mask and token_type_ids that the graph has.

        Each is int64[B, length of the longest sequence].
        """
        shape = (len(batch), max(len(sequence.token_ids) for sequence in batch))
        arrays = {
            "input_ids": np.full(shape, self._pad_token_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, sequence in enumerate(batch):
            length = len(sequence.token_ids)
            arrays["input_ids"][row, :length] = sequence.token_ids
            arrays["attention_mask"][row, :length] = 1
            if sequence.type_ids is not None:
                arrays["token_type_ids"][row, :length] = sequence.type_ids
        return {name: array for name, array in arrays.items() if name in self._names}

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        inputs = self.inputs(batch)
        run_graph = graph.prepare(inputs)

        def run(started: Callable[[], None]) -> Pass:
            started()
            rewards = rewards_of(run_graph()[self._reward_output], self._num_members)
            return Pass(rewards=rewards, num_rows=inputs["input_ids"].size)

        return Prepared(run=run)


class SeparateLayout(PaddedLayout):
    """Each sequence in a run of its own, without padding.

    For models whose reward depends on the batch: BART reads it at the last end-of-sequence token
    and needs the same number of them in all sequences, ConvBERT convolves over the padding.
    """

    pads_sequences: ClassVar[bool] = False

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        return SeparateBatchBuilder()

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        prepare = super().prepare
        prepared = [prepare(graph, [sequence], cache) for sequence in batch]

        def run(started: Callable[[], None]) -> Pass:
            started()
            passes = [each.run(_nothing) for each in prepared]
            return Pass(
                rewards=np.concatenate([each.rewards for each in passes]),
                num_rows=sum(each.num_rows for each in passes),
            )

        return Prepared(run=run)


def _nothing() -> None:
    pass
