"""The figures of a file of rankings, collected one ranking at a time.

Only hashes, ranks and lengths are stored, never the texts, because a file may be larger than
memory.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from kwise.train.data.stats.agreement import Agreement, agreement
from kwise.train.rankings.prompt_key import prompt_key, text_hash
from kwise.train.rankings.schema import Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in characters. Percentiles use the nearest rank: each is the length of a text."""

    median: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures. Shares are in [0, 1], or None if there is nothing to divide by.

    num_prompts: distinct prompts.
    num_pairs: the sum of C(K,2), tied pairs included.
    num_all_tied: rankings whose responses are all tied.
    num_repeated_rankings: rankings whose prompt, responses and ranks equal those of an earlier one.
    num_repeated_responses: responses whose text equals an earlier one of the same ranking.
    longer_wins_share: among untied pairs of different length; 0.5 means that length has no effect.
    """

    num_rankings: int
    num_prompts: int
    num_responses: int
    num_pairs: int
    num_by_k: dict[int, int]
    tied_pair_share: float | None
    num_all_tied: int
    prompt_characters: Lengths
    response_characters: Lengths
    num_repeated_rankings: int
    num_repeated_responses: int
    longer_wins_share: float | None
    agreement: Agreement


class SummaryBuilder:
    """Collects the figures of rankings."""

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
        """The number of rankings of each prompt, by `prompt_key`."""
        return self._num_by_prompt_key

    def add(self, ranking: Ranking) -> None:
        """Add the figures of one ranking."""
        prompt = text_hash(
            *(part for message in ranking.prompt for part in (message.role, message.content))
        )
        rank_of = {
            text_hash(text): rank
            for text, rank in zip(ranking.responses, ranking.ranks, strict=True)
        }
        self._by_prompt[prompt].append(rank_of)
        self._num_by_prompt_key[prompt_key(ranking.prompt)] += 1
        num_responses = len(ranking.responses)
        labelled_texts = sorted(f"{text} {rank}" for text, rank in rank_of.items())
        whole = text_hash(str(prompt), *labelled_texts, str(num_responses))
        self._num_repeated_rankings += whole in self._seen
        self._seen.add(whole)
        self._num_by_k[num_responses] += 1
        self._num_repeated_responses += num_responses - len(rank_of)
        num_pairs = num_responses * (num_responses - 1) // 2
        self._num_pairs += num_pairs
        self._num_all_tied += len(set(ranking.ranks)) == 1
        self._num_tied += num_pairs - ranking.num_pairs()
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
        """Return the figures of all rankings so far."""
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
            longer_wins_share=_share(
                self._num_longer_wins, self._num_longer_wins + self._num_longer_loses
            ),
            agreement=agreement(
                rankings for rankings in self._by_prompt.values() if len(rankings) > 1
            ),
        )


def _lengths(lengths: Sequence[int]) -> Lengths:
    ordered = sorted(lengths)

    def percentile(percent: int) -> int:
        return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0

    return Lengths(median=percentile(50), p95=percentile(95), max=percentile(100))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
