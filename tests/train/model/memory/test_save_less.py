"""Norms and MLPs that save less: the same rewards and gradients, and fewer bytes kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from kwise.train.model.batch.layout import rewards_of
from kwise.train.model.memory.gated_mlp import GatedDown
from kwise.train.model.memory.rms_norm import RmsNorm
from kwise.train.model.memory.save_less import save_less
from kwise.train.model.precision import bf16_backbone
from kwise.train.model.reward_model import RewardModel, load_reward_model
from kwise.train.step.losses import kwise_loss
from tests.tiny_models import PADDED, TRIE, tiny_model

SEQUENCES = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 4]]
WITH_LLAMAS_CODE = {"llama", "qwen2", "qwen3", "mistral"}

Load = Callable[[str], RewardModel]


@pytest.fixture
def load(smollm2_tokenizer: Any, tmp_path: Any) -> Load:
    def of(name: str) -> RewardModel:
        family, options = {**TRIE, **PADDED}[name]
        reward_model = load_reward_model(
            str(tiny_model(family, options, smollm2_tokenizer, tmp_path))
        )
        reward_model.model.train()
        for module in reward_model.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # would draw other numbers in the second pass
        return reward_model

    return of


def rewards_and_gradients(reward_model: RewardModel) -> tuple[Tensor, dict[str, Tensor]]:
    model = reward_model.model
    model.zero_grad()
    rewards = rewards_of(model, reward_model.layout.lay_out(SEQUENCES))
    kwise_loss(rewards, torch.tensor([1, 2, 3])).backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return rewards.detach(), gradients


def saved_bytes(reward_model: RewardModel) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights not counted."""
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in reward_model.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rewards = rewards_of(reward_model.model, reward_model.layout.lay_out(SEQUENCES))
    del rewards
    return sum(storages.values())


def assert_same(
    after: tuple[Tensor, dict[str, Tensor]], before: tuple[Tensor, dict[str, Tensor]], rtol: float
) -> None:
    torch.testing.assert_close(after[0], before[0], rtol=rtol, atol=rtol)
    assert after[1].keys() == before[1].keys()
    for name, gradient in before[1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(after[1][name], gradient, rtol=0, atol=rtol * largest, msg=name)


@pytest.mark.parametrize("name", [*TRIE, *PADDED])
def test_rewards_and_gradients_stay_and_only_layers_with_llamas_code_save_less(
    load: Load, name: str
) -> None:
    reward_model = load(name)
    before, bytes_before = rewards_and_gradients(reward_model), saved_bytes(reward_model)
    save_less(reward_model.model)
    assert_same(rewards_and_gradients(reward_model), before, rtol=2e-5)
    share = saved_bytes(reward_model) / bytes_before
    if name in WITH_LLAMAS_CODE:
        assert share < 0.85
    else:
        assert share == 1.0


def test_in_bf16_only_rounding_differs(load: Load) -> None:
    reward_model = load("qwen3")  # its norms of queries and keys get bfloat16
    device = torch.device("cpu")
    with bf16_backbone(reward_model.model, device):
        before = rewards_and_gradients(reward_model)
    save_less(reward_model.model)
    with bf16_backbone(reward_model.model, device):
        after = rewards_and_gradients(reward_model)
    assert_same(after, before, rtol=2e-2)


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear"])
def test_frozen_weights_and_adapters_get_the_same_gradients(load: Load, targets: Any) -> None:
    """With adapters on all layers, `down_proj` is a layer of PEFT."""
    reward_model = load("llama")
    adapted: Any = get_peft_model(
        reward_model.model, LoraConfig(task_type="SEQ_CLS", target_modules=targets)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    before = rewards_and_gradients(reward_model)
    assert not any("down_proj.weight" in name for name in before[1])
    save_less(adapted)
    assert_same(rewards_and_gradients(reward_model), before, rtol=2e-5)


def test_the_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    rms_norm: Any = RmsNorm.apply
    gated_down: Any = GatedDown.apply
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 0.1), (random(2, 3, 5), random(5)))
    assert torch.autograd.gradcheck(gated_down, (random(2, 3, 5), random(2, 3, 5), random(4, 5)))


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm: Any = RmsNorm.apply
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 4), 1e3))
