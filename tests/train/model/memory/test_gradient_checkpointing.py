"""Checkpointed layers repeat what they do not save, and change no gradient."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kwise.errors import ConfigError
from kwise.train.model.batch.layout import PaddedLayout, rewards_of
from kwise.train.model.memory.gradient_checkpointing import enable_checkpointing
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import Checkpointing
from kwise.train.step.losses import kwise_loss
from tests.tiny_models import GROUPED, SMALL, tiny_model

SEQUENCES = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 4]]


class Matmuls(TorchDispatchMode):
    """Count the matmuls with weights, forward and backward."""

    count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Llama", GROUPED),
        ("Gemma", GROUPED),
        ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
        ("Bert", {**SMALL, "max_position_embeddings": 512}),
    ],
)
def test_checkpointing_changes_no_gradient_and_selective_repeats_fewer_matmuls_than_full(
    family: str, options: dict[str, Any], smollm2_tokenizer: Any, tmp_path: Any
) -> None:
    loaded = load_reward_model(str(tiny_model(family, options, smollm2_tokenizer, tmp_path)))
    model = loaded.model.train()
    layouts = {PaddedLayout(2), loaded.layout}
    assert len(layouts) == (1 if family == "Bert" else 2)
    for layout in layouts:
        gradients, counts = [], []
        for checkpointing in Checkpointing:
            for module in model.modules():
                module.gradient_checkpointing = False  # transformers 5.24 renamed the method
            enable_checkpointing(model, checkpointing)
            model.zero_grad()
            with Matmuls() as matmuls:
                kwise_loss(
                    rewards_of(model, layout.lay_out(SEQUENCES)), torch.tensor([1, 2, 3])
                ).backward()
            counts.append(matmuls.count)
            gradients.append(
                {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            )
        assert counts[0] < counts[1] < counts[2], "none, selective, full"
        for again in gradients[1:]:
            assert again.keys() == gradients[0].keys()
            for name, gradient in gradients[0].items():
                torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_an_architecture_without_checkpointing_is_refused(
    smollm2_tokenizer: Any, tmp_path: Any
) -> None:
    model = load_reward_model(str(tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path))).model
    type(model).supports_gradient_checkpointing, before = (
        False,
        type(model).supports_gradient_checkpointing,
    )
    try:
        with pytest.raises(
            ConfigError,
            match="--gradient-checkpointing: LlamaForSequenceClassification does not support it",
        ):
            enable_checkpointing(model, Checkpointing.FULL)
    finally:
        type(model).supports_gradient_checkpointing = before
