"""A reward model: a language model with a linear layer of one output in place of its LM head.

It stays a plain `AutoModelForSequenceClassification(num_labels=1)`. Everything that could be done
in several ways is a named function: how the head starts (head.py), which weights may be missing,
that dropout is off, which layout it uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import num_rows, set_pad_token_id, text_config
from kwise.train.checkpoint.statements import Statements
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.four_bit import four_bit_options
from kwise.train.model.head import init_head, reward_head
from kwise.train.model.layout import Layout, rewards_of
from kwise.train.model.layout_choice import choose_layout
from kwise.train.model.limits import counts_from_padding, model_max_tokens
from kwise.train.model.tokenizer import choose_pad_token, load_tokenizer, token_ids
from kwise.train.template.chat_template import ChatTemplate
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A model, its tokenizer and its layout; model and tokenizer have the same padding token.

    Attributes:
        template: the chat template, which the tokenizer has too.
        new_layers: names of the layers that the checkpoint does not have and that start at random,
            for instance the head.
        notes: sentences about what the checkpoint has and the model does not use.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    template: ChatTemplate
    new_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def max_tokens(self) -> int | None:
        """The length of the longest conversation for the model; None if it states no limit."""
        return model_max_tokens(self.model, self.tokenizer)

    @torch.no_grad()
    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """Return the rewards of `conversations`, from one pass in the precision of the weights."""
        sequences = [token_ids(self.tokenizer, conversation) for conversation in conversations]
        tensors = self.layout.lay_out(sequences)
        self.model.eval()
        on_device = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        return rewards_of(self.model, on_device).tolist()

    def save(self, directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write model, tokenizer and chat template in the format of `from_pretrained`.

        Args:
            state_dict: the whole weights, if the model itself is sharded.
        """
        self.model.save_pretrained(directory, state_dict=state_dict)
        # safetensors makes its files readable to their owner alone.
        mode = (directory / "config.json").stat().st_mode
        for weights in directory.glob("*.safetensors"):
            weights.chmod(mode)
        self.tokenizer.save_pretrained(directory)


def load_reward_model(
    model: str,
    *,
    chat_template: Path | None = None,
    template_date: str = "",
    seed: int = 0,
    load_in_4bit: bool = False,
    on_main_process: Callable[[Callable[[], Layout]], Layout] = lambda choose: choose(),
) -> RewardModel:
    """Load an SFT language model or a reward model in float32.

    Args:
        model: a Hugging Face directory, a hub name, or a `.gguf` file, whose weights are
            dequantised. An adapter is merged into its base model.
        chat_template: a Jinja file to use in place of the model's own template, or the name of one
            of its templates.
        template_date: the date that the template prints, "YYYY-MM-DD"; "" for today.
        seed: seed of the head's first weights, if the checkpoint has no head.
        load_in_4bit: see four_bit.py; the model must then get an adapter, and is dequantised when
            that is merged.
        on_main_process: runs a function in one of several processes and returns its result in all
            of them. With FSDP the others have no weights yet.

    Raises:
        ConfigError: the model does not exist; its checkpoint is refused, see `load_checkpoint`;
            its tokenizer cannot be used, see `load_tokenizer` and `choose_pad_token`; or it cannot
            be read in four bits, see `four_bit_options`.
        OSError: the chat template cannot be read.
    """
    if model.endswith(".gguf") and not Path(model).is_file():
        raise ConfigError(f"--model {model}: there is no such file")
    tokenizer, template = load_tokenizer(model, chat_template, template_date)
    torch.manual_seed(seed)  # some architectures have more new layers than the head
    quantised = four_bit_options(model) if load_in_4bit else {}
    checkpoint = load_checkpoint("--model", model, to_train=True, quantised=quantised)
    loaded = checkpoint.model
    name, head = reward_head(loaded)
    if name in checkpoint.new_layers:
        init_head(head, seed)
    pad_token_id = choose_pad_token(
        tokenizer,
        configured=text_config(loaded.config).pad_token_id,
        num_rows=num_rows(loaded),
        keep=counts_from_padding(loaded),
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    set_pad_token_id(loaded.config, pad_token_id)
    stale = _drop_stale_statements(loaded.config, checkpoint.statements)
    loaded.config.use_cache = (
        False  # a reward is one pass, so cached keys and values are never read
    )
    disable_dropout(loaded)
    layout = on_main_process(lambda: choose_layout(loaded, pad_token_id))
    layout.prepare(loaded)
    return RewardModel(
        model=loaded,
        tokenizer=tokenizer,
        layout=layout,
        template=template,
        new_layers=checkpoint.new_layers,
        notes=(*checkpoint.notes, *stale, *template.notes),
    )


def _drop_stale_statements(config: PretrainedConfig, statements: Statements) -> list[str]:
    """Remove what will not be true of the trained model from its config; return notes on it."""
    if hasattr(config, "auto_map"):  # names files that are not saved with the model
        del config.auto_map
    stale = [
        name
        for name, value in (("mean", statements.reward_mean), ("std", statements.reward_std))
        if value is not None
    ]
    for name in stale:
        delattr(config, name)
    if not stale:
        return []
    return [
        f"config.json: {' and '.join(stale)} describe rewards before training; the new checkpoint "
        "does not have them"
    ]


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0.

    The K rewards of a ranking must come from one function.

    vwxyzjn/summarize_from_feedback_details (`configure_dropout`) and TRL's
    `RewardConfig.disable_dropout` do the same. The figures in the config stay.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention functions and LayerDrop read a float attribute instead: `attention_dropout`,
        # `layerdrop`.
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
