"""Hugging Face's `Trainer` with a ranking as its item: K sequences are scored once each, and all C(K,2) pairs share a step."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kwise.train.batch import Batch, TokenizedRanking, collate
from kwise.train.config import TrainConfig
from kwise.train.loss import mean_loss
from kwise.train.model import RewardModel, rewards_of
from kwise.train.steps import MarkComplete


class KwiseTrainer(Trainer):
    """The loss of a step is the mean of `kwise_loss` over its rankings."""

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rewards_S = rewards_of(model, inputs["input_ids"], inputs["attention_mask"])
        loss = mean_loss(rewards_S, inputs["ranks"], inputs["group_sizes"].tolist())
        return (loss, {"rewards": rewards_S}) if return_outputs else loss


def make_trainer(
    reward_model: RewardModel,
    training: Sequence[TokenizedRanking],
    config: TrainConfig,
    steps: Path,
    progress: Callable[[str], None],
) -> KwiseTrainer:
    """A trainer whose step checkpoints go to `steps`. Precision is not its concern: see `bf16_backbone`."""
    arguments = TrainingArguments(
        output_dir=str(steps),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.rankings_per_step,
        gradient_accumulation_steps=config.gradient_accumulation,
        warmup_ratio=config.warmup_ratio,
        weight_decay=config.weight_decay,
        seed=config.seed,
        optim="adamw_torch_fused",
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        logging_first_step=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        report_to=[],
    )
    trainer = KwiseTrainer(
        model=reward_model.model,
        args=arguments,
        train_dataset=list(training),
        data_collator=partial(collate, pad_token_id=reward_model.model.config.pad_token_id),
        callbacks=[MarkComplete(), _TellLoss(progress), _NoSaveAtTheEnd()],
    )
    trainer.remove_callback(PrinterCallback)
    # `mean_loss` is a mean already: Trainer has to divide it by the number of accumulated passes.
    trainer.model_accepts_loss_kwargs = False
    return trainer


class _TellLoss(TrainerCallback):
    def __init__(self, progress: Callable[[str], None]) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.progress(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}")


class _NoSaveAtTheEnd(TrainerCallback):
    """Trainer would write a step checkpoint after the last step, a moment before the final checkpoint is written."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False
