"""A training run from rankings to checkpoint; `kwise train` and the demo call `train`."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from kwise.errors import ConfigError
from kwise.train.model.adapter import add_adapter, merge_adapter, save_adapter
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import TrainConfig
from kwise.train.report.model_card import CARD_NAME, model_card
from kwise.train.report.provenance import git_revision, versions
from kwise.train.report.training_report import (
    LoggedEvaluation,
    LoggedLoss,
    TrainingReport,
    rankings_by_size,
)
from kwise.train.run.before_training import Start
from kwise.train.run.processes import Processes
from kwise.train.run.run_record import describe_run
from kwise.train.run.steps import ADAPTER_NAME, REPORT_NAME, RUNS_NAME, StepsDir, file_names
from kwise.train.run.trackers import check_tracker
from kwise.train.run.trainer import make_trainer
from kwise.train.run.validation import Validation
from kwise.train.step.losses import NotFinite
from kwise.train.step.text_regulariser import install_text_head, text_head
from kwise.train.step.training_data import Prepared, prepare, read_data


def print_progress(line: str) -> None:
    """A line on standard error; standard output has the result alone."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def train(config: TrainConfig, progress: Callable[[str], None] = print_progress) -> TrainingReport:
    """Train a reward model and write it to `config.output`, with training_report.json and a model card beside it.

    The same config, data and machine give the same weights, also where the run was killed and resumed in between. Launched in
    several processes, each calls this; one of them writes and tells of the progress, the reports of the others have no `files`.

    Raises:
        ConfigError: the options do not fit the output directory, the model, or the run to resume; there is no such model.
        RankingsError: the data is not usable; one line per problem.
        NotFinite: a loss or a weight; nothing is published, and steps/ stays.
        OSError: a file cannot be read or written.
    """
    started_s = time.perf_counter()
    processes = Processes()
    progress = progress if processes.is_main else _silent
    _check_launch(config, processes)
    check_tracker(config.report_to)  # before a model is read
    steps = StepsDir(config.output)
    steps.check(resume=config.resume, overwrite=config.overwrite)
    rankings = read_data(config)
    progress(f"read {len(rankings)} rankings; loading {config.model}")
    reward_model = load_reward_model(
        config.model,
        chat_template=config.chat_template,
        seed=config.seed,
        load_in_4bit=config.load_in_4bit,
        on_main_process=processes.on_main,
    )
    progress(f"layout: {reward_model.layout}")
    if config.text_regulariser:
        install_text_head(reward_model.model, text_head(config.model, reward_model))
    data = prepare(rankings, reward_model, config)
    validation = Validation(reward_model, data.held_out, processes, progress)
    set_seed(config.seed)
    num_parameters = reward_model.model.num_parameters()
    model = add_adapter(reward_model, config) if config.lora_rank else reward_model.model
    num_trained = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    run = describe_run(config, rankings, sharded=processes.sharded)
    start = Start(run, steps, validation, processes)
    trainer = make_trainer(
        model,
        reward_model,
        data.training,
        validation,
        config,
        processes,
        start,
        steps.path,
        progress,
    )

    start.open(overwrite=config.overwrite)
    progress(f"training on {len(data.training)} rankings in {trainer.precision.value}")
    checkpoint = steps.newest_complete()
    if config.resume and checkpoint is None:
        progress("no step checkpoint is complete: training from the beginning")
    trainer.train_from(checkpoint)
    training_s = time.perf_counter() - start.training_began_s
    _check_finite(model, trainer.state.global_step)

    final = steps.path / "final"
    if config.lora_rank:
        if processes.is_main:
            save_adapter(model, config.model, final / ADAPTER_NAME)
        merge_adapter(model)
    after = validation.tell("after training")
    weights = trainer.accelerator.get_state_dict(
        reward_model.model
    )  # in all processes: each may have a part of them
    if processes.is_main:
        reward_model.save(final, weights)
        if (steps.path / RUNS_NAME).is_dir():
            shutil.copytree(steps.path / RUNS_NAME, final / RUNS_NAME, dirs_exist_ok=True)
    logged = trainer.state.log_history
    report = TrainingReport(
        **_of_data(config, data),
        **run,
        num_parameters=num_parameters,
        num_trained=num_trained,
        num_processes=processes.count,
        num_steps=trainer.state.global_step,
        precision=trainer.precision.value,
        layout=reward_model.layout.name,
        layout_reason=reward_model.layout.reason,
        losses=tuple(LoggedLoss(step=e["step"], loss=e["loss"]) for e in logged if "loss" in e),
        evaluations=tuple(
            LoggedEvaluation(step=e["step"], loss=e["eval_loss"], accuracy=e["eval_accuracy"])
            for e in logged
            if "eval_loss" in e
        ),
        best_step=trainer.state.best_global_step if config.early_stopping_patience else None,
        before=start.before,
        after=after,
        training_s=training_s,
        total_s=time.perf_counter() - started_s,
        versions=versions(),
        files=tuple(sorted({*file_names(final), CARD_NAME} - {REPORT_NAME}))
        if processes.is_main
        else (),
    )
    if processes.is_main:
        model_card(report).save(final / CARD_NAME)
        report.write(final / REPORT_NAME)
        steps.publish(final)
        steps.close()
    processes.close()
    return report


def _check_launch(config: TrainConfig, processes: Processes) -> None:
    """Raises ConfigError where several processes cannot do what was asked for."""
    if processes.count > 1 and (config.data == "-" or Path(config.data).is_fifo()):
        raise ConfigError(
            "standard input or a pipe cannot be read by several processes: give DATA as a file"
        )
    if processes.sharded and config.lora_rank:
        raise ConfigError(
            "--lora-rank: adapters are not merged into sharded weights; launch with DDP"
        )
    if processes.sharded and config.text_regulariser:
        raise ConfigError(
            "--text-regulariser reads whole embeddings, which sharded weights have not; launch with DDP"
        )


def _check_finite(model: nn.Module, step: int) -> None:
    """Raises NotFinite. A finite loss may have an infinite gradient, and behind the last step no loss would tell."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise NotFinite(f"after step {step} {name} is not finite")


def _of_data(config: TrainConfig, data: Prepared) -> dict[str, Any]:
    """What the report says of the data, and of the code beside it."""
    return {
        "data": Path(config.data).name,
        "git_revision": git_revision(),
        "num_training": len(data.training),
        "num_validation": len(data.held_out),
        "num_skipped": data.num_read - len(data.rankings),
        "num_training_pairs": sum(item.ranking.num_pairs() for item in data.training),
        "rankings_by_size": rankings_by_size(data.rankings),
    }


def _silent(line: str) -> None:
    """For all processes but one."""
