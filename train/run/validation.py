"""The validation split, measured before, during and after training, with the work shared by all processes."""

from collections.abc import Callable, Sequence
from typing import Any

from kwise.train.model.reward_model import RewardModel
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.train.report.evaluation import Evaluation, Slice, evaluate
from kwise.train.run.processes import Processes


class Validation:
    """`rankings`, none where nothing is held out, and the model whose rewards are compared with them."""

    def __init__(
        self,
        reward_model: RewardModel,
        rankings: Sequence[Ranking],
        processes: Processes,
        progress: Callable[[str], None],
    ) -> None:
        """Raises RankingsError where all that is held out are ties."""
        if rankings and not any(ranking.num_pairs() for ranking in rankings):
            raise RankingsError(
                [
                    f"all {len(rankings)} rankings of the validation split are one tie: it can measure nothing"
                ]
            )
        self.rankings = rankings
        self._reward_model, self._processes, self._progress = reward_model, processes, progress

    def measure(self) -> Evaluation:
        """With the weights as they are; the same in every process."""
        model = self._reward_model
        known = iter(
            self._processes.map(
                lambda ranking: model.rewards(ranking.conversations()), self.rankings
            )
        )
        return evaluate(lambda _: next(known), self.rankings)

    def tell(self, when: str) -> Evaluation | None:
        """`measure`, and a line about it; None without rankings."""
        if not self.rankings:
            return None
        evaluation = self.measure()
        self._progress(
            f"validation {when}: loss {evaluation.loss:.4f}, pairwise accuracy {evaluation.accuracy:.1%}"
        )
        return evaluation


def evaluation_from(plain: dict[str, Any] | None) -> Evaluation | None:
    """The evaluation whose `asdict` was written as JSON."""
    return (
        Evaluation(**{**plain, "slices": tuple(Slice(**part) for part in plain["slices"])})
        if plain
        else None
    )
