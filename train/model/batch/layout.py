"""The layouts of a batch: the trie of its sequences, padded rows, or one sequence at a time.

The K conversations of a ranking share their prompt. In a trie each distinct prefix is one row, so a
pass computes P + ΣR rows instead of K·(P + longest R), forward and backward; on the example
rankings that is 2.65 times fewer. Each row attends to its ancestors (trie_attention.py), and its
position is its depth. `architecture/layout_choice.py` chooses the layout of a model once.

Every pass goes through the model's own `forward`, which `TrieLayout.prepare` extends: whatever is
wrapped around it (PEFT, DistributedDataParallel, autocast) treats passes of both layouts alike.

Dimensions: S sequences; T tokens of the longest sequence; N nodes of their trie; R tokens that the
head reads with mean pooling (kwise/engine/model/pooling.py); M tokens of the text regulariser.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from kwise.engine.model.pooling import read_tokens
from kwise.engine.trie import build_trie
from kwise.train.model.batch import trie_attention
from kwise.types import TokenIds

_FORWARD_ARGUMENTS = frozenset(
    {
        "input_ids",
        "attention_mask",
        "position_ids",
        "ends",
        "last_nodes",
        "read_nodes",
        "read_places",
        "read_counts",
        "text_nodes",
        "text_targets",
        "alone_ids",
        "alone_lengths",
        "order",
    }
)


class Layout(ABC):
    """A way to lay the sequences of a pass out in tensors.

    Attributes:
        name: for reports.
        uses_all_weights: whether each pass gives every weight a gradient, which
            DistributedDataParallel must know.
        has_token_states: whether `forward` can read the hidden states of inner tokens, which the
            text regulariser needs.
        reason: why the model cannot use a faster layout; None for the fastest.
        max_tokens: the longest conversation whose reward this layout gives, measured; None for no
            limit but the model's own.
    """

    name: ClassVar[str]
    uses_all_weights: ClassVar[bool]
    has_token_states: ClassVar[bool]
    reason: str | None
    max_tokens: int | None

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> None:
        """Make `model.forward` accept the tensors of `lay_out`."""

    @abstractmethod
    def lay_out(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the arguments of `forward`.

        They are a dict, because Trainer moves dicts of tensors to devices.
        """

    def __str__(self) -> str:
        limit = "" if self.max_tokens is None else f", up to {self.max_tokens} tokens"
        reason = "" if self.reason is None else f", because {self.reason}"
        return f"{self.name}{limit}{reason}"


