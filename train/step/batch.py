"""Rankings as tokens, and batches of them. The unit is the ranking: a batch has all K responses of a prompt or none.

Dimensions: B rankings; K responses of a ranking; S = ΣK sequences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kwise.train.model.layout import TrainLayout, lay_out, trie_of, trie_tensors
from kwise.train.model.tokenizer import token_ids
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.train.step.text_regulariser import prompt_length, text_tensors
from kwise.types import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRanking:
    """A ranking and the token ids of its K conversations, in the order of the responses.

    counts: False for a filler, which is computed and adds nothing: where several processes share an epoch, all have to run as
    many passes. prompt_length: tokens before the responses, where the text of the best one is to be learnt.
    """

    ranking: Ranking
    input_ids: tuple[TokenIds, ...]
    counts: bool = True
    prompt_length: int | None = None


Batch = dict[str, Tensor]
"""What a step reads: `lay_out` of its sequences, ranks int64[S], scores float32[S] (not a number where a ranking has none),
group_sizes int64[B], the K of each ranking, and weights float32[B], 0 for a filler and else 1; with the text of
the best responses also what `text_tensors` returns."""


def tokenize_rankings(
    rankings: Sequence[Ranking],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None,
    skip_overlong: bool,
    with_text: bool = False,
) -> list[TokenizedRanking]:
    """The rankings whose K conversations all have at most `max_tokens` tokens (None: no limit); `with_text` finds where responses
    begin.

    A ranking with a longer one is left out whole if `skip_overlong`: without that response it would be another ranking,
    and a truncated response is not what was ranked.

    Raises:
        RankingsError: a conversation is too long and `skip_overlong` is False; ends with the padding token, so that its
            reward would be read at the wrong place; has a turn that the chat template refuses; or, `with_text`, begins with the
            response, of which nothing would predict the first token.
    """
    tokenized: list[TokenizedRanking] = []
    problems: list[str] = []
    for ranking in rankings:
        try:
            input_ids = tuple(
                tuple(token_ids(tokenizer, conversation))
                for conversation in ranking.conversations()
            )
        except TemplateError as error:
            problems.append(f"{ranking.origin}: prompt: the chat template refuses it: {error}")
            continue
        longest = max(range(len(input_ids)), key=lambda index: len(input_ids[index]))
        if any(ids[-1] == tokenizer.pad_token_id for ids in input_ids):
            problems.append(
                f"{ranking.origin}: responses: one ends with the padding token {tokenizer.pad_token!r}"
            )
        elif max_tokens is None or len(input_ids[longest]) <= max_tokens:
            best = input_ids[ranking.ranks.index(1)]
            length = prompt_length(tokenizer, ranking.prompt, best) if with_text else None
            if length == 0:
                problems.append(
                    f"{ranking.origin}: prompt: --text-regulariser: no token of it stands before the best response"
                )
            tokenized.append(
                TokenizedRanking(ranking=ranking, input_ids=input_ids, prompt_length=length)
            )
        elif not skip_overlong:
            problems.append(
                f"{ranking.origin}: responses[{longest}]: {len(input_ids[longest])} tokens; the limit is {max_tokens}"
            )
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise RankingsError(problems)
    return tokenized


def collate(rankings: Sequence[TokenizedRanking], layout: TrainLayout, pad_token_id: int) -> Batch:
    """One batch of B rankings, their S sequences one after another."""
    sequences = [ids for ranking in rankings for ids in ranking.input_ids]
    ranks = torch.tensor([rank for tokenized in rankings for rank in tokenized.ranking.ranks])
    given = [
        tokenized.ranking.scores or [math.nan] * len(tokenized.input_ids) for tokenized in rankings
    ]
    scores = torch.tensor([score for group in given for score in group], dtype=torch.float32)
    group_sizes = torch.tensor([len(tokenized.input_ids) for tokenized in rankings])
    weights = torch.tensor([float(tokenized.counts) for tokenized in rankings])
    judged = {"ranks": ranks, "scores": scores, "group_sizes": group_sizes, "weights": weights}
    lengths = [
        tokenized.prompt_length for tokenized in rankings if tokenized.prompt_length is not None
    ]
    if not lengths:
        return lay_out(sequences, layout, pad_token_id) | judged
    firsts = np.cumsum([0, *(len(tokenized.input_ids) for tokenized in rankings[:-1])])
    best = [
        int(first) + tokenized.ranking.ranks.index(1)
        for first, tokenized in zip(firsts, rankings, strict=True)
    ]
    trie = trie_of(sequences)  # `text_head` has refused any other layout
    return trie_tensors(trie) | judged | text_tensors(trie, best, lengths)
