"""One run of `kwise eval`: read, score, compute the figures."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from kwise.bulk.scorers.protocol import ModelIdentity
from kwise.bulk.scorers.thread import OpenScorer, ScorerThread
from kwise.evaluation.config import EvalConfig
from kwise.evaluation.figures import figures_of
from kwise.evaluation.kind import kind_of
from kwise.evaluation.models.open import opener_of
from kwise.evaluation.models.scoring import score_rankings
from kwise.evaluation.result import (
    SCHEMA_VERSION,
    DataRecord,
    Evaluation,
    ModelRecord,
)
from kwise.evaluation.suites.evaluate import suite_result
from kwise.evaluation.suites.read import read_benchmark
from kwise.train.data.read import read_rankings
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.hash import rankings_sha256
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.schema import Ranking
from kwise.version import __version__

_PACKAGES = ("numpy", "scipy", "torch", "transformers", "tokenizers", "onnxruntime", "openvino")
Progress = Callable[[str], None]


def evaluate(model: str, data: str, config: EvalConfig, progress: Progress) -> Evaluation:
    """Score the rankings of `data` with `model` and return the result.

    Args:
        progress: gets lines for people.

    Raises:
        RankingsError: the data cannot be used, or no ranking could be scored.
        ConfigError: the model does not exist, or an option does not suit it.
        KwiseError: the model failed as a whole.
        OSError: a file cannot be read.
    """
    open_scorer = opener_of(model, config)
    name = Path(display_name(data)).name or Path(data).resolve().name
    if (benchmark := read_benchmark(data, config.suite)) is not None:
        rows = benchmark.first(config.limit)
        for line in rows.remarks():
            progress(f"{name}: {line}")
        rankings = rows.rankings()
        evaluation = evaluate_rankings(model, name, rankings, config, open_scorer, progress)
        return replace(evaluation, suite=suite_result(rows, evaluation))
    rankings = read_rankings(data, allow_tied=True, progress=progress)[: config.limit]
    return evaluate_rankings(model, name, rankings, config, open_scorer, progress)


def evaluate_rankings(
    model: str,
    data_name: str,
    rankings: list[Ranking],
    config: EvalConfig,
    open_scorer: OpenScorer,
    progress: Progress,
) -> Evaluation:
    """Score rankings that were read and return the result; see `evaluate`."""
    with_pairs = [ranking for ranking in rankings if ranking.num_pairs()]
    if not with_pairs:
        raise RankingsError(
            [
                f"{data_name}: all {len(rankings)} rankings are one tie, so they have no pair to "
                "evaluate on"
            ]
        )
    with ScorerThread(open_scorer) as scorer:
        scored = score_rankings(scorer, with_pairs)
    for left_out in scored.left_out[:MAX_PROBLEMS]:
        progress(f"left out {left_out.origin}: {left_out.reason}")
    if (more := len(scored.left_out) - MAX_PROBLEMS) > 0:
        progress(f"left out {more:,} more rankings, which --json names")
    if not scored.rankings:
        raise RankingsError([f"{data_name}: none of {len(with_pairs)} rankings could be scored"])
    settings = config.settings()
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=_model_record(model, scored.model),
        data=DataRecord(
            name=data_name,
            rankings_sha256=rankings_sha256(rankings),
            num_read=len(rankings),
            num_tied=len(rankings) - len(with_pairs),
            left_out=scored.left_out,
        ),
        settings=settings,
        options=config.deciding(),
        versions=_versions(),
        figures=figures_of(scored.rankings, settings),
        rankings=scored.rankings,
    )


def _model_record(argument: str, identity: ModelIdentity) -> ModelRecord:
    return ModelRecord(
        argument=argument,
        kind=kind_of(argument).value,
        name=identity.model,
        fingerprint=identity.fingerprint,
        precision=identity.precision,
        runtime=identity.runtime,
        settings=identity.server_options,
    )


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that the result depends on."""
    versions = {"python": python_version(), "kwise": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # each kind of model needs some of them only
            continue
    return versions
