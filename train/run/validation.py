"""Evaluation on the validation rankings before, during and after training, by all processes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from kwise.train.model.reward_model import RewardModel
from kwise.train.model.tokenizer import token_ids
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.train.report.evaluation import Evaluation, Slice, evaluate
from kwise.train.report.members import MembersEvaluation
from kwise.train.report.pace import Pace
from kwise.train.run.processes import Processes


class Validation:
    """The validation rankings and the model that is evaluated on them.

    Attributes:
        rankings: those of --validation, or the validation split; empty if there are none.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        rankings: Sequence[Ranking],
        processes: Processes,
        progress: Callable[[str], None],
    ) -> None:
        """Raise RankingsError if every ranking is one tie."""
        if rankings and not any(ranking.num_pairs() for ranking in rankings):
            raise RankingsError(
                [
                    f"all {len(rankings)} rankings for validation are one tie, so they have no "
                    "pair to evaluate on: give another --seed, --validation-fraction or "
                    "--validation"
                ]
            )
        self.rankings = rankings
        self._reward_model, self._processes, self._progress = reward_model, processes, progress

    def measure(self, when: str) -> Evaluation:
        """Evaluate the current weights; every process returns the same.

        Args:
            when: the time of this evaluation, for lines of progress.
        """
        model, num_processes = self._reward_model, self._processes.count
        pace = Pace(len(self.rankings))

        def rewards_of(ranking: Ranking) -> Tensor:
            sequences = [token_ids(model.tokenizer, item) for item in ranking.conversations()]
            rewards = model.rewards_of_tokens(sequences)
            # The other processes are about as far.
            if pace.add(num_processes, num_processes * sum(map(len, sequences))):
                self._progress(f"validating {when}: {pace.done:.0%}, {pace.say()}")
            return rewards

        rewards = iter(self._processes.map(rewards_of, self.rankings))
        return evaluate(lambda _: next(rewards), self.rankings)

    def report(self, when: str) -> Evaluation | None:
        """Evaluate, and write a line of progress; return None without rankings."""
        if not self.rankings:
            return None
        evaluation = self.measure(when)
        self._progress(
            f"validation {when}: loss {evaluation.loss:.4f}, pairwise accuracy "
            f"{evaluation.accuracy:.1%}"
        )
        if evaluation.members is not None:
            self._progress(f"validation {when}: {evaluation.members}")
        return evaluation


def evaluation_from(plain: dict[str, Any] | None) -> Evaluation | None:
    """Return the evaluation whose `asdict` was written as JSON."""
    if not plain:
        return None
    members = plain.get("members")  # a record of an earlier version of kwise lacks it
    return Evaluation(
        **{
            **plain,
            "slices": tuple(Slice(**part) for part in plain["slices"]),
            "members": MembersEvaluation(**members | {"accuracies": tuple(members["accuracies"])})
            if members
            else None,
        }
    )
