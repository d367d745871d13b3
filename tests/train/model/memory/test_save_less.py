"""Norms and MLPs that save less: the same rewards and gradients, and fewer bytes kept."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel, LlamaRMSNorm

from kwise.train.model.batch.layout import rewards_of
from kwise.train.model.memory.gated_mlp import GatedMlp
from kwise.train.model.memory.gradient_checkpointing import enable_checkpointing
from kwise.train.model.memory.rms_norm import RmsNorm
from kwise.train.model.memory.save_less import save_less
from kwise.train.model.precision import bf16_backbone
from kwise.train.model.reward_model import RewardModel, load_reward_model
from kwise.train.options.config import Checkpointing
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
        layers = [m for m in reward_model.model.modules() if type(m).__name__.endswith("Attention")]
        assert layers
        assert all("forward" in vars(layer) for layer in layers)
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


@pytest.mark.parametrize("checkpointing", [Checkpointing.SELECTIVE, Checkpointing.FULL])
def test_gradient_checkpointing_gets_the_same_gradients(
    load: Load, checkpointing: Checkpointing
) -> None:
    reward_model = load("qwen3")
    before = rewards_and_gradients(reward_model)
    save_less(reward_model.model)
    enable_checkpointing(reward_model.model, checkpointing)
    assert_same(rewards_and_gradients(reward_model), before, rtol=2e-5)


def small_mlp(**options: Any) -> LlamaMLP:
    torch.manual_seed(0)
    return LlamaMLP(
        LlamaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=12, **options)
    )


@pytest.mark.parametrize("options", [{"hidden_act": "gelu"}, {"mlp_bias": True}])
def test_other_activations_and_biases_stay(options: dict[str, Any]) -> None:
    mlp, x = small_mlp(**options), torch.randn(3, 8)
    before = mlp(x)
    save_less(mlp)
    assert torch.equal(mlp(x), before)


def test_a_copy_uses_its_own_weights() -> None:
    mlp, x = small_mlp(), torch.randn(3, 8)
    save_less(mlp)
    twin, before = copy.deepcopy(mlp), mlp(x)
    nn.init.zeros_(mlp.down_proj.weight)
    assert torch.equal(twin(x), before)


@pytest.mark.parametrize("layer", ["gate_proj", "up_proj", "down_proj", "act_fn"])
def test_hooks_run(layer: str) -> None:
    mlp, x = small_mlp(), torch.randn(3, 8)
    save_less(mlp)
    mlp.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output * 0)
    assert not mlp(x).any()


def test_a_hook_of_all_modules_sees_the_layers_of_an_mlp() -> None:
    mlp, seen = small_mlp(), []
    save_less(mlp)
    hook = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        mlp(torch.randn(3, 8))
    finally:
        hook.remove()
    assert seen == [mlp.gate_proj, mlp.act_fn, mlp.up_proj, mlp.down_proj, mlp]


def test_autocast_leaves_float64_as_it_is() -> None:
    mlp, x = small_mlp().double(), torch.randn(3, 8).double()
    with torch.autocast("cpu", torch.bfloat16):
        before = mlp(x)
        save_less(mlp)
        torch.testing.assert_close(mlp(x), before)


def test_a_single_row_has_no_dimension_of_rows() -> None:
    mlp, x = small_mlp(), torch.randn(8, requires_grad=True)
    (before,) = torch.autograd.grad(mlp(x).sum(), x)
    save_less(mlp)
    torch.testing.assert_close(*torch.autograd.grad(mlp(x).sum(), x), before)


def test_a_replaced_forward_stays() -> None:
    mlp, x = small_mlp(), torch.randn(3, 8)
    mlp.forward = lambda x: 2 * x
    save_less(mlp)
    assert torch.equal(mlp(x), 2 * x)


def test_a_decorated_forward_is_not_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions with one decorator have the same bytecode."""

    def decorated(function: Any) -> Any:
        return functools.wraps(function)(lambda *args: function(*args))

    class Doubled(nn.Module):
        @decorated
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    monkeypatch.setattr(LlamaMLP, "forward", decorated(LlamaMLP.forward))
    monkeypatch.setattr(LlamaRMSNorm, "forward", decorated(LlamaRMSNorm.forward))
    module, x = Doubled(), torch.randn(3, 8)
    save_less(module)
    assert torch.equal(module(x), 2 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reference", [LlamaMLP, LlamaRMSNorm])
def test_any_dtype_and_strides_get_the_same_gradients(
    reference: type[nn.Module], dtype: torch.dtype
) -> None:
    module = (small_mlp() if reference is LlamaMLP else LlamaRMSNorm(8)).to(dtype)
    x = torch.randn(8, 3, 2, dtype=dtype).transpose(0, 2).requires_grad_()  # not contiguous

    def output_and_gradients() -> list[Tensor]:
        output = module(x)
        return [output, *torch.autograd.grad(output.sum(), [x, *module.parameters()])]

    before = output_and_gradients()
    save_less(module)
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
    for after, expected in zip(output_and_gradients(), before, strict=True):
        assert after.dtype is expected.dtype
        torch.testing.assert_close(after, expected, rtol=tolerance, atol=tolerance)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_the_gradients_of_a_norm_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    rms_norm: Any = RmsNorm.apply
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 0.1), (random(2, 3, 5), random(5)))


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_copy_of_a_model_uses_its_own_weights(copy_of: Any) -> None:
    torch.manual_seed(0)
    options = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    model = LlamaModel(LlamaConfig(vocab_size=9, num_hidden_layers=1, **options))
    token_ids = torch.tensor([[1, 2, 3]])
    save_less(model)
    before = model(token_ids).last_hidden_state
    twin = copy_of(model)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(twin(token_ids).last_hidden_state, before)
    assert "forward" in vars(twin.layers[0].self_attn)


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (2, 37, 8)], ids=["empty", "one", "blocks"])
def test_a_gated_mlp_has_the_gradients_of_its_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    width = 4096  # a block has 8 rows
    inputs = random(*shape), random(width, shape[-1]), random(width, shape[-1]), random(4, width)
    gated_mlp: Any = GatedMlp.apply

    def formula(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (nn.functional.silu(x @ gate.t()) * (x @ up.t())) @ down.t()

    def outputs(function: Any) -> list[Tensor]:
        output = function(*inputs)
        return [output, *torch.autograd.grad(output.sin().sum(), inputs)]

    torch.testing.assert_close(outputs(gated_mlp), outputs(formula))


def test_a_second_backward_pass_over_one_graph_is_an_error() -> None:
    mlp, x = small_mlp(), torch.randn(3, 8)
    save_less(mlp)
    loss = mlp(x).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm: Any = RmsNorm.apply
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 4), 1e3))
