"""Hugging Face's Trainer for rankings: its loop, optimizer and checkpoints; our batches and loss.

A dataset item is one ranking, so that shuffling, accumulation and data parallelism cannot separate
a ranking's pairs. An optimizer step has `rankings_per_step` rankings. Each process computes
`rankings_per_pass` of them at a time and accumulates gradients.

Dimensions: B rankings of a batch; S sequences of a batch, those of its rankings one after another;
H heads.
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

from kwise.train.model.batch.layout import rewards_and_text_of
from kwise.train.model.memory.embedding import use_sparse_gradients
from kwise.train.model.memory.free_memory import free_memory_between_layers
from kwise.train.model.memory.gradient_checkpointing import enable_checkpointing
from kwise.train.model.memory.save_less import save_less
from kwise.train.model.precision import bf16_backbone, choose_precision
from kwise.train.model.reward_model import RewardModel
from kwise.train.options.config import Checkpointing, Precision, TrainConfig
from kwise.train.report.progress import ProgressLines
from kwise.train.run.processes import Processes
from kwise.train.run.trackers import set_tracker_directory
from kwise.train.run.trainer_arguments import trainer_arguments
from kwise.train.run.unfinished_run import TRACKER_NAME, MarkComplete
from kwise.train.run.validation import Validation
from kwise.train.step.batch import Batch, TokenizedRanking, collate, num_tokens
from kwise.train.step.epoch_order import EpochOrder
from kwise.train.step.losses import Labels, NotFinite, RankingLoss, batch_losses, ranking_loss
from kwise.train.step.text_regulariser import text_losses


class RankingTrainer(Trainer):
    """A Trainer whose items are rankings."""

    control: TrainerControl
    loss: RankingLoss
    text_weight: float
    validation: Validation
    order: EpochOrder
    precision: Precision
    in_precision: Callable[[], AbstractContextManager[None]]
    has_ended = False

    def train_from(self, checkpoint: Path | None) -> None:
        """Train from the beginning if `checkpoint` is None, else from that step checkpoint.

        If early stopping had ended training at the checkpoint, there are no more passes. Trainer
        itself would do one more step.
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
        """Return this pass's share of the mean loss of the step.

        The mean is over the `num_items_in_batch` rankings of all processes. Trainer averages
        gradients and logged losses over processes, so the share is multiplied by their number.

        Raises:
            NotFinite: a loss is infinite or NaN; its gradient would make all weights NaN.
        """
        with self.in_precision():
            rewards_SH, log_probs_M = rewards_and_text_of(model, inputs)
        labels_S = Labels(inputs["ranks"], inputs["scores"])
        losses_B = batch_losses(
            rewards_SH,
            labels_S,
            inputs["group_sizes"].tolist(),
            inputs["learning_heads"],
            self.loss,
        )
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
        """Return the batches of the next step and the number of its rankings.

        Trainer would count labels, which our batches lack. Division by the number of passes would
        give the rankings of a last, smaller pass a larger weight.
        """
        batches, _ = ([], 0) if self.has_ended else super().get_batch_samples(*args, **kwargs)
        if not batches:  # the rest of an epoch in which a resumed run begins
            return [], 0.0
        counted = torch.stack([batch["weights"].sum() for batch in batches]).sum()
        return batches, float(self.accelerator.gather(counted).sum())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on the validation split; Trainer calls this every `eval_steps`."""
        with self.in_precision():
            evaluation = self.validation.measure(f"at step {self.state.global_step}")
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
    before_training: TrainerCallback,
    state_directory: Path,
    progress: Callable[[str], None],
) -> RankingTrainer:
    """Return a trainer that is ready to train, with the model on its device.

    Args:
        model: `reward_model.model`, or PEFT's wrapper around it.
        before_training: runs before the other callbacks, because these measure the time of
            training.

    Raises:
        ConfigError: see `trainer_arguments`.
    """
    arguments = trainer_arguments(
        config,
        layout=reward_model.layout,
        num_rankings=len(rankings),
        num_processes=processes.count,
        sharded=processes.sharded,
        state_directory=state_directory,
    )
    if config.gradient_checkpointing is Checkpointing.NONE:
        save_less(model)  # checkpointed layers do already: with both, `selective` took 0.2 GB more
    use_sparse_gradients(model)
    enable_checkpointing(reward_model.model, config.gradient_checkpointing)
    precision = choose_precision(config.precision, arguments.device)
    if arguments.device.type == "cpu":
        free_memory_between_layers(reward_model.model, after_gradients=precision is Precision.FP32)
    callbacks: list[TrainerCallback] = [
        before_training,
        MarkComplete(processes),
        ProgressLines(
            progress,
            rankings_per_pass=config.rankings_per_pass * processes.count,
            rankings_per_step=config.rankings_per_step,
            num_rankings=len(rankings),
            tokens_per_ranking=num_tokens(rankings) / len(rankings),
        ),
        KeepIntervals(),
    ]
    if config.early_stopping_patience:
        callbacks += [EvaluateLastStep(), EarlyStoppingCallback(config.early_stopping_patience)]
    else:
        callbacks.append(KeepToEvaluationSteps())
    filler = replace(rankings[0], counts=False)  # see EpochOrder
    trainer = RankingTrainer(
        model=model,
        args=arguments,
        train_dataset=[*rankings, filler],
        eval_dataset=list(validation.rankings),
        data_collator=partial(collate, layout=reward_model.layout),
        processing_class=reward_model.tokenizer,
        callbacks=callbacks,
    )
    trainer.loss = ranking_loss(config)
    trainer.text_weight = config.text_regulariser
    trainer.validation = validation
    trainer.precision = precision
    trainer.in_precision = nullcontext
    if trainer.precision is Precision.BF16:
        trainer.in_precision = partial(bf16_backbone, reward_model.model, arguments.device)
    per_round = config.rankings_per_pass * processes.count if processes.count > 1 else 1
    trainer.order = EpochOrder(len(rankings), seed=config.seed, per_round=per_round)
    # compute_loss divides by the rankings of the whole step, so Trainer must not divide by the
    # number of passes.
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    set_tracker_directory(trainer, state_directory / TRACKER_NAME)
    return trainer


def _has_ended(state: TrainerState) -> bool:
    return bool(state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"])


class KeepIntervals(TrainerCallback):
    """A callback that applies --save-every and --log-every to a resumed run.

    Trainer would use those of the earlier run.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class KeepToEvaluationSteps(TrainerCallback):
    """A callback that evaluates after the last step only if `eval_steps` divides it.

    transformers 5 would always do so, although validation after training follows.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and control.should_evaluate:
            control.should_evaluate = state.global_step % args.eval_steps == 0


class EvaluateLastStep(TrainerCallback):
    """A callback that evaluates after the last step.

    Trainer of transformers 4 does so only if `eval_steps` divides the number of steps.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
