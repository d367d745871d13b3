"""The figures of a file of rankings, gathered one ranking at a time.

Kept of each ranking are hashes, ranks and lengths, never the texts: a file may be larger than memory.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from kwise.train.data.agreement import Agreement, agreement
from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """In characters."""

    median: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Shares are None where there is nothing to divide by."""

    num_rankings: int
    num_prompts: int  # distinct
    num_responses: int
    num_pairs: int  # C(K,2) summed, tied ones too
    num_by_k: dict[int, int]
    tied_pair_share: float | None
    num_all_tied: int  # rankings that are one tie throughout
    prompt_characters: Lengths
    response_characters: Lengths
    num_repeated_rankings: int  # same prompt, same responses with the same ranks as an earlier one
    num_repeated_responses: int  # the same text as an earlier response of the ranking
    longer_wins_share: (
        float | None
    )  # of the untied pairs of different length; 0.5: length tells nothing
    agreement: Agreement


class Gatherer:
    """Takes rankings and says what they were."""

    def __init__(self) -> None:
        self._by_prompt: dict[int, list[dict[int, int]]] = defaultdict(list)
        self._num_by_prompt_key: Counter[int] = Counter()
        self._seen: set[int] = set()
        self._num_by_k: Counter[int] = Counter()
        self._num_pairs = self._num_tied = self._num_all_tied = 0
        self._num_repeated_rankings = self._num_repeated_responses = 0
        self._num_longer_wins = self._num_longer_loses = 0
        self._prompt_characters, self._response_characters = array("q"), array("q")

    @property
    def num_by_prompt_key(self) -> Counter[int]:
        """How many rankings have a prompt, by `prompt_key`."""
        return self._num_by_prompt_key

    def add(self, ranking: Ranking) -> None:
        prompt = _hash(
            *(part for message in ranking.prompt for part in (message.role, message.content))
        )
        rank_of = {
            _hash(text): rank for text, rank in zip(ranking.responses, ranking.ranks, strict=True)
        }
        self._by_prompt[prompt].append(rank_of)
        self._num_by_prompt_key[prompt_key(ranking.prompt)] += 1
        whole = _hash(
            str(prompt),
            *sorted(f"{text} {rank}" for text, rank in rank_of.items()),
            str(len(ranking.responses)),
        )
        self._num_repeated_rankings += whole in self._seen
        self._seen.add(whole)
        num = len(ranking.responses)
        self._num_by_k[num] += 1
        self._num_repeated_responses += num - len(rank_of)
        self._num_pairs += num * (num - 1) // 2
        self._num_all_tied += len(set(ranking.ranks)) == 1
        self._num_tied += num * (num - 1) // 2 - ranking.num_pairs()
        self._prompt_characters.append(sum(len(message.content) for message in ranking.prompt))
        lengths = [len(text) for text in ranking.responses]
        self._response_characters.extend(lengths)
        for (rank, length), (other_rank, other_length) in combinations(
            zip(ranking.ranks, lengths, strict=True), 2
        ):
            longer = (other_rank - rank) * (length - other_length)
            self._num_longer_wins += longer > 0
            self._num_longer_loses += longer < 0

    def summary(self) -> Summary:
        decided = self._num_longer_wins + self._num_longer_loses
        return Summary(
            num_rankings=sum(self._num_by_k.values()),
            num_prompts=len(self._by_prompt),
            num_responses=len(self._response_characters),
            num_pairs=self._num_pairs,
            num_by_k=dict(sorted(self._num_by_k.items())),
            tied_pair_share=_share(self._num_tied, self._num_pairs),
            num_all_tied=self._num_all_tied,
            prompt_characters=_lengths(self._prompt_characters),
            response_characters=_lengths(self._response_characters),
            num_repeated_rankings=self._num_repeated_rankings,
            num_repeated_responses=self._num_repeated_responses,
            longer_wins_share=_share(self._num_longer_wins, decided),
            agreement=agreement(
                rankings for rankings in self._by_prompt.values() if len(rankings) > 1
            ),
        )


def prompt_key(prompt: Conversation) -> int:
    """The same for prompts that differ in white space and case alone: a leak from one split to another is seldom exact."""
    return _hash(
        *(
            " ".join(part.casefold().split())
            for message in prompt
            for part in (message.role, message.content)
        )
    )


def _hash(*parts: str) -> int:
    """64 bits: two of a million texts are alike by chance once in 40 million files."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")


def _lengths(lengths: Sequence[int]) -> Lengths:
    """By the nearest rank: each figure is the length of some text."""
    in_order = sorted(lengths)

    def quantile(percent: int) -> int:
        return in_order[-(-percent * len(in_order) // 100) - 1] if in_order else 0

    return Lengths(median=quantile(50), p95=quantile(95), max=quantile(100))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
