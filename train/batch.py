"""Rankings as tokens, and batches of them. The unit is the ranking: a batch has all K responses of a prompt or none.

Dimensions: B rankings; K responses of a ranking; S = ΣK sequences; T tokens of the longest sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kwise.engine.types import TokenIds
from kwise.train.rankings import MAX_PROBLEMS, Ranking, RankingsError
from kwise.train.tokenizer import token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRanking:
    """A ranking and the token ids of its K conversations, in the order of the responses."""

    ranking: Ranking
    input_ids: tuple[TokenIds, ...]


class Batch(TypedDict):
    """What a step reads; a dict because Hugging Face's `Trainer` moves dicts of tensors between devices."""

    input_ids: Tensor  # int64[S, T], padded on the right
    attention_mask: Tensor  # int64[S, T], 0 on padding
    ranks: Tensor  # int64[S]
    group_sizes: Tensor  # int64[B], the K of each ranking


def tokenize_rankings(
    rankings: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int | None, skip_overlong: bool
) -> list[TokenizedRanking]:
    """The rankings whose K conversations all have at most `max_tokens` tokens (None: no limit).

    A ranking with a longer one is left out whole if `skip_overlong`: without that response it would be another ranking,
    and a truncated response is not what was ranked.

    Raises:
        RankingsError: a conversation is too long and `skip_overlong` is False; ends with the padding token, so that its
            reward would be read at the wrong place; or has a turn that the chat template refuses.
    """
    tokenized: list[TokenizedRanking] = []
    problems: list[str] = []
    for ranking in rankings:
        try:
            input_ids = tuple(tuple(token_ids(tokenizer, conversation)) for conversation in ranking.conversations())
        except TemplateError as error:
            problems.append(f"{ranking.origin}: prompt: the chat template refuses it: {error}")
            continue
        longest = max(range(len(input_ids)), key=lambda index: len(input_ids[index]))
        if any(ids[-1] == tokenizer.pad_token_id for ids in input_ids):
            problems.append(f"{ranking.origin}: responses: one ends with the padding token {tokenizer.pad_token!r}")
        elif max_tokens is None or len(input_ids[longest]) <= max_tokens:
            tokenized.append(TokenizedRanking(ranking=ranking, input_ids=input_ids))
        elif not skip_overlong:
            length = len(input_ids[longest])
            problems.append(f"{ranking.origin}: responses[{longest}]: {length} tokens; the limit is {max_tokens}")
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise RankingsError(problems)
    return tokenized


def pad(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """(input_ids int64[S, T], attention_mask int64[S, T]) of `sequences`, padded on the right."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    lengths_S = torch.tensor([len(sequence) for sequence in sequences])
    # From the lengths, not from the ids: the padding token may occur inside a conversation.
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths_S[:, None]).long()
    return input_ids, attention_mask


def collate(rankings: Sequence[TokenizedRanking], pad_token_id: int) -> Batch:
    """One batch of B rankings, their S sequences one after another."""
    input_ids, attention_mask = pad([ids for ranking in rankings for ids in ranking.input_ids], pad_token_id)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        ranks=torch.tensor([rank for tokenized in rankings for rank in tokenized.ranking.ranks]),
        group_sizes=torch.tensor([len(tokenized.input_ids) for tokenized in rankings]),
    )