@dataclass(frozen=True, slots=True)
class TrieLayout(Layout):
    """One row for each distinct prefix of the sequences.

    Attributes:
        response_header: the token ids after which a response begins, for mean pooling; None to read
            the last token.
        reason: see `Layout`; max_tokens likewise.
    """

    name = "trie"
    uses_all_weights = True
    has_token_states = True

    response_header: TokenIds | None = None
    reason: str | None = field(default=None, compare=False)
    max_tokens: int | None = None

    def prepare(self, model: PreTrainedModel) -> None:
        """Extend `model.forward`: for the tensors of a trie it returns `TrieOutput`.

        `forward` becomes an attribute of this one model, as accelerate's mixed precision does it:
        its class, its weights and what is saved stay the same. Its attention becomes
        `trie_attention`, which passes all other masks to `sdpa`.
        """
        model.config._attn_implementation = trie_attention.IMPLEMENTATION
        plain_forward = model.forward

        @functools.wraps(plain_forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if "last_nodes" not in kwargs:
                return plain_forward(*args, **kwargs)
            states_N = trie_states(model, kwargs)
            rewards = model.score(states_N[kwargs.get("read_nodes", kwargs["last_nodes"])])
            if "read_counts" in kwargs:
                # In float32: in bfloat16 the mean would be rounded to 8 bits.
                of_tokens = rewards[kwargs["read_places"]].float()
                of_sequences = of_tokens.split(kwargs["read_counts"].tolist())
                rewards = torch.stack([part.mean(0) for part in of_sequences])
            output = TrieOutput(logits=rewards)
            if "text_nodes" in kwargs:
                log_probs_MV = model.kwise_text_head(states_N[kwargs["text_nodes"]]).log_softmax(-1)
                output.text_log_probs = log_probs_MV.gather(1, kwargs["text_targets"][:, None])[
                    :, 0
                ]
            return output

        model.forward = forward

    def lay_out(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the tensors of the trie of `sequences`.

        input_ids, position_ids: int64[1, N]. ends: int64[N]; the descendants of row n are rows n+1
        … ends[n]−1.
        last_nodes: int64[S], the row of each sequence's last token.

        With mean pooling also those of `ReadTokens`: read_nodes, int64[R], the rows that the head
        reads; read_places, int64, the place among them of each token read, of one sequence after
        another; and read_counts, int64[S], the number of these in each sequence.
        """
        trie = build_trie([np.array(sequence, np.int64) for sequence in sequences])
        read = {}
        if self.response_header is not None:
            tokens = read_tokens(trie, sequences, self.response_header)
            read = {
                "read_nodes": torch.from_numpy(tokens.nodes),
                "read_places": torch.from_numpy(tokens.places),
                "read_counts": torch.from_numpy(tokens.counts),
            }
        return {
            **read,
            "input_ids": torch.from_numpy(trie.token_ids)[None],
            "position_ids": torch.from_numpy(trie.depths)[None],
            "ends": torch.from_numpy(trie.subtree_end),
            "last_nodes": torch.from_numpy(trie.last_nodes),
        }


@dataclass(frozen=True, slots=True)
class PaddedLayout(Layout):
    """One row of tokens for each sequence, padded on the right to the longest one.

    Attributes:
        pad_token_id: a token that no sequence ends with.
        reason: why the model cannot run over a trie.
        max_tokens: see `Layout`.
    """

    name = "padded"
    uses_all_weights = False  # encoders may have a pooler that they do not use
    has_token_states = False

    pad_token_id: int
    reason: str | None = field(default=None, compare=False)
    max_tokens: int | None = None

    def prepare(self, model: PreTrainedModel) -> None:
        """Do nothing: these are the arguments of transformers' own `forward`."""

    def lay_out(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return input_ids, int64[S, T], and attention_mask, int64[S, T], 0 on padding."""
        rows = [torch.tensor(sequence) for sequence in sequences]
        input_ids = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=self.pad_token_id
        )
        lengths_S = torch.tensor([len(sequence) for sequence in sequences])
        # From the lengths, not from the ids: the padding token may occur inside a conversation.
        mask = (torch.arange(input_ids.shape[1]) < lengths_S[:, None]).long()
        return {"input_ids": input_ids, "attention_mask": mask}


@dataclass(frozen=True, slots=True)
class SeparateLayout(Layout):
    """Each sequence in a pass of its own, or only the long ones.

    It is slow and always possible. Some models compute another reward if a batch has a longer
    sequence: they pad the positions that they read (XLNet), convolve or pool over padding
    (ConvBERT, Funnel), or change their rotary embeddings with the longest position (longrope).

    Attributes:
        short: the layout of sequences of up to `max_shared` tokens, which share a pass; None if
            none do.
        max_shared: see `short`.
        reason: why the sequences cannot share a pass.
        max_tokens: see `Layout`.
    """

    name = "separate"
    uses_all_weights = False
    has_token_states = False

    short: TrieLayout | PaddedLayout | None = None
    max_shared: int = 0
    reason: str | None = field(default=None, compare=False)
    max_tokens: int | None = None

    def prepare(self, model: PreTrainedModel) -> None:
        """Extend `model.forward`: for the tensors of `lay_out` it returns `TrieOutput`."""
        plain_forward = model.forward
        if self.short is not None:
            self.short.prepare(model)
        shared_forward = model.forward

        @functools.wraps(plain_forward)
        def forward(
            *args: Any,
            alone_ids: Tensor | None = None,
            alone_lengths: Tensor | None = None,
            order: Tensor | None = None,
            **kwargs: Any,
        ) -> Any:
            if alone_ids is None or alone_lengths is None or order is None:
                return shared_forward(*args, **kwargs)
            logits = [shared_forward(**kwargs).logits] if kwargs else []
            for ids, length in zip(alone_ids, alone_lengths.tolist(), strict=True):
                logits.append(plain_forward(**alone(model, ids[None, :length])).logits)
            return TrieOutput(logits=torch.cat(logits)[order])

        model.forward = forward

    def lay_out(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the tensors of the short sequences in their layout, and those of the long ones.

        alone_ids: int64[A, T], the A long sequences, filled with 0. alone_lengths: int64[A].
        order: int64[S], each sequence's place among the short ones followed by the long ones.
        """
        short = [i for i, sequence in enumerate(sequences) if len(sequence) <= self.max_shared]
        short = short if self.short is not None else []
        alone = sorted({*range(len(sequences))} - {*short})
        shared = self.short.lay_out([sequences[i] for i in short]) if self.short and short else {}
        if not alone:
            return shared
        rows = [torch.tensor(sequences[i]) for i in alone]
        return {
            **shared,
            "alone_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "alone_lengths": torch.tensor([len(row) for row in rows]),
            "order": torch.tensor([*short, *alone]).argsort(),
        }

    def __str__(self) -> str:
        if self.short is None:
            return Layout.__str__(self)
        return f"{self.short.name} up to {self.max_shared} tokens, then {Layout.__str__(self)}"


@dataclass
class TrieOutput(ModelOutput):
    """The output of a pass over a trie, or of several passes.

    Attributes:
        logits: [S, labels].
        text_log_probs: float32[M], the log-probabilities of `text_targets`, if the batch has them
            (see text_regulariser.py).
    """

    logits: Tensor | None = None
    text_log_probs: Tensor | None = None


def alone(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Tensor]:
    """Return the arguments with which transformers computes one sequence, int64[1, T].

    The attention mask is what a tokenizer returns beside the ids. Without it XLM and FlauBERT take
    a padding token inside a text for padding. FNet takes none.
    """
    if "attention_mask" not in inspect.signature(type(model).forward).parameters:
        return {"input_ids": input_ids}
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def rewards_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the reward of each sequence, float32[S], the mean over the heads."""
    return rewards_and_text_of(model, tensors)[0].mean(1)


def rewards_and_text_of(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the rewards of a batch, and the log-probabilities of its text.

    The rewards are float32[S, heads]. The log-probabilities are float32[M]; None if the batch has
    no `text_targets`.

    This is the one place where training and evaluation run the model.

    Args:
        model: a sequence-classification model, in any wrappers, that its layout has prepared.
        tensors: from `lay_out` of the same layout; other entries are ignored.
    """
    arguments = {name: tensor for name, tensor in tensors.items() if name in _FORWARD_ARGUMENTS}
    output = model(**arguments)
    return output.logits.float(), getattr(output, "text_log_probs", None)


def trie_states(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states of all rows of a trie, [N, hidden size].

    Raises:
        UnsupportedAttention: the model's attention is not plain causal attention.
    """
    states: Tensor = model.base_model(
        input_ids=tensors["input_ids"],
        position_ids=tensors["position_ids"],
        attention_mask=trie_attention.trie_mask(tensors["ends"]),
    ).last_hidden_state
    return states[0]
