"""Rankings as token ids, and batches of them.

The unit is the ranking: a batch has all K responses of a prompt or none.

Dimensions: B rankings; K responses of a ranking; S = ΣK sequences; H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kwise.engine.model.pooling import response_start
from kwise.train.checkpoint.ids import id_without_row
from kwise.train.model.batch.layout import Layout
from kwise.train.model.response_header import follows_header
from kwise.train.model.tokenizer import text_token_ids
from kwise.train.rankings.problems import Problems
from kwise.train.rankings.schema import Ranking
from kwise.train.step.head_masks import ONE_HEAD, HeadMask
from kwise.train.step.text_regulariser import prompt_length, text_tensors
from kwise.train.template.changes import TemplateChanges
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRanking:
    """A ranking and the token ids of its K conversations, in the order of the responses.

    Attributes:
        counts: False for a filler, which is computed and has a weight of 0: processes that share an
            epoch must run the same number of passes.
        prompt_length: the number of tokens before the best response; None without the text
            regulariser.
        learning_heads: the heads that learn from the ranking.
    """

    ranking: Ranking
    input_ids: tuple[TokenIds, ...]
    counts: bool = True
    prompt_length: int | None = None
    learning_heads: HeadMask = ONE_HEAD


def num_tokens(rankings: Sequence[TokenizedRanking]) -> int:
    """Return the number of tokens of all conversations of `rankings`."""
    return sum(len(ids) for ranking in rankings for ids in ranking.input_ids)


Batch = dict[str, Tensor]
"""The tensors of a step: those of `Layout.lay_out`; ranks, int64[S]; scores, float32[S], NaN for
rankings without scores; group_sizes, int64[B], the K of each ranking; weights, float32[B], 0 for a
filler and else 1; learning_heads, float32[B, H], 1 or 0; with the text regulariser also those of
`text_tensors`.
"""


def tokenize_rankings(
    rankings: Sequence[Ranking],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None,
    skip_overlong: bool,
    with_text: bool = False,
    template_name: str = "the tokenizer's own",
    num_rows: int | None = None,
    response_header: TokenIds | None = None,
    changes: TemplateChanges | None = None,
) -> list[TokenizedRanking]:
    """Return the rankings whose K conversations all have at most `max_tokens` tokens.

    A ranking with a longer one is skipped whole if `skip_overlong`: without that response it would
    be another ranking, and a truncated response is not what was ranked.

    Args:
        max_tokens: None for no limit.
        with_text: find out where the best response begins, for the text regulariser.
        template_name: names the chat template in messages.
        num_rows: rows of the model's embeddings; None if every token has one.
        changes: counts what the chat template leaves out.

    Raises:
        RankingsError: a conversation is too long and `skip_overlong` is False; it has no tokens, or
            a token without a row in the embeddings; it ends with the padding token, so that its
            reward would be read at the wrong position; the chat template refuses one of its
            messages; two responses with different ranks are the same tokens; or, `with_text`, no
            token precedes the best response, so that nothing predicts its first token.
    """
    tokenized: list[TokenizedRanking] = []
    problems = Problems()
    for ranking in rankings:
        try:
            texts = _render(ranking, tokenizer, changes)
            input_ids = tuple(tuple(text_token_ids(tokenizer, text)) for text in texts)
            longest = max(range(len(input_ids)), key=lambda index: len(input_ids[index]))
            if max_tokens is not None and (length := len(input_ids[longest])) > max_tokens:
                if skip_overlong:
                    continue
                raise _Unusable(
                    f"responses[{longest}]: {length} tokens; the limit is {max_tokens}",
                    reason=f"over the limit of {max_tokens} tokens (see --overlong)",
                )
            _check_tokens(ranking, input_ids, tokenizer, template_name, num_rows)
            if response_header is not None:
                _check_response_starts(ranking, input_ids, tokenizer, response_header)
            start = _response_start(ranking, input_ids, tokenizer) if with_text else None
        except _Unusable as problem:
            problems.add(
                f"{ranking.origin}: {problem}", origin=ranking.origin, reason=problem.reason
            )
        else:
            tokenized.append(
                TokenizedRanking(ranking=ranking, input_ids=input_ids, prompt_length=start)
            )
    if problems:
        file, _, _ = rankings[0].origin.rpartition(":")
        problems.raise_if_any(file, len(rankings), "rankings")
    return tokenized


class _Unusable(Exception):
    """A problem of one ranking, as "field: problem". `tokenize_rankings` adds the line.

    reason: what to count it under; empty for the problem itself.
    """

    def __init__(self, problem: str, *, reason: str = "") -> None:
        super().__init__(problem)
        self.reason = reason


def _render(
    ranking: Ranking, tokenizer: PreTrainedTokenizerBase, changes: TemplateChanges | None
) -> list[str]:
    """Return the K conversations as the chat template renders them."""
    texts = []
    for index, conversation in enumerate(ranking.conversations()):
        try:
            text = render(tokenizer, conversation)
        except TemplateRefusal as refusal:
            raise _Unusable(f"prompt: the chat template refuses it: {refusal}") from None
        if changes is not None:
            changes.add(ranking, index, conversation, text)
        texts.append(text)
    return texts


def _check_tokens(
    ranking: Ranking,
    input_ids: Sequence[TokenIds],
    tokenizer: PreTrainedTokenizerBase,
    template_name: str,
    num_rows: int | None,
) -> None:
    """Raise _Unusable if the rewards of these conversations could not be right."""
    first_index: dict[TokenIds, int] = {}
    for index, ids in enumerate(input_ids):
        if not ids:
            raise _Unusable(f"responses[{index}]: the conversation has no tokens")
        if num_rows is not None and (problem := id_without_row(ids, tokenizer, num_rows)):
            raise _Unusable(f"responses[{index}]: {problem}")
        if ids[-1] == tokenizer.pad_token_id:
            raise _Unusable(f"responses: one ends with the padding token {tokenizer.pad_token!r}")
        first = first_index.setdefault(ids, index)
        if ranking.ranks[first] != ranking.ranks[index]:
            raise _Unusable(
                f"responses: [{first}] and [{index}] are the same tokens under this chat template, "
                f"with different ranks ({template_name}); remove one of them, or give a "
                "--chat-template that keeps the difference",
                reason="two responses are the same tokens, with different ranks",
            )


def _check_response_starts(
    ranking: Ranking,
    input_ids: Sequence[TokenIds],
    tokenizer: PreTrainedTokenizerBase,
    header: TokenIds,
) -> None:
    """Raise _Unusable if mean pooling would not read all tokens of a response, and those alone."""
    starts = [response_start(ids, header) for ids in input_ids]
    first = min(starts)
    name = f"{tokenizer.decode(header)!r} (--pooling mean)"
    index = starts.index(first)
    if not follows_header(tokenizer, ranking.prompt, input_ids[index], header):
        raise _Unusable(
            f"responses[{index}]: the chat template does not write {name} between the prompt and "
            "the response",
            reason="nothing shows where a response begins (--pooling mean)",
        )
    for index, start in enumerate(starts):
        if start > first:
            raise _Unusable(
                f"responses[{index}]: it contains {name}, after which alone it would be read",
                reason="a response contains what precedes every response (--pooling mean)",
            )


def _response_start(
    ranking: Ranking, input_ids: Sequence[TokenIds], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return the number of tokens before the best response."""
    best = input_ids[ranking.ranks.index(1)]
    try:
        length = prompt_length(tokenizer, ranking.prompt, best)
    except TemplateRefusal as refusal:
        raise _Unusable(
            "prompt: --text-regulariser renders the prompt alone, and the chat template refuses "
            f"it: {refusal}"
        ) from None
    if length == 0:
        raise _Unusable("prompt: --text-regulariser needs a token before the best response")
    return length


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
        "learning_heads": torch.tensor([item.learning_heads for item in rankings]).float(),
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
