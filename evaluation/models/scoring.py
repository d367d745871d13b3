"""Score rankings with a model: rewards of rankings, and the rankings that could not be scored.

The pipeline of `kwise rerank` does the work. A response that cannot be scored leaves its ranking
out, because the ranking without it would be another one, and never ends the run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kwise.bulk.input.row import InputRow
from kwise.bulk.input.windows import MAX_WINDOW_ROWS, cut_windows
from kwise.bulk.output.digits import float32_digits
from kwise.bulk.output.run_record import Counts
from kwise.bulk.pipeline import NoOutput, Pipeline
from kwise.bulk.progress import Progress
from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.bulk.scorers.thread import ScorerThread
from kwise.comparison import sort_value
from kwise.errors import KwiseError, ModelFailed
from kwise.evaluation.hashes import prompt_sha256, responses_sha256
from kwise.evaluation.result import EvaluatedRanking, LeftOut
from kwise.train.rankings.schema import Ranking
from kwise.types import Group, Priority, Reward

# A window has several batches of the engine. Progress is told after each.
_WINDOW_TOKENS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The rankings that have rewards, and those that do not, in the order of the input.

    Attributes:
        model: the model that computed the rewards.
    """

    model: ModelIdentity
    rankings: tuple[EvaluatedRanking, ...]
    left_out: tuple[LeftOut, ...]


def score_rankings(scorer: ScorerThread, rankings: Sequence[Ranking]) -> Scored:
    """Return the rewards of the rankings. Progress goes to standard error.

    Raises:
        KwiseError: the scorer failed as a whole.
    """
    rows = [
        InputRow(
            number=number,
            path=ranking.origin,
            line=0,
            fields=None,
            group=Group(prompt=ranking.prompt, responses=ranking.responses, priority=Priority.BULK),
        )
        for number, ranking in enumerate(rankings, start=1)
    ]
    scored: list[EvaluatedRanking] = []
    left_out: list[LeftOut] = []

    def collect(row: InputRow, result: GroupResult) -> Iterator[bytes]:
        ranking = rankings[row.number - 1]
        outcomes = [result] if isinstance(result, KwiseError) else result.rewards
        numbers = [_number(index, outcome) for index, outcome in enumerate(outcomes)]
        if errors := [number for number in numbers if isinstance(number, KwiseError)]:
            left_out.append(_left_out(ranking, errors))
        else:
            rewards = [number for number in numbers if isinstance(number, float)]
            scored.append(_evaluated(ranking, rewards))
        return iter(())

    progress = Progress(len(rows), Counts())
    pipeline = Pipeline(scorer, NoOutput(), collect, counts=Counts(), on_progress=progress.update)
    try:
        pipeline.run(cut_windows(rows, _WINDOW_TOKENS, MAX_WINDOW_ROWS))
    finally:
        progress.close()
    return Scored(model=scorer.scorer.identity, rankings=tuple(scored), left_out=tuple(left_out))


def _number(index: int, outcome: Reward | KwiseError) -> float | KwiseError:
    """Return the number by which kwise orders responses, or why there is none."""
    if isinstance(outcome, KwiseError):
        return outcome
    number = sort_value(outcome)
    return ModelFailed(index) if number is None or not math.isfinite(number) else number


def _evaluated(ranking: Ranking, rewards: Sequence[float]) -> EvaluatedRanking:
    return EvaluatedRanking(
        origin=ranking.origin,
        prompt_sha256=prompt_sha256(ranking.prompt),
        responses_sha256=responses_sha256(ranking.responses),
        ranks=ranking.ranks,
        scores=ranking.scores,
        lengths=tuple(map(len, ranking.responses)),
        rewards=tuple(float32_digits(reward) for reward in rewards),
    )


def _left_out(ranking: Ranking, errors: Sequence[KwiseError]) -> LeftOut:
    more = f"; and {len(errors) - 1} more of its responses" if len(errors) > 1 else ""
    return LeftOut(
        origin=ranking.origin,
        reason=errors[0].log_message + more,
        is_overlong=all(error.over_limit for error in errors),
    )
