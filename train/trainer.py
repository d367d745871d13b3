"""K-wise training on Hugging Face's `Trainer`: its loop, optimizer, schedule, checkpoints and devices; our batches and loss.

A dataset item is one ranking, so shuffling, accumulation and data parallelism cannot part a ranking's pairs. An optimizer
step is `rankings_per_step` rankings, computed `rankings_per_pass` at a time; gradients accumulate in between.

Dimensions: S sequences of a batch, those of its rankings one after another.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import ParallelMode

from kwise.train.batch import Batch, TokenizedRanking, collate
from kwise.train.config import TrainConfig
from kwise.train.layout import TrainLayout, rewards_of
from kwise.train.loss import Judged, Objective, mean_loss
from kwise.train.model import RewardModel
from kwise.train.objectives import objective_of
from kwise.train.steps import MarkComplete


class RankingTrainer(Trainer):
    """A `Trainer` whose items are rankings, and whose loss is `objective`."""

    objective: Objective

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """This pass's part of the mean over the step's rankings, of which there are `num_items_in_batch`."""
        rewards_S = rewards_of(model, inputs)
        group_sizes = inputs["group_sizes"].tolist()
        part = len(group_sizes) / (num_items_in_batch or len(group_sizes))
        return part * mean_loss(rewards_S, Judged(inputs["ranks"], inputs["scores"]), group_sizes, self.objective)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], int]:
        """The passes of the next step, and its rankings counted: `Trainer` counts labels, which we have not. Dividing by
        the number of passes instead would give the rankings of a last, smaller pass a larger weight."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum(len(batch["group_sizes"]) for batch in batches)


def make_trainer(
    reward_model: RewardModel,
    rankings: Sequence[TokenizedRanking],
    config: TrainConfig,
    steps_dir: Path,
    progress: Callable[[str], None],
) -> RankingTrainer:
    """A trainer that is ready to `train()`, with the model on its device."""
    arguments = training_arguments(config, num_rankings=len(rankings), steps_dir=steps_dir)
    # A pass over the trie calls the backbone itself, past the wrapper that joins the gradients of several devices.
    layout = reward_model.layout if arguments.parallel_mode is ParallelMode.NOT_PARALLEL else TrainLayout.PADDED
    trainer = RankingTrainer(
        model=reward_model.model,
        args=arguments,
        train_dataset=list(rankings),
        data_collator=partial(collate, layout=layout, pad_token_id=reward_model.model.config.pad_token_id),
        processing_class=reward_model.tokenizer,
        callbacks=[MarkComplete(), ProgressLines(progress)],
    )
    trainer.objective = objective_of(config)
    # Trainer's word for "compute_loss has normalised over the whole step": it must not divide by the number of passes.
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(config: TrainConfig, *, num_rankings: int, steps_dir: Path) -> TrainingArguments:
    """`config` in `Trainer`'s words."""
    # A run too short to reach its first step checkpoint writes none at its end either.
    saves = 0 < config.save_every < config.num_steps(num_rankings)
    return TrainingArguments(
        output_dir=str(steps_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.rankings_per_pass,
        gradient_accumulation_steps=config.passes_per_step,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        # Rounded down: the first step of a warm-up has a rate of 0, and must not be the only step of a run.
        warmup_steps=int(config.warmup_ratio * config.num_steps(num_rankings)),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        save_strategy="steps" if saves else "no",
        save_steps=max(config.save_every, 1),
        # Two: while one is being written, the one before is complete whatever happens (see steps.py).
        save_total_limit=2,
        logging_steps=config.log_every,
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
        # The items are rankings, not dicts named after the arguments of the model's forward().
        remove_unused_columns=False,
        label_names=[],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class ProgressLines(TrainerCallback):
    """One line per logged step, which reads well in a terminal and in a CI log alike."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._started_s = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started_s, self._first_step = time.perf_counter(), state.global_step
        if state.global_step:
            self._write(f"resuming after step {state.global_step} of {state.max_steps}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step_s = (time.perf_counter() - self._started_s) / max(state.global_step - self._first_step, 1)
        left_s = step_s * (state.max_steps - state.global_step)
        self._write(
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"learning rate {logs['learning_rate']:.1e}  {step_s:.2f} s/step  {left_s:.0f} s left"
        )
