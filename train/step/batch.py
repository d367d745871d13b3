"""Rankings as token ids, and batches of them.

The unit is the ranking: a batch has all K responses of a prompt or none.

Dimensions: B rankings; K responses of a ranking; S = ΣK sequences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kwise.library_errors import cause_of, is_foreign
from kwise.train.checkpoint.ids import id_without_row
from kwise.train.model.layout import Layout
from kwise.train.model.tokenizer import token_ids
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.train.step.text_regulariser import prompt_length, text_tensors
from kwise.types import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRanking:
    """A ranking and the token ids of its K conversations, in the order of the responses.

    Attributes:
        counts: False for a filler, which is computed and has a weight of 0: processes that share an
            epoch must run the same number of passes.
        prompt_length: the number of tokens before the best response; None without the text
            regulariser.
    """

    ranking: Ranking
    input_ids: tuple[TokenIds, ...]
    counts: bool = True
    prompt_length: int | None = None


Batch = dict[str, Tensor]
"""The tensors of a step: those of `Layout.lay_out`; ranks, int64[S]; scores, float32[S], NaN for
rankings without scores; group_sizes, int64[B], the K of each ranking; weights, float32[B], 0 for a
filler and else 1; with the text regulariser also those of `text_tensors`.
"""


def tokenize_rankings(
    rankings: Sequence[Ranking],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None,
    skip_overlong: bool,
    with_text: bool = False,
    num_rows: int | None = None,
) -> list[TokenizedRanking]:
    """Return the rankings whose K conversations all have at most `max_tokens` tokens.

    A ranking with a longer one is skipped whole if `skip_overlong`: without that response it would
    be another ranking, and a truncated response is not what was ranked.

    Args:
        max_tokens: None for no limit.
        with_text: find out where the best response begins, for the text regulariser.
        num_rows: rows of the model's embeddings; None if every token has one.

    Raises:
        RankingsError: a conversation is too long and `skip_overlong` is False; it has a token
            without a row in the embeddings; it ends with the
            padding token, so that its reward would be read at the wrong position; the chat template
            refuses one of its messages; or, `with_text`, no token precedes the best response, so
            that nothing predicts its first token.
    """
    tokenized: list[TokenizedRanking] = []
    problems: list[str] = []
    for ranking in rankings:
        try:
            input_ids = tuple(
                tuple(token_ids(tokenizer, conversation))
                for conversation in ranking.conversations()
            )
        except Exception as error:  # a template can raise any, such as ValueError for a role
            if not is_foreign(error):
                raise
            cause = cause_of(error)
            problems.append(f"{ranking.origin}: prompt: the chat template refuses it: {cause}")
            continue
        longest = max(range(len(input_ids)), key=lambda index: len(input_ids[index]))
        without_row = [
            f"{ranking.origin}: responses[{index}]: {problem}"
            for index, ids in enumerate(input_ids)
            if num_rows is not None and (problem := id_without_row(ids, tokenizer, num_rows))
        ]
        if without_row:
            problems.append(without_row[0])
        elif any(ids[-1] == tokenizer.pad_token_id for ids in input_ids):
            problems.append(
                f"{ranking.origin}: responses: one ends with the padding token "
                f"{tokenizer.pad_token!r}"
            )
        elif max_tokens is None or len(input_ids[longest]) <= max_tokens:
            best = input_ids[ranking.ranks.index(1)]
            length = prompt_length(tokenizer, ranking.prompt, best) if with_text else None
            if length == 0:
                problems.append(
                    f"{ranking.origin}: prompt: --text-regulariser needs a token before the best "
                    "response"
                )
            tokenized.append(
                TokenizedRanking(ranking=ranking, input_ids=input_ids, prompt_length=length)
            )
        elif not skip_overlong:
            problems.append(
                f"{ranking.origin}: responses[{longest}]: {len(input_ids[longest])} tokens; "
                f"the limit is {max_tokens}"
            )
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise RankingsError(problems)
    return tokenized


def collate(rankings: Sequence[TokenizedRanking], layout: Layout) -> Batch:
    """Return one batch of B rankings, the sequences of one ranking after another."""
    sequences = [ids for ranking in rankings for ids in ranking.input_ids]
    sizes = [len(tokenized.input_ids) for tokenized in rankings]
    ranks = [rank for tokenized in rankings for rank in tokenized.ranking.ranks]
    scores = [
        score
        for tokenized, size in zip(rankings, sizes, strict=True)
        for score in tokenized.ranking.scores or [math.nan] * size
    ]
    batch = layout.lay_out(sequences) | {
        "ranks": torch.tensor(ranks),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "group_sizes": torch.tensor(sizes),
        "weights": torch.tensor([float(tokenized.counts) for tokenized in rankings]),
    }
    lengths = [item.prompt_length for item in rankings if item.prompt_length is not None]
    if lengths:
        starts = accumulate(sizes[:-1], initial=0)
        best = [
            start + tokenized.ranking.ranks.index(1)
            for start, tokenized in zip(starts, rankings, strict=True)
        ]
        batch |= text_tensors(batch, best, lengths)
    return batch
