"""Several heads over one backbone: what they learn from, what is saved, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from kwise.engine.artifact.read import read_artifact
from kwise.errors import ConfigError
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import TrainConfig
from kwise.train.options.objectives import ObjectiveConfig, ObjectiveName
from kwise.train.run.training import train
from kwise.train.step.losses import Labels, batch_losses, ranking_loss
from kwise.types import Message
from tests.edited_checkpoints import copy_checkpoint
from tests.exports import export_quietly
from tests.training_runs import IGNORED_WARNINGS, interrupted_at, options

pytestmark = IGNORED_WARNINGS
FOUR = {"heads": 4, "head_share": 0.5, "epochs": 3.0, "learning_rate": 2e-3, "log_every": 1}
CONVERSATIONS = [
    (Message(role="user", content="Question 1?"), Message(role="assistant", content=text))
    for text in ("yes no", "no no yes", "yes")
]


@pytest.fixture(scope="module")
def run(data: Path, headless: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(report, output) of a run with four heads, of which two learn from each prompt."""
    output = tmp_path_factory.mktemp("heads") / "checkpoint"
    return train(TrainConfig(**options(data, headless, output, **FOUR))), output


# ---- the loss


def _gradients(weights_HD: Tensor, states_SD: Tensor, learning_BH: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights and states, for rankings of 3 and S - 3 responses."""
    weights_HD, states_SD = (t.clone().requires_grad_() for t in (weights_HD, states_SD))
    size = len(states_SD)
    ranks = torch.tensor([1, 2, 3, *range(1, size - 2)])
    labels = Labels(ranks, torch.full((size,), torch.nan))
    losses = batch_losses(
        states_SD @ weights_HD.T, labels, [3, size - 3], learning_BH, ranking_loss(PAIRS)
    )
    losses.sum().backward()
    assert weights_HD.grad is not None and states_SD.grad is not None
    return weights_HD.grad, states_SD.grad


PAIRS = ObjectiveConfig()
MASKS = st.lists(st.booleans(), min_size=4, max_size=4).filter(any)


@settings(max_examples=20)
@given(MASKS, MASKS, st.integers(0, 1000))
def test_a_head_learns_as_if_it_were_alone_and_the_backbone_gets_the_mean(
    first: list[bool], second: list[bool], seed: int
) -> None:
    """On one backbone's states, each head's gradient is that of a model with this head alone.

    So on a frozen backbone M heads are M independent models, whatever the other heads are.
    """
    torch.manual_seed(seed)
    weights, states = (torch.randn(n, 6, dtype=torch.float64) for n in (4, 7))
    learning = torch.tensor([first, second]).double()
    together, of_states = _gradients(weights, states, learning)
    share_BH = learning / learning.sum(1, keepdim=True)
    expected_states = torch.zeros_like(states)
    for head in range(4):
        expected = torch.zeros(6, dtype=torch.float64)
        for ranking, rows in enumerate((slice(0, 3), slice(3, 7))):
            alone = weights[head].clone().requires_grad_()
            inputs = states[rows].clone().requires_grad_()
            size = len(inputs)
            labels = Labels(torch.arange(1, size + 1), torch.full((size,), torch.nan))
            ranking_loss(PAIRS)(inputs @ alone, labels).backward()
            assert alone.grad is not None and inputs.grad is not None
            expected += share_BH[ranking, head] * alone.grad
            expected_states[rows] += share_BH[ranking, head] * inputs.grad
        torch.testing.assert_close(together[head], expected)
    torch.testing.assert_close(of_states, expected_states)


def test_three_equal_heads_are_one_model(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Heads with equal weights that see everything stay equal, and train the backbone as one."""
    three = copy_checkpoint(
        tiny_checkpoint,
        tmp_path / "three",
        change=lambda t: t | {"score.weight": t["score.weight"].repeat(3, 1)},
        kwise_members=3,
    )
    # AdamW does not see that a head's gradient is a third; the clipping of gradients would.
    changed = {"epochs": 0.4, "max_gradient_norm": 0.0, "validation_fraction": 0.0}
    one = options(data, tiny_checkpoint, tmp_path / "out1", **changed)
    all_three = options(data, three, tmp_path / "out3", heads=3, head_share=1.0, **changed)
    train(TrainConfig(**one))
    train(TrainConfig(**all_three))
    expected, weights = (
        load_file(path["output"] / "model.safetensors") for path in (one, all_three)
    )
    for head in weights["score.weight"]:
        torch.testing.assert_close(head, expected["score.weight"][0], rtol=0, atol=2e-5)
    del weights["score.weight"], expected["score.weight"]
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5, msg=name)


