"""A training run from rankings to checkpoint; `kwise train` and the demo call `train`."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from kwise.errors import ConfigError, LibraryFailed
from kwise.libraries.errors import library_errors
from kwise.publish import check_writable
from kwise.train.checkpoint.pooling import header_of
from kwise.train.checkpoint.tensors import is_finite
from kwise.train.model.adapter import add_adapter, merge_adapter, save_adapter
from kwise.train.model.adapter_source import find_adapter
from kwise.train.model.batch.layout import SeparateLayout
from kwise.train.model.reward_model import load_reward_model
from kwise.train.model.threads import use_available_cpus
from kwise.train.options.config import Pooling, TrainConfig
from kwise.train.report.model_card import CARD_NAME, model_card
from kwise.train.report.provenance import git_revision, model_sha256
from kwise.train.report.training_report import (
    LoggedEvaluation,
    LoggedLoss,
    TrainingReport,
    rankings_by_size,
)
from kwise.train.run.before_training import BeforeTraining
from kwise.train.run.exportable import check_exportable
from kwise.train.run.member_means import state_member_means
from kwise.train.run.processes import Processes
from kwise.train.run.run_record import describe_run
from kwise.train.run.trackers import check_tracker
from kwise.train.run.trainer import make_trainer
from kwise.train.run.unfinished_run import (
    ADAPTER_NAME,
    REPORT_NAME,
    TRACKER_NAME,
    UnfinishedRun,
    file_names,
)
from kwise.train.run.validation import Validation
from kwise.train.step.batch import num_tokens
from kwise.train.step.losses import NotFinite
from kwise.train.step.text_regulariser import install_text_head, text_head
from kwise.train.step.training_data import (
    TrainingData,
    prepare,
    read_data,
    read_validation,
    token_limit,
)

_MEMORY_ADVICE = (
    "--rankings-per-pass 1, --gradient-checkpointing full and --lora-rank take less memory"
)


def print_progress(line: str) -> None:
    """Print a line on standard error; standard output gets the result alone."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def train(config: TrainConfig, progress: Callable[[str], None] = print_progress) -> TrainingReport:
    """Train a reward model and write it to `config.output`, with a report and a model card.

    The same config, data and machine give the same weights, even if the run is killed and resumed.
    Every one of several processes calls this function. The main process writes and reports
    progress; the reports of the others have no `files`.

    Raises:
        ConfigError: the options do not fit the output directory, the model, or the run to resume;
            or the model does not exist.
        RankingsError: the data cannot be used; one line per problem.
        NotFinite: a loss or a weight is not finite; no checkpoint is written, and the run's state
            stays.
        OSError: a file cannot be read or written.
        LibraryFailed: torch or transformers failed while training; the run's state stays.
    """
    started_s = time.perf_counter()
    use_available_cpus()
    processes = Processes()
    progress = progress if processes.is_main else _silent
    _check_launch(config, processes)
    check_tracker(config.report_to)  # before the model is loaded
    directory = UnfinishedRun(config.output)
    directory.check(resume=config.resume, overwrite=config.overwrite)
    check_writable("--output", config.output)
    rankings = read_data(config, progress)
    validation_rankings = read_validation(config, progress)
    given = "" if validation_rankings is None else f" and {len(validation_rankings)} for validation"
    progress(f"read {len(rankings)} rankings{given}; loading {config.model}")
    with library_errors(f"--model {config.model}: cannot be trained"):
        reward_model = load_reward_model(
            config.model,
            chat_template=config.chat_template,
            template_date=config.template_date,
            num_heads=config.heads,
            num_layers=config.layers,
            mean_pooling=None if config.pooling is None else config.pooling is Pooling.MEAN,
            seed=config.seed,
            for_adapter=config.lora_rank > 0,
            load_in_4bit=config.load_in_4bit,
            max_tokens=config.max_tokens,
            on_main_process=processes.on_main,
        )
    for note in reward_model.notes:
        progress(f"note: {note}")
    progress(f"layout: {reward_model.layout}")
    if processes.sharded and reward_model.layout.name == SeparateLayout.name:
        raise ConfigError(
            f"--model {config.model}: its layout is {reward_model.layout}; sharded processes would "
            "run different numbers of passes: launch with DDP"
        )
    if config.export_check:
        max_tokens = token_limit(reward_model, config)
        check_exportable(reward_model, config.model, max_tokens, processes, progress)
    if config.text_regulariser:
        install_text_head(reward_model.model, text_head(config.model, reward_model))
    data = prepare(rankings, reward_model, config, validation_rankings)
    if num_skipped := data.num_read - len(data.rankings):
        progress(
            f"skipping {num_skipped} of {data.num_read} rankings (--overlong skip): each has a "
            f"conversation of more than {data.max_tokens} tokens, the limit"
        )
    for note in data.notes:
        progress(f"note: {note}")
    progress(_size(config, data))
    validation = Validation(reward_model, data.validation, processes, progress)
    set_seed(config.seed)
    num_parameters = reward_model.model.num_parameters()
    with library_errors(f"--model {config.model}: --lora-rank: PEFT cannot adapt it"):
        model = add_adapter(reward_model, config) if config.lora_rank else reward_model.model
    num_trained = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    before_training = BeforeTraining(directory, validation, processes)
    trainer = make_trainer(
        model,
        reward_model,
        data.training,
        validation,
        config,
        processes,
        before_training,
        directory.path,
        progress,
    )

    run = describe_run(
        config,
        rankings,
        validation_rankings,
        reward_model,
        model_sha256=processes.on_main(lambda: model_sha256(config.model)),
        precision=trainer.precision,
        sharded=processes.sharded,
    )
    for note in before_training.open(run, resume=config.resume, overwrite=config.overwrite):
        progress(f"note: {note}")
    progress(f"training on {len(data.training)} rankings in {trainer.precision.value}")
    checkpoint = directory.newest_complete()
    for damage in directory.damages() if config.resume else ():
        progress(f"note: {damage}")
    if config.resume and checkpoint is None:
        progress("no step checkpoint is complete: training starts from the beginning")
    advice = "" if checkpoint is None else f"if {checkpoint.name} is damaged, delete it"
    with library_errors(
        f"--model {config.model}: training failed",
        advice=advice,
        memory_advice=_MEMORY_ADVICE,
        raises=LibraryFailed,
    ):
        trainer.train_from(checkpoint)
    training_s = time.perf_counter() - before_training.training_began_s
    _check_finite(model, trainer.state.global_step)

    final = directory.make_final() if processes.is_main else None
    if config.lora_rank:
        if final is not None:
            save_adapter(model, config.model, config.heads, final / ADAPTER_NAME)
            # Its template may not be that of the base model.
            reward_model.tokenizer.save_pretrained(final / ADAPTER_NAME)
        merge_adapter(model)
    after = validation.report("after training")
    state_member_means(reward_model, data, config, config.seed, processes)
    # In all processes, because each may have a part of the weights.
    weights = trainer.accelerator.get_state_dict(reward_model.model)
    if final is not None:
        reward_model.save(final, weights)
        if (directory.path / TRACKER_NAME).is_dir():
            shutil.copytree(directory.path / TRACKER_NAME, final / TRACKER_NAME)
    logged = trainer.state.log_history
    report = TrainingReport(
        **_data_fields(config, data),
        **run,
        num_parameters=num_parameters,
        num_trained=num_trained,
        num_processes=processes.count,
        num_steps=trainer.state.global_step,
        layout_reason=reward_model.layout.reason,
        response_header=header_of(reward_model.model.config),
        losses=tuple(LoggedLoss(step=e["step"], loss=e["loss"]) for e in logged if "loss" in e),
        evaluations=tuple(
            LoggedEvaluation(step=e["step"], loss=e["eval_loss"], accuracy=e["eval_accuracy"])
            for e in logged
            if "eval_loss" in e
        ),
        best_step=trainer.state.best_global_step if config.early_stopping_patience else None,
        before=before_training.evaluation,
        after=after,
        training_s=training_s,
        total_s=time.perf_counter() - started_s,
        files=() if final is None else tuple(sorted({*file_names(final), CARD_NAME})),
    )
    if final is not None:
        model_card(report).save(final / CARD_NAME)
        report.write(final / REPORT_NAME)
        directory.publish(final)
    processes.close()
    return report


