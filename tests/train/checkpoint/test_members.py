"""A head with several outputs is an ensemble only if config.json says so."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kwise.errors import ConfigError
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.reward_model import load_reward_model
from tests.edited_checkpoints import Tensors, copy_checkpoint


def three_heads(tensors: Tensors) -> Tensors:
    """Return tensors whose head has three outputs: once, twice and three times the reward."""
    factors = torch.tensor([1.0, 2.0, 3.0])[:, None]
    return tensors | {"score.weight": factors * tensors["score.weight"]}


@pytest.mark.parametrize("means", [None, [0.5, -1, 2.0]])
def test_members_and_their_means_are_read(
    llama: Path, tmp_path: Path, means: list[float] | None
) -> None:
    path = copy_checkpoint(
        llama, tmp_path / "copy", change=three_heads, kwise_members=3, kwise_member_means=means
    )
    loaded = load_checkpoint("CHECKPOINT", str(path), to_train=False)
    assert loaded.statements.num_members == loaded.model.num_labels == 3
    assert loaded.statements.member_means == tuple(means or (0, 0, 0))
    assert loaded.notes == ()
    ids = torch.tensor([[3, 4, 5, 6]])
    single = load_checkpoint("CHECKPOINT", str(llama), to_train=False).model.eval()
    with torch.no_grad():
        reward, rewards = single(ids).logits[0, 0], loaded.model.eval()(ids).logits[0]
    torch.testing.assert_close(rewards, reward * torch.tensor([1.0, 2.0, 3.0]))


def test_an_ordinary_reward_model_has_one_member(llama: Path) -> None:
    statements = load_checkpoint("CHECKPOINT", str(llama), to_train=False).statements
    assert (statements.num_members, statements.member_means) == (1, ())


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"kwise_members": 1}, r"kwise_members 1; it must be an integer from 2 to 100"),
        ({"kwise_members": True}, r"kwise_members True; it must be an integer from 2 to 100"),
        ({"kwise_members": "3"}, r"kwise_members '3'; it must be an integer from 2 to 100"),
        ({"kwise_member_means": [1.0]}, r"has kwise_member_means and no kwise_members"),
        (
            {"kwise_members": 3, "kwise_member_means": [1.0, 2.0]},
            r"kwise_member_means \[1.0, 2.0\]; it must be a list of 3 finite numbers",
        ),
        (
            {"kwise_members": 3, "kwise_member_means": [1.0, 2.0, "3"]},
            r"it must be a list of 3 finite numbers",
        ),
        ({"kwise_members": 2}, r"its head is score.weight \[3, 16\], and that .* is \[2, 16\]"),
        ({}, r"its head is score.weight \[3, 16\], and that of a reward model is \[1, 16\]"),
    ],
)
def test_what_is_stated_about_members_must_fit_and_be_stated(
    llama: Path, tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", change=three_heads, **stated)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint("CHECKPOINT", str(path), to_train=False)


def test_training_starts_from_as_many_heads_as_it_is_asked_for(llama: Path, tmp_path: Path) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", change=three_heads, kwise_members=3)
    with pytest.raises(ConfigError, match=r"has 3 heads .*, and --heads is 1: give --heads 3"):
        load_checkpoint("--model", str(path), to_train=True, num_heads=1)
    with pytest.raises(
        ConfigError, match=r"a reward model with one head, and --heads is 3: .*a language model"
    ):
        load_checkpoint("--model", str(llama), to_train=True, num_heads=3)
    assert load_checkpoint("--model", str(path), to_train=True, num_heads=3).new_layers == ()


def test_training_leaves_out_the_means_before_it_and_says_so(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(
        tiny_checkpoint,
        tmp_path / "copy",
        change=three_heads,
        kwise_members=3,
        kwise_member_means=[1.0, 2.0, 3.0],
    )
    loaded = load_reward_model(str(path), num_heads=3)
    assert "kwise_member_means describe rewards before training" in loaded.notes[-1]
    assert loaded.num_heads == 3 and not hasattr(loaded.model.config, "kwise_member_means")
