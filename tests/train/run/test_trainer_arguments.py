"""The learning rate that the options describe is the one that training has."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from kwise.errors import ConfigError
from kwise.train.model.batch.layout import TrieLayout
from kwise.train.options.config import Schedule, TrainConfig
from kwise.train.run.trainer_arguments import trainer_arguments


def arguments_of(num_processes: int = 1, **options: Any) -> Any:
    config = TrainConfig(data="d", model="m", output=Path("o"), **options)
    return trainer_arguments(
        config,
        layout=TrieLayout(),
        num_rankings=400,
        num_processes=num_processes,
        sharded=False,
        state_directory=Path("out.unfinished"),
    )


@pytest.mark.parametrize(
    ("schedule", "falling"),
    [
        ("cosine", lambda part: (1 + math.cos(math.pi * part)) / 2),
        ("linear", lambda part: 1 - part),
    ],
)
@pytest.mark.parametrize("rest", [0.0, 0.1])
def test_after_the_warm_up_it_falls_to_what_is_to_be_left(
    schedule: str, falling: Any, rest: float
) -> None:
    arguments = arguments_of(
        schedule=Schedule(schedule),
        final_learning_rate_ratio=rest,
        learning_rate=0.01,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.warmup_steps,
        num_training_steps=100,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:11] == pytest.approx([0.001 * step for step in range(11)])
    expected = [0.01 * (rest + (1 - rest) * falling(step / 90)) for step in range(91)]
    assert rates[10:] == pytest.approx(expected, abs=1e-9)


def test_the_rankings_of_a_step_are_shared_evenly_by_all_processes() -> None:
    assert (
        arguments_of(2, rankings_per_step=8, rankings_per_pass=2).gradient_accumulation_steps == 2
    )
    with pytest.raises(
        ConfigError,
        match="--rankings-per-step is 4; 3 processes with --rankings-per-pass 1 need "
        "a multiple of 3",
    ):
        arguments_of(3)
