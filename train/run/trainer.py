"""K-wise training on Hugging Face's `Trainer`: its loop, optimizer, schedule, checkpoints and devices; our batches and loss.

A dataset item is one ranking, so shuffling, accumulation and data parallelism cannot part a ranking's pairs. An optimizer
step is `rankings_per_step` rankings, computed `rankings_per_pass` at a time in each process; gradients accumulate in between.

Dimensions: B rankings of a batch; S sequences of a batch, those of its rankings one after another.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME

from kwise.train.model.gradient_checkpointing import enable_checkpointing
from kwise.train.model.layout import rewards_and_text_of
from kwise.train.model.precision import bf16_backbone, choose_precision
from kwise.train.model.reward_model import RewardModel
from kwise.train.options.config import Precision, TrainConfig
from kwise.train.report.progress import ProgressLines
from kwise.train.run.arguments import training_arguments
from kwise.train.run.processes import Processes
from kwise.train.run.steps import MarkComplete
from kwise.train.run.validation import Validation
from kwise.train.step.batch import Batch, TokenizedRanking, collate
from kwise.train.step.epoch_order import EpochOrder
from kwise.train.step.losses import Labels, NotFinite, RankingLoss, batch_losses, ranking_loss
from kwise.train.step.text_regulariser import text_losses


class RankingTrainer(Trainer):
    """A `Trainer` whose items are rankings, whose loss is `loss`, and which evaluates on `validation`."""

    control: TrainerControl
    loss: RankingLoss
    text_weight: float
    validation: Validation
    order: EpochOrder
    precision: Precision
    in_precision: Callable[[], AbstractContextManager[None]]
    has_ended = False

    def train_from(self, checkpoint: Path | None) -> None:
        """`train()` from the beginning, or go on from a step checkpoint.

        Where training had ended with it, there are no more passes: `Trainer` would go on for a step that early stopping had ruled
        out.
        """
        if checkpoint is not None:
            self.has_ended = _has_ended(
                TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            )
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: float | None = None,
    ) -> Tensor:
        """This pass's part of the mean over the step's rankings, of which there are `num_items_in_batch` in all processes.

        Gradients, and the losses that are logged, are averaged over processes, so each multiplies its part by their number.

        Raises:
            NotFinite: a loss is infinite or not a number; its gradient would be the end of all weights.
        """
        with self.in_precision():
            rewards_S, log_probs_M = rewards_and_text_of(model, inputs)
        labels_S = Labels(inputs["ranks"], inputs["scores"])
        losses_B = batch_losses(rewards_S, labels_S, inputs["group_sizes"].tolist(), self.loss)
        if log_probs_M is not None:
            texts_B = text_losses(log_probs_M, inputs["text_sizes"].tolist())
            losses_B = (1 - self.text_weight) * losses_B + self.text_weight * texts_B
        if not losses_B.isfinite().all():
            raise NotFinite(
                f"the loss of step {self.state.global_step + 1} is not finite: {losses_B.tolist()}"
            )
        total = num_items_in_batch or inputs["weights"].sum()
        return (inputs["weights"] * losses_B).sum() * self.args.world_size / total

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], float]:
        """The passes of the next step, and its rankings counted: `Trainer` counts labels, which we have not. Dividing by
        the number of passes instead would give the rankings of a last, smaller pass a larger weight."""
        batches, _ = ([], 0) if self.has_ended else super().get_batch_samples(*args, **kwargs)
        if not batches:  # of an epoch that a resumed run begins in the middle of
            return [], 0.0
        counted = torch.stack([batch["weights"].sum() for batch in batches]).sum()
        return batches, float(self.accelerator.gather(counted).sum())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """What `Trainer` calls every `eval_steps`."""
        with self.in_precision():
            evaluation = self.validation.measure()
        metrics = {"eval_loss": evaluation.loss, "eval_accuracy": evaluation.accuracy}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order


def make_trainer(
    model: nn.Module,
    reward_model: RewardModel,
    rankings: Sequence[TokenizedRanking],
    validation: Validation,
    config: TrainConfig,
    processes: Processes,
    start: TrainerCallback,
    steps_dir: Path,
    progress: Callable[[str], None],
) -> RankingTrainer:
    """A trainer that is ready to `train()`, with the model on its device.

    Args:
        model: `reward_model.model`, or the wrapper of adapters around it.
        start: comes before the other callbacks, which measure the time of training.

    Raises:
        ConfigError: see `training_arguments`.
    """
    arguments = training_arguments(
        config,
        layout=reward_model.layout,
        num_rankings=len(rankings),
        num_processes=processes.count,
        sharded=processes.sharded,
        steps_dir=steps_dir,
    )
    enable_checkpointing(reward_model.model, config.gradient_checkpointing)
    callbacks: list[TrainerCallback] = [
        start,
        MarkComplete(processes),
        ProgressLines(progress),
        HowOften(),
    ]
    if config.early_stopping_patience:
        callbacks += [EvaluateTheLast(), EarlyStoppingCallback(config.early_stopping_patience)]
    trainer = RankingTrainer(
        model=model,
        args=arguments,
        train_dataset=[
            *rankings,
            replace(rankings[0], counts=False),
        ],  # see EpochOrder for the last
        eval_dataset=list(validation.rankings),
        data_collator=partial(collate, layout=reward_model.layout),
        processing_class=reward_model.tokenizer,
        callbacks=callbacks,
    )
    trainer.loss = ranking_loss(config)
    trainer.text_weight = config.text_regulariser
    trainer.validation = validation
    trainer.precision = choose_precision(config.precision, arguments.device)
    trainer.in_precision = nullcontext
    if trainer.precision is Precision.BF16:
        trainer.in_precision = partial(bf16_backbone, reward_model.model, arguments.device)
    per_round = config.rankings_per_pass * processes.count if processes.count > 1 else 1
    trainer.order = EpochOrder(len(rankings), seed=config.seed, per_round=per_round)
    # Trainer's word for "compute_loss has normalised over the whole step": it must not divide by the number of passes.
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    return trainer


def _has_ended(state: TrainerState) -> bool:
    return bool(state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"])


class HowOften(TrainerCallback):
    """--save-every and --log-every of a resumed run, where `Trainer` would read those of the run before from its state."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class EvaluateTheLast(TrainerCallback):
    """The weights of the last step are a candidate for the best, also where `eval_steps` does not divide the steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