def _check_launch(config: TrainConfig, processes: Processes) -> None:
    """Raise ConfigError if several processes cannot do what the options ask for."""
    for name, path in (("DATA", config.data), ("--validation", config.validation)):
        if processes.count > 1 and path and (path == "-" or Path(path).is_fifo()):
            raise ConfigError(
                f"several processes cannot read standard input or a pipe: give {name} as a file"
            )
    if processes.sharded and config.lora_rank:
        raise ConfigError(
            "--lora-rank: adapters cannot be merged into sharded weights; launch with DDP"
        )
    if processes.sharded and find_adapter("--model", config.model):
        raise ConfigError(
            f"--model {config.model} is an adapter (adapter_config.json), which cannot be merged "
            "into sharded weights: merge it first"
        )
    if processes.sharded and config.text_regulariser:
        raise ConfigError(
            "--text-regulariser needs whole embeddings, not sharded ones; launch with DDP"
        )


def _size(config: TrainConfig, data: TrainingData) -> str:
    """Return a line about the size of the run."""
    sequences = sum(len(item.input_ids) for item in data.training)
    return (
        f"{config.num_steps(len(data.training)):,} steps of {config.rankings_per_step} of "
        f"{len(data.training):,} rankings: {sequences:,} conversations with "
        f"{num_tokens(data.training):,} tokens, {config.epochs:g} times; {len(data.validation):,} "
        "rankings for validation"
    )


def _check_finite(model: nn.Module, step: int) -> None:
    """Raise NotFinite if a trained weight is not finite.

    A finite loss may have an infinite gradient, and after the last step there is no loss to show
    it.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_finite(parameter):
            raise NotFinite(f"after step {step} {name} is not finite")


def _data_fields(config: TrainConfig, data: TrainingData) -> dict[str, Any]:
    """Return the fields of the report that describe the data and the code."""
    return {
        "data": Path(config.data).name,
        "validation": Path(config.validation).name if config.validation else None,
        "git_revision": git_revision(),
        "num_training": len(data.training),
        "num_validation": len(data.validation),
        "num_skipped": data.num_read - len(data.rankings),
        "num_training_pairs": sum(item.ranking.num_pairs() for item in data.training),
        "rankings_by_size": rankings_by_size(data.rankings),
    }


def _silent(line: str) -> None:
    """Print nothing, in all processes but the main one."""
