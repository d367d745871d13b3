"""The result of `kwise eval`: what was evaluated, the rewards, and the figures.

These dataclasses are the schema of the JSON file, see docs/evaluation.md. A field that is added
needs no new version. One that is removed, or that changes its meaning, needs a new
`SCHEMA_VERSION`. The texts of prompts and responses are never part of a result.

Dimensions: K responses of a ranking.
"""

from dataclasses import dataclass, field
from typing import Any

from kwise.evaluation.estimate import Estimate
from kwise.evaluation.suite_result import SuiteResult

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The pairwise accuracy on some of the pairs.

    Attributes:
        name: the part: "all pairs", "ranks 1 apart", "better is longer", …
        num_pairs: pairs of responses with different ranks.
        accuracy: the share of pairs whose better response has the higher reward. Equal rewards
            count one half, so that 0.5 is chance.
        longer_wins: the accuracy, on these pairs, of the rule that the longer response is better.
    """

    name: str
    num_pairs: int
    accuracy: Estimate
    longer_wins: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMean:
    """The mean over rankings of a figure that each ranking has.

    Attributes:
        num_rankings: the rankings for which the figure is defined.
    """

    num_rankings: int
    mean: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Pairs whose predicted probability lies in [low, high); the last bin includes `high`.

    Attributes:
        probability: the mean predicted probability that the response with the higher reward is
            the better one.
        accuracy: the share of pairs for which that is so.
    """

    low: float
    high: float
    num_pairs: int
    probability: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The agreement of sigmoid(difference of rewards) with the labels.

    Attributes:
        nll: the mean negative log likelihood of the better response of a pair; log 2 = 0.693 if
            all rewards are equal.
        ece: the expected calibration error over `bins`.
        bins: the bins that have pairs, in ascending order.
        temperature: the T that minimises the likelihood's negative logarithm of
            sigmoid(difference / T) on these pairs. None if there is no such T: the smaller T the
            better because all pairs are right, or the larger the better because the rewards do
            not agree with the labels.
        scaled_nll, scaled_ece, scaled_bins: the same after division by the temperature; None and
            empty without one.
    """

    nll: Estimate
    ece: float
    bins: tuple[ReliabilityBin, ...]
    temperature: float | None
    scaled_nll: float | None
    scaled_ece: float | None
    scaled_bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNPoint:
    """The expected quality of the response that is picked among n random ones of a ranking.

    Attributes:
        num_rankings: the rankings with at least n responses, over which the means are taken.
        model: the model picks the response with the highest reward.
        best: the response with the best label is picked.
        random: any response is picked.
    """

    n: int
    num_rankings: int
    model: Estimate
    best: float
    random: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN:
    """The best-of-n curve.

    Attributes:
        quality: "score", the mean score, if every ranking has scores; else "percentile", the share
            of the other responses of its ranking that the response is better than, a tie counting
            one half.
        points: for n = 1 to the largest K.
    """

    quality: str
    points: tuple[BestOfNPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCorrelation:
    """Spearman's correlation within rankings with the length of the response in characters.

    Attributes:
        num_rankings: the rankings in which lengths, rewards and labels all differ.
        rewards: the mean correlation of the rewards with the length.
        labels: that of the labels, over the same rankings.
    """

    num_rankings: int
    rewards: Estimate
    labels: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of an evaluation.

    Attributes:
        num_rankings: the rankings whose responses all have rewards.
        num_prompts: their distinct prompts, which the bootstrap resamples.
        num_pairs: pairs of responses with different ranks.
        accuracy: on all pairs.
        by_rank_gap: on pairs by the difference of their ranks.
        by_length: on pairs by the lengths of their responses.
        by_size: on pairs by the K of their ranking.
        kendall_tau: Kendall's tau-b of rewards and labels.
        ndcg: the normalised discounted cumulative gain of the order by reward.
        length_correlation: None if no ranking has one.
    """

    num_rankings: int
    num_prompts: int
    num_pairs: int
    accuracy: Accuracy
    by_rank_gap: tuple[Accuracy, ...]
    by_length: tuple[Accuracy, ...]
    by_size: tuple[Accuracy, ...]
    kendall_tau: RankMean
    ndcg: RankMean
    calibration: Calibration
    best_of_n: BestOfN
    length_correlation: LengthCorrelation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRanking:
    """A ranking and its rewards, without texts.

    Attributes:
        origin: "FILE:LINE".
        prompt_sha256: hash of the prompt's messages. Rankings with one hash are resampled together.
        responses_sha256: hash of the responses, in order.
        ranks: 1 is the best, equal ranks are a tie, without gaps.
        scores: None if the data has ranks.
        lengths: the characters of each response.
        rewards: the raw rewards. For a model with members, the mean of the members' values.
    """

    origin: str
    prompt_sha256: str
    responses_sha256: str
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None
    lengths: tuple[int, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A ranking that is in no figure.

    Attributes:
        origin: "FILE:LINE".
        reason: "FIELD: PROBLEM", without texts of the data.
        is_overlong: a conversation is over the token limit of the model.
    """

    origin: str
    reason: str
    is_overlong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The model that was evaluated.

    Attributes:
        argument: MODEL of the command line.
        kind: "checkpoint", "artifact" or "server".
        name: the name of the model.
        fingerprint: the identity of the model, a SHA-256 in hex. A checkpoint and its artifact have
            different ones.
        precision, runtime: what computed the rewards.
        settings: what else decides the rewards, such as the token limit of a server.
    """

    argument: str
    kind: str
    name: str
    fingerprint: str
    precision: str
    runtime: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """The rankings that were evaluated.

    Attributes:
        name: the name of the file, without its path.
        rankings_sha256: hash of the rankings in their order, those that were left out included.
        num_read: the rankings that were read, after --limit.
        num_tied: those whose responses are all tied, which are in no figure.
        left_out: those that could not be scored.
    """

    name: str
    rankings_sha256: str
    num_read: int
    num_tied: int
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that the figures depend on, besides rewards and labels.

    Attributes:
        seed: seed of the bootstrap.
        num_resamples: resamples of the bootstrap.
        confidence: the level of the intervals.
        similar_length: two responses have similar lengths if the longer one has at most so many
            times the characters of the shorter one.
        num_bins: the bins of the reliability diagram, of equal width from 0.5 to 1.
    """

    seed: int = 0
    num_resamples: int = 2000
    confidence: float = 0.95
    similar_length: float = 1.25
    num_bins: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One run of `kwise eval`.

    Attributes:
        created_at: ISO 8601, UTC.
        versions: of Python and of the packages that the result depends on.
        options: the options of the command that decide the result and were given.
        suite: the scores of a public benchmark by its own rules; None for other data.
    """

    schema_version: int
    created_at: str
    model: ModelRecord
    data: DataRecord
    settings: Settings
    options: dict[str, Any]
    versions: dict[str, str]
    figures: Figures
    rankings: tuple[EvaluatedRanking, ...]
    suite: SuiteResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of two models on the same rankings.

    Attributes:
        figure: "accuracy", "kendall_tau", "ndcg" or "nll".
        a, b: the figure of each model.
        difference: a − b, with a bootstrap interval in which each resample has the same prompts for
            both models.
        p_value: two-sided, of the hypothesis that the models do not differ: twice the smaller share
            of the resamples in which the difference is at most 0, or at least 0. None without an
            interval.
    """

    figure: str
    a: float
    b: float
    difference: Estimate
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparison:
    """The result of `kwise eval --compare A B`.

    Attributes:
        conclusion: one sentence that says whether the accuracies differ.
        num_only_a, num_only_b: rankings that only one model could score; they are in no figure.
        differences: the accuracy first.
    """

    schema_version: int
    conclusion: str
    a: ModelRecord
    b: ModelRecord
    data_name: str
    rankings_sha256: str
    num_rankings: int
    num_prompts: int
    num_pairs: int
    num_only_a: int
    num_only_b: int
    settings: Settings
    differences: tuple[Difference, ...]
