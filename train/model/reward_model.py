"""A reward model: a language model whose LM head is replaced by one linear layer, so that a conversation gives one scalar.

It stays a plain `AutoModelForSequenceClassification(num_labels=1)`; what decides is in named functions: how the head
starts, which weights may be missing, where dropout goes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kwise.errors import ConfigError
from kwise.train.model.four_bit import four_bit_options, leave_weights_alone
from kwise.train.model.layout import TrainLayout, best_layout, lay_out, read_tries, rewards_of
from kwise.train.model.limits import model_max_tokens
from kwise.train.model.pretrained import reading, source_of
from kwise.train.model.tokenizer import choose_pad_token, load_tokenizer, token_ids
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A model with its tokenizer, which agree on the padding token.

    new_layers: names of the layers that the checkpoint did not have, the head for instance, and that start at random.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: TrainLayout
    new_layers: tuple[str, ...] = ()

    @property
    def max_tokens(self) -> int | None:
        """The longest conversation that the model can read; None where it states no limit."""
        return model_max_tokens(self.model, self.tokenizer)

    @torch.no_grad()
    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """The rewards of `conversations` in one pass, in the precision of the weights."""
        sequences = [token_ids(self.tokenizer, conversation) for conversation in conversations]
        tensors = lay_out(sequences, self.layout, self.model.config.pad_token_id)
        self.model.eval()
        return rewards_of(
            self.model, {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        ).tolist()

    def save(self, directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what `from_pretrained` of a model and of a tokenizer read, chat template included. state_dict: where the model's
        own is in parts."""
        self.model.save_pretrained(directory, state_dict=state_dict)
        for weights in directory.glob(
            "*.safetensors"
        ):  # which safetensors makes readable to their owner alone
            weights.chmod((directory / "config.json").stat().st_mode)
        self.tokenizer.save_pretrained(directory)


def load_reward_model(
    model: str,
    *,
    chat_template: Path | None = None,
    seed: int = 0,
    load_in_4bit: bool = False,
    agree: Callable[[TrainLayout], TrainLayout] = lambda layout: layout,
) -> RewardModel:
    """Read MODEL, an SFT language model or a reward model, in float32.

    Args:
        model: a Hugging Face directory, a hub name, or a `.gguf` file (its weights are dequantised).
        chat_template: a Jinja file to use in place of the model's own template.
        seed: of the head's first weights, where the checkpoint has no head.
        load_in_4bit: see four_bit.py; the model is then to be adapted, and dequantised in the end.
        agree: what the processes make of the layouts that they measured; the weights of some may still be empty (FSDP).

    Raises:
        ConfigError: there is no such model; the checkpoint lacks weights of the language model, or has a head for several
            labels; or the tokenizer cannot be made ready, see `load_tokenizer` and `choose_pad_token`; or four bits cannot be
            had, see `four_bit_options`.
        OSError: there is no such chat template.
    """
    if model.endswith(".gguf") and not Path(model).is_file():
        raise ConfigError(f"--model {model}: there is no such file")
    tokenizer = load_tokenizer(model, chat_template)
    torch.manual_seed(
        seed
    )  # layers between backbone and head, where an architecture has them, start at random
    quantised = four_bit_options(model) if load_in_4bit else {}
    with reading("--model", model):
        loaded, loading = AutoModelForSequenceClassification.from_pretrained(
            **source_of(model),
            num_labels=1,
            dtype=torch.float32,
            output_loading_info=True,
            **quantised,
        )
    leave_weights_alone(loaded)
    # Left behind by quantised sources; a later from_pretrained would look for quantised weights.
    if hasattr(loaded.config, "quantization_config") and not load_in_4bit:
        del loaded.config.quantization_config
    _check_backbone(loaded, loading["missing_keys"], model)
    name, head = reward_head(loaded)
    if f"{name}.weight" in loading["missing_keys"]:
        init_head(head, seed)
    pad_token_id = choose_pad_token(tokenizer, configured=loaded.config.pad_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    loaded.config.pad_token_id = pad_token_id
    loaded.config.use_cache = (
        False  # a reward is one pass: keys and values would be kept for nothing
    )
    disable_dropout(loaded)
    layout = agree(best_layout(loaded))
    if layout is TrainLayout.TRIE:
        read_tries(loaded)
    new_layers = sorted({key.rpartition(".")[0] for key in loading["missing_keys"]})
    return RewardModel(
        model=loaded, tokenizer=tokenizer, layout=layout, new_layers=tuple(new_layers)
    )


def reward_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """(name, layer) of the linear layer with one output: `score` of decoders, `classifier` or its `out_proj` of encoders.

    Raises:
        ConfigError: the architecture has no such layer.
    """
    linear = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    heads = [(name, module) for name, module in linear if module.out_features == 1]
    if not heads:
        raise ConfigError(f"--model: {type(model).__name__} has no linear head with one output")
    return heads[-1]


@torch.no_grad()
def init_head(head: nn.Linear, seed: int) -> None:
    """Weights from N(0, 1/(d+1)), that is a standard deviation of 1/√(d+1) for d inputs; a bias of 0.

    Stiennon et al. 2020, "Learning to summarize from human feedback", as vwxyzjn/summarize_from_feedback_details (reward.py)
    reproduces it.
    """
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    if head.bias is not None:
        head.bias.zero_()


def disable_dropout(model: nn.Module) -> None:
    """Train without dropout, so that the K rewards of a ranking come from one function and differ for one reason.

    As vwxyzjn/summarize_from_feedback_details (`configure_dropout`) and TRL's `RewardConfig.disable_dropout` do. The
    config keeps its figures.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention functions and layer drop read a plain number instead: `attention_dropout`, `layerdrop`.
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _check_backbone(model: PreTrainedModel, missing: Sequence[str], name: str) -> None:
    """Refuse a checkpoint whose language model would silently start at random: only what lies behind it may be missing,
    the head, and a pooler between the two."""
    prefix = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(prefix) and "pooler" not in key)
    if lost:
        raise ConfigError(
            f"--model {name}: the checkpoint lacks {len(lost)} weights of the language model, {lost[0]} first"
        )
