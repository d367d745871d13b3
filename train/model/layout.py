"""The layouts of a batch: its sequences as the trie of all their tokens, or padded.

The K conversations of a ranking share their prompt. In a trie each distinct prefix is one row, so a
pass computes P + ΣR rows instead of K·(P + longest R), forward and backward; on the example
rankings that is 2.65 times fewer. Each row attends to its ancestors (trie_attention.py), and its
position is its depth. `layout_choice.py` chooses the layout of a model once.

Every pass goes through the model's own `forward`, which `TrieLayout.prepare` extends: whatever is
wrapped around it (PEFT, DistributedDataParallel, autocast) treats passes of both layouts alike.

Dimensions: S sequences; T tokens of the longest sequence; N nodes of their trie; M tokens of the
text regulariser.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from kwise.engine.trie import build_trie
from kwise.train.model import trie_attention

_FORWARD_ARGUMENTS = frozenset(
    {
        "input_ids",
        "attention_mask",
        "position_ids",
        "ends",
        "last_nodes",
        "text_nodes",
        "text_targets",
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
    """

    name: ClassVar[str]
    uses_all_weights: ClassVar[bool]
    has_token_states: ClassVar[bool]
    reason: str | None

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> None:
        """Make `model.forward` accept the tensors of `lay_out`."""

    @abstractmethod
    def lay_out(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the arguments of `forward`.

        They are a dict, because Trainer moves dicts of tensors to devices.
        """

    def __str__(self) -> str:
        return self.name if self.reason is None else f"{self.name}, because {self.reason}"


@dataclass(frozen=True, slots=True)
class TrieLayout(Layout):
    """One row for each distinct prefix of the sequences."""

    name = "trie"
    reason = None
    uses_all_weights = True
    has_token_states = True

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
            output = TrieOutput(logits=model.score(states_N[kwargs["last_nodes"]]))
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
        """
        trie = build_trie([np.array(sequence, np.int64) for sequence in sequences])
        return {
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
    """

    name = "padded"
    uses_all_weights = False  # encoders may have a pooler that they do not use
    has_token_states = False

    pad_token_id: int
    reason: str | None = field(default=None, compare=False)

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


@dataclass
class TrieOutput(ModelOutput):
    """The output of a pass over a trie.

    Attributes:
        logits: [S, labels].
        text_log_probs: float32[M], the log-probabilities of `text_targets`, if the batch has them
            (see text_regulariser.py).
    """

    logits: Tensor | None = None
    text_log_probs: Tensor | None = None


def rewards_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the reward of each sequence, float32[S]; see `rewards_and_text_of`."""
    return rewards_and_text_of(model, tensors)[0]


def rewards_and_text_of(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the rewards of a batch, and the log-probabilities of its text.

    The rewards are float32[S]. The log-probabilities are float32[M]; None if the batch has no
    `text_targets`.

    This is the one place where training and evaluation run the model.

    Args:
        model: a sequence-classification model, in any wrappers, that its layout has prepared.
        tensors: from `lay_out` of the same layout; other entries are ignored.
    """
    arguments = {name: tensor for name, tensor in tensors.items() if name in _FORWARD_ARGUMENTS}
    output = model(**arguments)
    return output.logits[:, 0].float(), getattr(output, "text_log_probs", None)


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
