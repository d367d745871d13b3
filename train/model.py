"""A language model becomes a reward model: its LM head gives way to a scalar linear head. Any family of transformers'
`AutoModelForSequenceClassification` will do. What its tokenizer needs is in `tokenizer.py`.

Dimensions: K conversations; T tokens of the longest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.errors import ConfigError
from kwise.engine.types import Conversation
from kwise.train.batch import pad
from kwise.train.tokenizer import choose_pad_token, load_tokenizer, token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A model with float32 weights, and the tokenizer that goes with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def max_tokens(self) -> int | None:
        """The longest conversation that the model has positions for; None where it states no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """The rewards of K conversations, one pass, in evaluation mode. Leaves the model in the mode that it was in."""
        sequences = [token_ids(self.tokenizer, conversation) for conversation in conversations]
        input_ids_KT, mask_KT = pad(sequences, self.model.config.pad_token_id)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            rewards_K = rewards_of(self.model, input_ids_KT.to(self.model.device), mask_KT.to(self.model.device))
        self.model.train(was_training)
        return [float(reward) for reward in rewards_K]

    def save(self, directory: Path) -> None:
        """Write what `AutoModelForSequenceClassification` and `AutoTokenizer` load: safetensors, tokenizer.json and
        chat_template.jinja."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def rewards_of(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """float32[S]: the reward of each of S right-padded sequences. Training and validation both come through here.

    Prompts are computed once per response: a pass over a trie of the sequences would take this function's place.
    """
    return model(input_ids=input_ids, attention_mask=attention_mask).logits.float().squeeze(-1)


def load_reward_model(model: str, *, chat_template: Path | None, seed: int) -> RewardModel:
    """The reward model that training starts from; `seed` draws its head where the checkpoint has none.

    Raises:
        ConfigError: the checkpoint has a head of other than one label, no fast tokenizer, or no token to pad with.
        OSError: there is no such model or file.
    """
    tokenizer = load_tokenizer(model, chat_template)
    if not tokenizer.is_fast:
        raise ConfigError(f"--model {model}: has no fast tokenizer (tokenizer.json), which the engine needs")
    path = Path(model)
    source: dict[str, Any] = {"pretrained_model_name_or_path": model}
    if path.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        loaded, loading = AutoModelForSequenceClassification.from_pretrained(
            **source, num_labels=1, dtype=torch.float32, output_loading_info=True
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--model {model}: cannot be loaded as a model with one label: {error}") from error
    # Left behind by quantised sources; with it, a later from_pretrained would look for quantised weights.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    name, head = find_head(loaded)
    if f"{name}.weight" in loading["missing_keys"]:
        initialise_head(head, seed)
    loaded.config.pad_token_id = choose_pad_token(tokenizer, loaded.config.pad_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(loaded.config.pad_token_id)
    return RewardModel(model=loaded, tokenizer=tokenizer)


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """(name, layer) of the scalar head: `score` of decoders, `classifier` or its `out_proj` of encoders.

    Raises:
        ConfigError: there is not exactly one linear layer of one output.
    """
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads = [(name, module) for name, module in linear if module.out_features == 1]
    if len(heads) != 1:
        raise ConfigError(f"--model: {type(model).__name__} has {len(heads)} linear layers of one output; a head is one")
    return heads[0]


def initialise_head(head: nn.Linear, seed: int) -> None:
    """Weights from N(0, 1/√(d+1)), that is their standard deviation, and bias 0; d is the hidden size.

    Stiennon et al. 2020, "Learning to summarize from human feedback"; Huang et al. 2024, "The N+ implementation details of
    RLHF with PPO" (vwxyzjn/summarize_from_feedback_details, reward.py).
    """
    std = (head.in_features + 1) ** -0.5
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)) * std)
        if head.bias is not None:
            head.bias.zero_()


@contextmanager
def bf16_backbone(model: PreTrainedModel) -> Iterator[None]:
    """Within, all of `model` but its head runs under bfloat16 autocast.

    The head stays out: bfloat16 has 8 significant bits, so that rewards near 4 would come in steps of 1/32 and close
    responses would tie. `Trainer`'s own bf16 option would take the head in.
    """
    backbone = model.base_model
    forward = backbone.forward

    def forward_in_bf16(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.float()
        return output

    backbone.forward = forward_in_bf16
    try:
        yield
    finally:
        del backbone.forward  # the instance's attribute; the class's method is seen again


def has_fast_bf16(device: torch.device) -> bool:
    """Whether there are instructions for bfloat16 products (AVX512-BF16, AMX, CUDA from Ampere on); elsewhere it is emulated
    and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
