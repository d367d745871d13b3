"""`TrainConfig` in the words of Hugging Face's `TrainingArguments`."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from kwise.errors import ConfigError
from kwise.train.model.layout import Layout
from kwise.train.options.config import Schedule, TrainConfig
from kwise.train.run.steps import RUNS_NAME
from kwise.train.run.trackers import check_tracker


def training_arguments(
    config: TrainConfig,
    *,
    layout: Layout,
    num_rankings: int,
    num_processes: int,
    sharded: bool,
    steps_dir: Path,
) -> TrainingArguments:
    """What `Trainer` is to do with `num_rankings` in each of `num_processes`, each with a part of the weights if `sharded`.

    Raises:
        ConfigError: the options do not fit the number of processes or of steps, or there is no such tracker.
    """
    together = config.rankings_per_pass * num_processes
    if config.rankings_per_step % together:
        raise ConfigError(
            f"--rankings-per-step is {config.rankings_per_step}; {num_processes} processes with --rankings-per-pass "
            f"{config.rankings_per_pass} need a multiple of {together}"
        )
    num_steps = config.num_steps(num_rankings)
    if config.early_stopping_patience and config.eval_every > num_steps:
        raise ConfigError(
            f"--eval-every is {config.eval_every}; the run has {num_steps} steps, so nothing would be evaluated"
        )
    # load_best_model_at_end needs the weights of every evaluation.
    save_every = config.eval_every if config.early_stopping_patience else config.save_every
    # A run too short to reach its first step checkpoint writes none at its end either.
    saves = 0 < save_every < num_steps or bool(config.early_stopping_patience)
    arguments = TrainingArguments(
        output_dir=str(steps_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.rankings_per_pass,
        gradient_accumulation_steps=config.rankings_per_step // together,
        learning_rate=config.learning_rate,
        **_schedule(config),
        # Rounded down: the first step of a warm-up has a rate of 0, and must not be the only step of a run.
        warmup_steps=int(config.warmup_ratio * num_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        save_strategy="steps" if saves else "no",
        save_steps=max(save_every, 1),
        # Two: while one is being written, the one before is complete whatever happens (see steps.py). And the best.
        save_total_limit=3 if config.early_stopping_patience else 2,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every or None,
        load_best_model_at_end=bool(config.early_stopping_patience),
        metric_for_best_model="loss" if config.early_stopping_patience else None,
        greater_is_better=False if config.early_stopping_patience else None,
        # The patience that is left; without it a resumed run would be more patient than an uninterrupted one.
        restore_callback_states_from_checkpoint=True,
        logging_steps=config.log_every,
        logging_first_step=True,
        # Its filter writes 0 where a loss is not a number.
        logging_nan_inf_filter=False,
        logging_dir=str(steps_dir / RUNS_NAME),
        report_to=check_tracker(config.report_to),
        disable_tqdm=True,
        # The items are rankings, not dicts named after the arguments of the model's forward().
        remove_unused_columns=False,
        label_names=[],
        ddp_find_unused_parameters=not layout.uses_all_weights,
        # Every process reads them from the same file; the text regulariser has a large one.
        ddp_broadcast_buffers=False,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # One device a process: DataParallel, which is Trainer's way with several, cuts tensors that are no batches.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _schedule(config: TrainConfig) -> dict[str, Any]:
    """Both kinds with a warm-up; transformers lets only its cosine and its polynomial end above 0."""
    rest = config.final_learning_rate_ratio
    if config.schedule is Schedule.COSINE:
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": rest},
        }
    # A polynomial of power 1; its default end is not 0.
    kwargs = {"lr_end": rest * config.learning_rate, "power": 1.0}
    return {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": kwargs}
