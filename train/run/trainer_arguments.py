"""The `TrainingArguments` of Hugging Face's Trainer for a `TrainConfig`."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from kwise.errors import ConfigError
from kwise.train.model.batch.layout import Layout
from kwise.train.options.config import Schedule, TrainConfig
from kwise.train.run.trackers import check_tracker


def trainer_arguments(
    config: TrainConfig,
    *,
    layout: Layout,
    num_rankings: int,
    num_processes: int,
    sharded: bool,
    state_directory: Path,
) -> TrainingArguments:
    """Return the arguments of Trainer.

    Args:
        layout: how the sequences of a pass lie in its tensors.
        num_rankings: rankings of the training split.
        num_processes: processes that share the rankings of a step.
        sharded: whether each process has only a part of the weights.
        state_directory: where step checkpoints are written.

    Raises:
        ConfigError: the options do not fit the number of processes or of steps, or the tracker does
            not exist.
    """
    together = config.rankings_per_pass * num_processes
    if config.rankings_per_step % together:
        raise ConfigError(
            f"--rankings-per-step is {config.rankings_per_step}; {num_processes} processes with "
            f"--rankings-per-pass {config.rankings_per_pass} need a multiple of {together}"
        )
    num_steps = config.num_steps(num_rankings)
    if config.early_stopping_patience and config.eval_every > num_steps:
        raise ConfigError(
            f"--eval-every is {config.eval_every}; the run has {num_steps} steps, so there would "
            "be no evaluation"
        )
    # load_best_model_at_end needs the weights of every evaluation.
    save_every = config.eval_every if config.early_stopping_patience else config.save_every
    # A run too short to reach its first step checkpoint writes none at its end either.
    saves = 0 < save_every < num_steps or bool(config.early_stopping_patience)
    arguments = TrainingArguments(
        output_dir=str(state_directory),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.rankings_per_pass,
        gradient_accumulation_steps=config.rankings_per_step // together,
        learning_rate=config.learning_rate,
        **_schedule(config),
        # Rounded down, because the first step of a warm-up has a learning rate of 0 and must not be
        # the only step.
        warmup_steps=int(config.warmup_ratio * num_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        save_strategy="steps" if saves else "no",
        save_steps=max(save_every, 1),
        # Two, because the one before the one being written is always complete; and the best.
        save_total_limit=3 if config.early_stopping_patience else 2,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every or None,
        load_best_model_at_end=bool(config.early_stopping_patience),
        metric_for_best_model="loss" if config.early_stopping_patience else None,
        greater_is_better=False if config.early_stopping_patience else None,
        # A resumed run has only the patience that was left.
        restore_callback_states_from_checkpoint=True,
        logging_steps=config.log_every,
        logging_first_step=True,
        # The filter would log 0 for a loss that is NaN.
        logging_nan_inf_filter=False,
        report_to=check_tracker(config.report_to),
        disable_tqdm=True,
        # Items are rankings, not dicts with the names of forward's arguments.
        remove_unused_columns=False,
        label_names=[],
        ddp_find_unused_parameters=not layout.uses_all_weights,
        # All processes read buffers from the same file, and the text regulariser's is large.
        ddp_broadcast_buffers=False,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # One device per process: with several, Trainer would use DataParallel, which splits every
    # tensor.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _schedule(config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of the schedule.

    Only transformers' cosine and polynomial schedules can end above 0.
    """
    rest = config.final_learning_rate_ratio
    if config.schedule is Schedule.COSINE:
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": rest},
        }
    # A polynomial of power 1 is linear. Its default end is not 0.
    kwargs = {"lr_end": rest * config.learning_rate, "power": 1.0}
    return {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": kwargs}
