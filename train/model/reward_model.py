"""A reward model: a language model with a linear layer in place of its LM head.

The layer has one output, or one for each member of an ensemble (checkpoint/members.py). The model
stays a plain `AutoModelForSequenceClassification`. Everything that could be done
in several ways is a named function: how the head starts (head.py), which weights may be missing,
that dropout is off, which layout it uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import num_rows, set_pad_token_id, text_config
from kwise.train.checkpoint.members import MEANS_KEY, means_of, members_of
from kwise.train.checkpoint.pooling import header_of, state_header
from kwise.train.checkpoint.statements import Statements
from kwise.train.model.architecture.first_layers import keep_first_layers
from kwise.train.model.architecture.layout_choice import choose_layout
from kwise.train.model.architecture.probe import conversation_probe
from kwise.train.model.architecture.small_copy import disable_dropout
from kwise.train.model.batch.layout import Layout, TrieLayout, rewards_and_text_of
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.four_bit import four_bit_options
from kwise.train.model.gguf_reader import gguf_parsed_once
from kwise.train.model.head import init_head, reward_head
from kwise.train.model.limits import counts_from_padding, model_max_tokens
from kwise.train.model.response_header import check_header, pooling_notes, response_header
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
        limits = (model_max_tokens(self.model, self.tokenizer), self.layout.max_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def num_heads(self) -> int:
        """The number of heads: the members of an ensemble, or 1."""
        return members_of(self.model.config)

    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """Return the reward of each conversation: the mean over the heads.

        Raises:
            ConfigError: see `rewards_of_heads`.
        """
        return self.rewards_of_heads(conversations).mean(1).tolist()

    def rewards_of_heads(self, conversations: Sequence[Conversation]) -> Tensor:
        """Return the rewards of `conversations` by each head, float32[conversations, heads].

        They come from one pass in the precision of the weights. The mean that the config states
        of each member is subtracted.

        Raises:
            ConfigError: one is longer than `layout.max_tokens`.
        """
        return self.rewards_of_tokens(
            [token_ids(self.tokenizer, conversation) for conversation in conversations]
        )

    @torch.no_grad()
    def rewards_of_tokens(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Return `rewards_of_heads` of conversations that are tokenised already.

        Raises:
            ConfigError: one is longer than `layout.max_tokens`.
        """
        limit, longest = self.layout.max_tokens, max(map(len, sequences), default=0)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"a conversation has {longest} tokens, and the layout is {self.layout}"
            )
        tensors = self.layout.lay_out(sequences)
        self.model.eval()
        on_device = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        rewards = rewards_and_text_of(self.model, on_device)[0].cpu()
        means = means_of(self.model.config)
        return rewards - torch.tensor(means) if any(means) else rewards

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


