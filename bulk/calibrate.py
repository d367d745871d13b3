"""Set an artifact's mean and standard deviation of rewards from a reference set.

InstructGPT shifts its rewards so that the demonstrations of its labellers have a mean of 0 before
it trains the policy (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155, appendix C.2). A server
replies with `value`, which is (raw - mean) / std, and with `raw`. The weights do not change. Each
member of a model gets a mean and a standard deviation of its own.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from kwise.bulk.calibrate_config import CalibrateConfig
from kwise.bulk.input.files import input_files
from kwise.bulk.input.groups import Columns
from kwise.bulk.input.row import InputRow
from kwise.bulk.input.windows import MAX_WINDOW_ROWS, cut_windows, read_input
from kwise.bulk.output.run_record import Counts
from kwise.bulk.pipeline import NoOutput, Pipeline
from kwise.bulk.scorers.engine import EngineScorer
from kwise.bulk.scorers.protocol import BulkScorer, GroupResult
from kwise.bulk.scorers.thread import ScorerThread
from kwise.bulk.summary import Problems
from kwise.engine.artifact.manifest import Member, read_manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.errors import ConfigError
from kwise.publish import publish_text
from kwise.types import MIN_STD, Reward, ScoredGroup, value_formula

_WINDOW_TOKENS = 65_536
_MIN_RESPONSES = 2


@dataclass(slots=True)
class RewardMoments:
    """The mean and the variance of rewards that are seen once, by Welford's method."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        difference = value - self.mean
        self.mean += difference / self.count
        self._squares += difference * (value - self.mean)

    @property
    def std(self) -> float:
        """The standard deviation of these rewards, as NumPy's `std` computes it."""
        return math.sqrt(self._squares / self.count)


def calibrate(artifact: Path, config: CalibrateConfig) -> int:
    """Score the reference set, write the manifest, and return the exit code.

    All responses count. If one is not scored, nothing is written.

    Args:
        artifact: The directory of the artifact. Its manifest is replaced.
        config: The options.

    Raises:
        ConfigError: The reference set has too few responses, or all have one reward; or the
            artifact was replaced during the run.
        ArtifactError: The artifact is damaged.
        OSError: A file cannot be read or written.
    """
    manifest = read_artifact(artifact).manifest
    precision = config.precision or manifest.available_precisions[0].value
    scales = manifest.members or (Member(mean=manifest.reward_mean, std=manifest.reward_std),)
    moments, problems = [RewardMoments() for _ in scales], Problems()
    columns = Columns(prompt=config.prompt_column, responses=config.responses_column)

    async def open_scorer() -> BulkScorer:
        return EngineScorer.load(artifact, EngineConfig(precision=precision))

    def add_rewards(row: InputRow, result: GroupResult) -> Iterator[bytes]:
        if isinstance(result, ScoredGroup):
            for reward in result.rewards:
                if isinstance(reward, Reward):
                    for of_member, raw in zip(moments, _raw(reward, scales), strict=True):
                        of_member.add(raw)
        return iter(())

    with ScorerThread(open_scorer) as scorer:
        pipeline = Pipeline(
            scorer, NoOutput(), add_rewards, counts=Counts(), on_problem=problems.add
        )
        rows = read_input(input_files(config.input), columns.group)
        pipeline.run(cut_windows(rows, _WINDOW_TOKENS, MAX_WINDOW_ROWS))
    if pipeline.counts.has_failures:
        _say("nothing was written, because a part of the reference set was not scored:")
        for line in problems.lines():
            _say(line)
        return 1
    count = moments[0].count
    if count < _MIN_RESPONSES:
        raise ConfigError(
            f"INPUT {config.input}: has {count} responses; the reference set needs "
            f"at least {_MIN_RESPONSES}"
        )
    new_scales = []
    for of_member, scale in zip(moments, scales, strict=True):
        std = scale.std if config.mean_only else of_member.std
        if not std >= MIN_STD:
            raise ConfigError(
                f"INPUT {config.input}: all {count} responses have the reward "
                f"{of_member.mean:g}, so their standard deviation is 0; give --mean-only"
            )
        new_scales.append(Member(mean=of_member.mean, std=std))
    raw_means, raw_stds = [m.mean for m in moments], [m.std for m in moments]
    calibration = {
        "reference": Path(config.input).name,
        "responses": count,
        "raw_mean": raw_means if manifest.members else raw_means[0],
        "raw_std": raw_stds if manifest.members else raw_stds[0],
        "precision": precision,
        "calibrated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if read_manifest(artifact).checksum != manifest.checksum:
        raise ConfigError(
            f"ARTIFACT {artifact}: another one was put in its place meanwhile, so nothing was "
            "written; run the command again"
        )
    fields: dict[str, Any] = (
        {"members": tuple(new_scales)}
        if manifest.members
        else {"reward_mean": new_scales[0].mean, "reward_std": new_scales[0].std}
    )
    calibrated = msgspec.structs.replace(
        manifest, **fields, provenance=manifest.provenance | {"calibration": calibration}
    ).signed()
    publish_text(calibrated.to_json(), artifact / MANIFEST)
    for number, (old, new) in enumerate(zip(scales, new_scales, strict=True), start=1):
        member = f"member {number}: " if manifest.members else ""
        _say(
            f"{count:,} responses: {member}value is {value_formula(new.mean, new.std)} now, and "
            f"was {value_formula(old.mean, old.std)}"
        )
    return 0


def _raw(reward: Reward, scales: Sequence[Member]) -> Sequence[float]:
    """Return the raw reward of each member; a reward has their values only."""
    if not reward.members:
        return (reward.raw,)
    return [
        scale.mean + scale.std * value for scale, value in zip(scales, reward.members, strict=True)
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr)