# ---- a run


def test_heads_learn_differ_and_are_compared_by_their_means(run: Any, data: Path) -> None:
    report, output = run
    config = json.loads((output / "config.json").read_text())
    assert config["kwise_members"] == 4 and len(config["kwise_member_means"]) == 4
    head = load_file(output / "model.safetensors")["score.weight"]
    assert head.shape == (4, 64) and len({tuple(row.tolist()) for row in head}) == 4
    assert report.after.accuracy > 0.8 and len(report.after.members.accuracies) == 4
    assert min(report.after.members.accuracies) > 0.6 and report.after.members.std > 0
    # The means are those of responses to 26 prompts; the four that are held out are like them.
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    conversations = [
        (Message(role="user", content=line["prompt"]), Message(role="assistant", content=r["text"]))
        for line in lines
        for r in line["responses"]
    ]
    with_means = load_reward_model(str(output), num_heads=4)
    with_means.model.config.kwise_member_means = config["kwise_member_means"]
    spread = with_means.rewards_of_heads(conversations)
    torch.testing.assert_close(spread.mean(0), torch.zeros(4), rtol=0, atol=0.2)
    assert with_means.rewards(CONVERSATIONS) == pytest.approx(
        with_means.rewards_of_heads(CONVERSATIONS).mean(1).tolist()
    )


def test_report_and_card_say_what_the_heads_are(run: Any) -> None:
    report, output = run
    written = json.loads((output / "training_report.json").read_text())
    assert written["after"]["members"]["accuracies"] == [*report.after.members.accuracies]
    card = (output / "README.md").read_text()
    assert "with a linear layer of 4 outputs in place of its LM head" in card
    assert "| pairwise accuracy of each head |" in card
    assert "4 heads, pairwise accuracy" in report.text()


def test_a_resumed_run_has_the_heads_of_an_uninterrupted_one(
    run: Any, data: Path, headless: Path, tmp_path: Path
) -> None:
    _, uninterrupted = run
    settings = options(data, headless, tmp_path / "resumed", **FOUR)
    interrupted_at("step 6/", TrainConfig(**settings))
    train(TrainConfig(**settings, resume=True))
    ours, theirs = (
        load_file(path / "model.safetensors") for path in (settings["output"], uninterrupted)
    )
    torch.testing.assert_close(ours["score.weight"], theirs["score.weight"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"lora_rank": 2},
        {"objective": ObjectiveName.PLACKETT_LUCE, "centring": 0.1, "rankings_per_pass": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_heads_go_with_other_options(
    data: Path, headless: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    settings = options(data, headless, tmp_path / "out", heads=2, epochs=0.3, **changed)
    train(TrainConfig(**settings))
    loaded = load_reward_model(str(settings["output"]), num_heads=2)
    assert loaded.rewards_of_heads(CONVERSATIONS).shape == (3, 2)


def test_regression_keeps_the_zero_of_its_rewards(headless: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    items = [{"text": text, "score": score} for text, score in (("yes", 5.0), ("no", 4.0))]
    path.write_text(
        "\n".join(json.dumps({"prompt": f"{n}?", "responses": items}) for n in range(4))
    )
    settings = options(
        path,
        headless,
        tmp_path / "out",
        heads=2,
        epochs=1.0,
        objective=ObjectiveName.REGRESSION,
        validation_fraction=0.0,
    )
    train(TrainConfig(**settings))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["kwise_member_means"] == [0.0, 0.0]


def test_a_share_without_several_heads_is_refused(data: Path, headless: Path) -> None:
    with pytest.raises(ConfigError, match="--head-share has no effect with --heads 1"):
        TrainConfig(**options(data, headless, Path("out"), head_share=0.7))


def test_the_checkpoint_exports_with_a_reward_for_each_head(run: Any, tmp_path: Path) -> None:
    _, output = run
    artifact = read_artifact(export_quietly(output, tmp_path / "artifact"))
    stated = json.loads((output / "config.json").read_text())["kwise_member_means"]
    members = artifact.manifest.members or ()
    assert [member.mean for member in members] == stated and len(stated) == 4
    assert {member.std for member in members} == {1.0}