@gguf_parsed_once()
def load_reward_model(
    model: str,
    *,
    chat_template: Path | None = None,
    template_date: str = "",
    num_heads: int | None = 1,
    num_layers: int | None = None,
    mean_pooling: bool | None = None,
    seed: int = 0,
    for_adapter: bool = False,
    load_in_4bit: bool = False,
    max_tokens: int | None = None,
    option: str = "--model",
    to_train: bool = True,
    on_main_process: Callable[[Callable[[], Layout]], Layout] = lambda choose: choose(),
) -> RewardModel:
    """Load an SFT language model or a reward model in float32.

    Args:
        model: a Hugging Face directory, a hub name, or a `.gguf` file, whose weights are
            dequantised. An adapter is merged into its base model.
        chat_template: a Jinja file to use in place of the model's own template, or the name of one
            of its templates.
        template_date: the date that the template prints, "YYYY-MM-DD"; "" for today.
        num_heads: the heads that the model must have, or gets if the checkpoint has none; None for
            those of the checkpoint.
        num_layers: how many of the backbone's first layers to keep; None for all.
        mean_pooling: whether training reads the reward as the mean over the response's tokens, or
            at the last token; None to read it as the checkpoint states.
        seed: seed of the heads' first weights, if the checkpoint has no head.
        for_adapter: training adds an adapter, which is read as its base model states. The response
            header of the base model stays, whatever the chat template is.
        max_tokens: the longest conversation that the model will get; None for its own limit.
        load_in_4bit: see four_bit.py; the model must then get an adapter, and is dequantised when
            that is merged.
        option: what the command line calls the model.
        to_train: training starts from the model, so it may lack a head and a chat template, and
            what its config states of its rewards will not be true any more.
        on_main_process: runs a function in one of several processes and returns its result in all
            of them. With FSDP the others have no weights yet.

    Raises:
        ConfigError: the model does not exist; its checkpoint is refused, see `load_checkpoint`;
            its layers cannot be cut, see `keep_first_layers`; its tokenizer cannot be used, see
            `load_tokenizer` and `choose_pad_token`; it cannot be read in four bits, see
            `four_bit_options`; or mean pooling is not possible, see `response_header` and
            `check_header`, or because the layout is not a trie.
        OSError: the chat template cannot be read.
    """
    if model.endswith(".gguf") and not Path(model).is_file():
        raise ConfigError(f"{option} {model}: there is no such file")
    tokenizer, template = load_tokenizer(
        model, chat_template, template_date, option=option, to_train=to_train
    )
    torch.manual_seed(seed)  # some architectures have more new layers than the head
    quantised = four_bit_options(model) if load_in_4bit else {}
    checkpoint = load_checkpoint(
        option, model, to_train=to_train, num_heads=num_heads, quantised=quantised
    )
    loaded = checkpoint.model
    cut = [] if num_layers is None else keep_first_layers(loaded, num_layers)
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
    stale = _drop_stale_statements(loaded.config, checkpoint.statements) if to_train else []
    loaded.config.use_cache = (
        False  # a reward is one pass, so cached keys and values are never read
    )
    disable_dropout(loaded)
    probe = conversation_probe(tokenizer, loaded)
    limits = [limit for limit in (max_tokens, model_max_tokens(loaded, tokenizer)) if limit]
    layout = on_main_process(
        lambda: choose_layout(loaded, pad_token_id, probe, min(limits, default=None))
    )
    if mean_pooling or (mean_pooling is None and header_of(loaded.config)):
        layout = _read_mean(
            loaded,
            tokenizer,
            layout,
            f"{option} {model}",
            states_header=to_train and not for_adapter,
        )
    else:
        state_header(loaded.config, None)
    layout.prepare(loaded)
    return RewardModel(
        model=loaded,
        tokenizer=tokenizer,
        layout=layout,
        template=template,
        new_layers=checkpoint.new_layers,
        notes=(
            *checkpoint.notes,
            *cut,
            *stale,
            *template.notes,
            *pooling_notes(tokenizer, header_of(loaded.config)),
        ),
    )


def _read_mean(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    place: str,
    *,
    states_header: bool,
) -> TrieLayout:
    """Return the layout with mean pooling.

    Args:
        states_header: find the chat template's response header, and state it in the config.
            Otherwise the chat template must write the one that the config states.

    Raises:
        ConfigError: see `load_reward_model`.
    """
    if not isinstance(layout, TrieLayout):
        raise ConfigError(
            f"{place}: mean pooling needs the layout of a trie, and the layout is {layout}"
        )
    if states_header:
        state_header(model.config, response_header(tokenizer))
    header = header_of(model.config)
    assert header is not None, "an adapter has no --pooling"
    if not states_header:
        check_header(place, tokenizer, header)
    return replace(layout, response_header=header)


def _drop_stale_statements(config: PretrainedConfig, statements: Statements) -> list[str]:
    """Remove what will not be true of the trained model from its config; return notes on it."""
    if hasattr(config, "auto_map"):  # names files that are not saved with the model
        del config.auto_map
    stale = [
        name
        for name, value in (
            ("mean", statements.reward_mean),
            ("std", statements.reward_std),
            (MEANS_KEY, getattr(config, MEANS_KEY, None)),
        )
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
