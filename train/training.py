"""A training run from rankings to checkpoint; `kwise train` and the demo call `train`."""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from transformers import set_seed

from kwise.engine.errors import ConfigError
from kwise.train.batch import TokenizedRanking, tokenize_rankings
from kwise.train.config import Margin, Overlong, Precision, TrainConfig, needs_scores
from kwise.train.evaluate import Evaluation, evaluate
from kwise.train.model import RewardModel, bf16_backbone, has_fast_bf16, load_reward_model
from kwise.train.rankings import MAX_PROBLEMS, Ranking, RankingsError, read_rankings, split_by_prompt
from kwise.train.report import LoggedLoss, TrainingReport, plain_config, rankings_by_size, versions
from kwise.train.steps import REPORT_NAME, StepsDir
from kwise.train.trainer import make_trainer

# What a resumed run may change: where and how often it writes, not what it computes.
_FREE_TO_CHANGE = {"output", "save_every", "log_every", "resume", "overwrite"}


def print_progress(line: str) -> None:
    """A line on standard error; standard output has the result alone."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def train(config: TrainConfig, progress: Callable[[str], None] = print_progress) -> TrainingReport:
    """Train a reward model and write it to `config.output`, with training_report.json beside it.

    The same config, data and machine give the same weights, also where the run was killed and resumed in between.

    Raises:
        ConfigError: the options do not fit the output directory, the model, or the run to resume; there is no such model.
        RankingsError: the data is not usable; one line per problem.
        OSError: a file cannot be read or written.
    """
    started_s = time.perf_counter()
    steps = StepsDir(config.output)
    steps.check(resume=config.resume, overwrite=config.overwrite)
    rankings = read_rankings(config.data)
    _check_scores(rankings, config)
    progress(f"read {len(rankings)} rankings; loading {config.model}")
    reward_model = load_reward_model(config.model, chat_template=config.chat_template, seed=config.seed)
    tokenized = _tokenize(rankings, reward_model, config)
    fitting = [item.ranking for item in tokenized]
    training, validation = split_by_prompt(fitting, config.validation_fraction, config.seed)
    training_set = set(training)

    steps.open(overwrite=config.overwrite)
    run = _describe(config, rankings)
    noted = steps.read_run()
    if noted is not None:
        _check_same_run(run, noted)
    else:
        steps.write_run(run)  # at once: it also tells whose directory this is
    set_seed(config.seed)
    trainer = make_trainer(
        reward_model, [item for item in tokenized if item.ranking in training_set], config, steps.path, progress
    )
    before = _evaluation_of(noted) or _validate(reward_model, validation, "before", progress)
    if noted is None or "before" not in noted:
        steps.write_run(run | {"before": asdict(before) if before else None})

    precision = _precision(config.precision, reward_model.model.device)
    progress(f"training on {len(training)} rankings in {precision.value}")
    resume_from = steps.newest_complete()
    training_started_s = time.perf_counter()
    with bf16_backbone(reward_model.model) if precision is Precision.BF16 else nullcontext():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    training_s = time.perf_counter() - training_started_s
    after = _validate(reward_model, validation, "after", progress)

    final = steps.path / "final"
    reward_model.save(final)
    report = TrainingReport(
        data=run["config"]["data"],
        config=run["config"],
        num_training=len(training),
        num_validation=len(validation),
        num_skipped=len(rankings) - len(tokenized),
        num_training_pairs=sum(ranking.num_pairs() for ranking in training),
        rankings_by_size=rankings_by_size(fitting),
        num_parameters=reward_model.model.num_parameters(),
        num_steps=trainer.state.global_step,
        precision=precision.value,
        losses=tuple(LoggedLoss(step=e["step"], loss=e["loss"]) for e in trainer.state.log_history if "loss" in e),
        before=before,
        after=after,
        training_s=training_s,
        total_s=time.perf_counter() - started_s,
        versions=versions(),
        files=tuple(sorted(path.name for path in final.iterdir() if path.name != REPORT_NAME)),
    )
    report.write(final / REPORT_NAME)
    steps.publish(final)
    steps.close()
    return report


def _check_scores(rankings: Sequence[Ranking], config: TrainConfig) -> None:
    if needs_scores(config):
        without = [ranking.origin for ranking in rankings if ranking.scores is None]
        wanted = "--margin scores" if config.margin is Margin.SCORES else "--objective regression"
        if without:
            raise RankingsError(
                [f"{origin}: responses: {wanted} needs scores; these have ranks" for origin in without[:MAX_PROBLEMS]]
            )


def _tokenize(rankings: Sequence[Ranking], reward_model: RewardModel, config: TrainConfig) -> list[TokenizedRanking]:
    limits = [limit for limit in (config.max_tokens, reward_model.max_tokens) if limit is not None]
    tokenized = tokenize_rankings(
        rankings,
        reward_model.tokenizer,
        max_tokens=min(limits, default=None),
        skip_overlong=config.overlong is Overlong.SKIP,
    )
    if not tokenized:
        raise RankingsError([f"{config.data}: all {len(rankings)} rankings have a conversation over the limit of tokens"])
    return tokenized


def _validate(
    reward_model: RewardModel, validation: Sequence[Ranking], when: str, progress: Callable[[str], None]
) -> Evaluation | None:
    if not validation:
        return None
    evaluation = evaluate(reward_model.rewards, validation)
    progress(f"validation {when} training: loss {evaluation.loss:.4f}, pairwise accuracy {evaluation.accuracy:.1%}")
    return evaluation


def _precision(asked: Precision, device: torch.device) -> Precision:
    if asked is not Precision.AUTO:
        return asked
    return Precision.BF16 if has_fast_bf16(device) else Precision.FP32


def _describe(config: TrainConfig, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes."""
    content = "\n".join(repr((ranking.prompt, ranking.responses, ranking.ranks, ranking.scores)) for ranking in rankings)
    return {"config": plain_config(config), "rankings_sha256": hashlib.sha256(content.encode()).hexdigest()}


def _check_same_run(run: dict[str, Any], noted: dict[str, Any]) -> None:
    if run["rankings_sha256"] != noted["rankings_sha256"]:
        raise ConfigError("--resume: the rankings are not those that the run began with")
    for name, value in run["config"].items():
        if name not in _FREE_TO_CHANGE and value != noted["config"].get(name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} was {noted['config'].get(name)} in the run to resume and is {value} now")


def _evaluation_of(noted: dict[str, Any] | None) -> Evaluation | None:
    return Evaluation(**noted["before"]) if noted and noted.get("before") else None
