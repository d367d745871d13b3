"""Every recipe is valid, the command line wins, and a wrong key is named."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.errors import ConfigError
from kwise.train.command import add_arguments, config_of
from kwise.train.options.config import Schedule, TrainConfig
from kwise.train.options.recipe import read_recipe, recipe_names, summary
from tests.training_runs import IGNORED_WARNINGS

pytestmark = IGNORED_WARNINGS


def parsed(*arguments: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return config_of(parser.parse_args(["data.jsonl", "--model", "m", "--output", "o", *arguments]))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_valid_configuration_and_says_what_it_is(name: str) -> None:
    config = parsed("--recipe", name)
    for key, value in read_recipe(name).items():
        assert getattr(config, key) == value or key == "model"
        assert type(value) is type(getattr(config, key))
    assert len(summary(name)) > 40


def test_flags_win_and_the_rest_are_defaults() -> None:
    recipe = parsed("--recipe", "instructgpt")
    assert (recipe.learning_rate, recipe.rankings_per_step, recipe.final_learning_rate_ratio) == (
        9e-6,
        64,
        0.1,
    )
    # Also a flag that says what the default is, and one that stands before the recipe.
    config = parsed(
        "--rankings-per-step", "4", "--recipe", "instructgpt", "--learning-rate", "1e-5"
    )
    assert (config.learning_rate, config.rankings_per_step, config.final_learning_rate_ratio) == (
        1e-5,
        4,
        0.1,
    )
    assert config.warmup_ratio == TrainConfig(data="d", model="m", output=Path("o")).warmup_ratio
    assert parsed() == TrainConfig(data="data.jsonl", model="m", output=Path("o"))


def test_a_validation_file_takes_the_place_of_a_recipes_fraction() -> None:
    arguments = ("--recipe", "smollm2-cpu")
    assert parsed(*arguments).held_out_fraction == 0.15
    config = parsed(*arguments, "--validation", "v.jsonl")
    assert (config.validation, config.held_out_fraction) == ("v.jsonl", 0)
    with pytest.raises(ConfigError, match="--validation and --validation-fraction exclude"):
        parsed(*arguments, "--validation", "v.jsonl", "--validation-fraction", "0.1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "learning_rat: 1.0e-5",
            "learning_rat: is not an option of a recipe; known are centring, ",
        ),
        ("validation: v.jsonl", "validation: is not an option of a recipe"),
        ("output: here", "output: is not an option of a recipe"),
        ("rankings_per_step: 4.5", "rankings_per_step: must be an integer, not 4.5"),
        ("load_in_4bit: 1", "load_in_4bit: must be true or false, not 1"),
        ("learning_rate: fast", "learning_rate: 'fast' is not a number"),
        ("schedule: step", "schedule: 'step' is not one of cosine, linear"),
        ("- 1", "must be a mapping of options to values"),
        ("a: [", "is not YAML: "),
    ],
)
def test_a_bad_recipe_is_named_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_recipe(str(path))
    assert str(raised.value).startswith(f"{path}: {problem}")


def test_numbers_without_a_point_and_names_are_read_as_their_types(tmp_path: Path) -> None:
    """YAML 1.1 takes 9e-6 for a string."""
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 9e-6\nschedule: linear\nmax_tokens: null\nlora_alpha: 32\n")
    assert read_recipe(str(path)) == {
        "learning_rate": 9e-6,
        "schedule": Schedule.LINEAR,
        "max_tokens": None,
        "lora_alpha": 32,
    }
    with pytest.raises(
        ConfigError, match=r"^--recipe instructgtp: not known; known are deepmind-70b, "
    ):
        read_recipe("instructgtp")


def test_a_run_by_the_name_of_a_recipe(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    arguments = [
        "train",
        str(data),
        "--model",
        str(tiny_checkpoint),
        "--output",
        str(output),
        "--epochs",
        "0.2",
    ]
    assert main([*arguments, "--recipe", "stackllama", "--precision", "fp32"]) == 0
    card = (output / "README.md").read_text()
    assert (
        "| `lora_rank` | `8` |" in card
        and "| `schedule` | `linear` |" in card
        and "| `epochs` | `0.2` |" in card
    )
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith("recipe stackllama: ") and "--lora-rank 8" in told
    assert "--epochs" not in told and "--precision" not in told, "the command line gives them"
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()
    assert main(["recipes", "stackllama"]) == 0
    assert "lora_rank: 8\n" in capsys.readouterr().out
    assert main(["recipes", "nope"]) == 2
    assert "recipe nope: not known; known are deepmind-70b, " in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", "--list-recipes"])
    assert ended.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()


def test_a_recipe_is_printed_before_its_options_exclude_one_that_was_given(
    data: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["train", str(data), "--model", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--recipe", "smollm2-alpaca", "--lora-rank", "8"]) == 2
    recipe, error = capsys.readouterr().err.splitlines()
    assert recipe.startswith("recipe smollm2-alpaca: --layers 22 ")
    assert error.startswith("kwise train: --layers and --lora-rank exclude each other")
