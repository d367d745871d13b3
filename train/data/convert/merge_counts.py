"""The outcome of merging, for the report: what was merged, what was not, and why."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kwise.train.data.convert.merge_comparisons import MergedComparisons
from kwise.train.data.rows.items import ComparedPair
from kwise.train.rankings.prompt_key import prompt_key
from kwise.types import Conversation


class Outcome(Enum):
    """The outcome of merging the comparisons of a prompt; each value continues "5 prompts"."""

    MERGED = "merged"
    SINGLE = "with one comparison"
    REPEATED = "with comparisons of the same two responses"
    CONTRADICTORY = "with comparisons that contradict each other"
    UNDETERMINED = "with comparisons that do not determine one order"


@dataclass(slots=True, kw_only=True)
class MergeCounts:
    """Counts prompts by outcome; with --merge annotator, prompts of an annotator."""

    num_prompts: Counter[Outcome] = field(default_factory=Counter)
    num_without_annotator: int = 0

    def add(self, pairs: Sequence[ComparedPair], merged: MergedComparisons) -> None:
        """Count the comparisons of one prompt."""
        self.num_prompts[_outcome(pairs, merged)] += 1

    def line(self, option: str, prompts: Collection[Conversation]) -> str:
        """Return the line for the report.

        Args:
            option: the command-line option, for instance "--merge prompt".
            prompts: the prompts of all comparisons that may be merged.
        """
        num_merged = self.num_prompts[Outcome.MERGED]
        reasons = [
            f"{num} prompts {outcome.value}"
            for outcome, num in self.num_prompts.items()
            if outcome is not Outcome.MERGED
        ]
        if self.num_without_annotator:
            reasons.append(f"{self.num_without_annotator} comparisons without an annotator")
        distinct = set(prompts)
        if num_alike := len(distinct) - len({prompt_key(prompt) for prompt in distinct}):
            reasons.append(f"{num_alike} prompts differ from another in white space or case only")
        done = f"merged the comparisons of {num_merged} prompts" if num_merged else "merged nothing"
        return f"{option} {done}; not merged: {', '.join(reasons) or 'none'}"


def _outcome(pairs: Sequence[ComparedPair], merged: MergedComparisons) -> Outcome:
    if len(pairs) == 1:
        return Outcome.SINGLE
    if any(sum(map(len, order)) > 2 for order in merged.orders):
        return Outcome.MERGED
    if merged.num_contradictions:
        return Outcome.CONTRADICTORY
    if len({frozenset((pair.better, pair.worse)) for pair in pairs}) == 1:
        return Outcome.REPEATED
    return Outcome.UNDETERMINED
