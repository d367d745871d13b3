"""A tokenizer for rewards: with a chat template, and a padding token that ends no conversation.

A decoder's `…ForSequenceClassification` reads the hidden state at the last token that is not
`config.pad_token_id`. If the padding token also ends every conversation (pad = eos is common advice
for training language models), the hidden state is read one token early in every batch: transformers
#35352, TRL #6952. Therefore the padding token is chosen by what the chat template produces, and
`batch.py` refuses a text that ends with it all the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kwise.errors import ConfigError
from kwise.train.checkpoint.files import has_tokenizer
from kwise.train.checkpoint.ids import id_without_row, usable_id
from kwise.train.checkpoint.transformers_versions import read_tokenizer
from kwise.train.model.adapter_source import tokenizer_source
from kwise.train.model.pretrained import reading
from kwise.train.template.chat_template import ChatTemplate, choose_template
from kwise.train.template.render import render
from kwise.types import Conversation, Message

_GGUF_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(
    model: str,
    chat_template: Path | None,
    template_date: str = "",
    *,
    option: str = "--model",
    to_train: bool = True,
) -> tuple[PreTrainedTokenizerBase, ChatTemplate]:
    """Return the tokenizer of a model, which pads on the right, and the chat template that it has.

    Args:
        option: what the command line calls the model.
        model: a Hugging Face directory, a hub name or a `.gguf` file.
        chat_template: replaces the model's own template; a model without one gets
            `plain_template`.
        template_date: see `choose_template`.
        to_train: training may choose a plain template and today's date; a model that was trained
            before has its own.

    Raises:
        ConfigError: the model does not exist, or has no fast tokenizer, or its chat template cannot
            be used, see `choose_template`.
        OSError: the file `chat_template` cannot be read.
    """
    tokenizer = read_fast_tokenizer(option, model)
    tokenizer.padding_side = "right"
    template = choose_template(
        tokenizer,
        model=model,
        file=chat_template,
        date=template_date,
        today_by_default=to_train,
        plain=plain_template(tokenizer) if to_train else None,
    )
    if template.text is None:
        raise ConfigError(
            f"{option} {model}: has no chat template; give the one that it was trained with as "
            "--chat-template FILE"
        )
    return tokenizer, template


def read_fast_tokenizer(option: str, model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, of which training and serving make the same tokens.

    Args:
        option: what the command line calls the model, for instance "--model".
        model: a Hugging Face directory, a hub name or a `.gguf` file.

    Raises:
        ConfigError: the tokenizer is missing or cannot be read, it is not a fast one, it draws
            random numbers, or it takes the special tokens of a chat template apart.
    """
    place, source = f"{option} {model}", tokenizer_source(option, model)
    if not has_tokenizer(source):
        raise ConfigError(f"{place}: has no tokenizer (tokenizer.json); save it beside the model")
    with reading(option, source):
        tokenizer = _from_gguf(Path(source)) if source.endswith(".gguf") else read_tokenizer(source)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{place}: the fast tokenizer (tokenizer.json) is missing, and the engine needs it"
        )
    if dropout := getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        raise ConfigError(
            f"{place}: tokenizer.json leaves out merges at random (dropout {dropout:g}), so a "
            "text would have another reward each time: set dropout to null"
        )
    if getattr(tokenizer, "split_special_tokens", False):
        raise ConfigError(
            f"{place}: tokenizer_config.json has split_special_tokens, so the special tokens that "
            "a chat template writes would become ordinary text: set it to false"
        )
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the tokens from which a reward is computed, here and in the engine.

    They are the tokens of the whole conversation as the chat template renders it.

    Raises:
        TemplateRefusal: the template cannot render the conversation.
    """
    return text_token_ids(tokenizer, render(tokenizer, conversation))


def text_token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a rendered conversation.

    The template has written all special tokens; the tokenizer adds none.
    """
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def choose_pad_token(
    tokenizer: PreTrainedTokenizerBase,
    configured: int | None,
    num_rows: int,
    keep: bool = False,
) -> int:
    """Return the id of a special token with which no conversation ends.

    The choice of the tokenizer or of the model is kept if it is safe. SmolLM2's is, although it
    equals eos, because the template ends every message with a newline after <|im_end|>.

    Args:
        tokenizer: has the chat template.
        configured: the choice of the model; None if it has none.
        num_rows: rows of the model's embeddings. A token that was added to the tokenizer after the
            model was made has none.
        keep: the model works with its own choice only, see `counts_from_padding`.

    Raises:
        ConfigError: the chat template writes a token without a row; conversations end with every
            special token that the tokenizer has; or the model's own choice must be kept and is not
            safe.
    """
    probes = [_probe(tokenizer, response) for response in ("Yes.", "no", "42")]
    for token_ids_ in probes:
        if problem := id_without_row(token_ids_, tokenizer, num_rows):
            raise ConfigError(f"the chat template writes a token that the model lacks: {problem}")
    endings = {token_ids_[-1] for token_ids_ in probes}
    if keep:
        if configured is None or configured in endings:
            problem = (
                "config.json has no pad_token_id"
                if configured is None
                else (f"conversations end with token {configured}, its pad_token_id")
            )
            raise ConfigError(f"the model counts positions from its padding token, and {problem}")
        return configured
    for candidate in _pad_candidates(tokenizer, configured):
        if usable_id(candidate, num_rows) is not None and candidate not in endings:
            assert candidate is not None, "None is not usable"
            return candidate
    raise ConfigError(
        "the tokenizer has no token to pad with: conversations end with "
        f"{_names(tokenizer, endings)}, the only special token that the model has. Give a "
        "--chat-template with another ending, for instance a newline"
    )


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat template for a tokenizer without one.

    Each message is "role: content" and an empty line.

    The conversation stands between the tokenizer's own first and last token: BOS … EOS, or [CLS] …
    [SEP], at which bidirectional encoders read the reward. The template contains these tokens, so
    it needs nothing but the messages. A tokenizer with a single special token, such as GPT-2's,
    keeps it for padding: conversations end with the empty line.
    """
    start = tokenizer.cls_token or tokenizer.bos_token or ""
    end = tokenizer.sep_token or tokenizer.eos_token or ""
    if len(set(tokenizer.all_special_ids)) == 1:
        end = ""
    turns = (
        "{% for message in messages %}"
        "{{ message['role'] + ': ' + message['content'] + '\\n\\n' }}"
        "{% endfor %}"
    )
    prompt = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ END }}{% endif %}"
    return _literal(start) + turns + prompt.replace("END", repr(end))


def _literal(text: str) -> str:
    return f"{{{{ {text!r} }}}}"


def _from_gguf(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file, with the special tokens that the file names.

    transformers 4.57 takes only vocabulary, merges and chat template of a Llama GGUF correctly: it
    sets EOS to BOS (integrations/ggml.py, `GGUFLlamaConverter.tokenizer`), and its encoding always
    adds BOS. The ids in the file are right, so the tokenizer is built again with them, and adds no
    tokens.
    """
    read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = read.backend_tokenizer
    backend.post_processor = processors.Sequence([])
    special = {
        name: token for name in _GGUF_TOKENS if (token := _gguf_token(read, name)) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=read.chat_template, **special
    )


def _gguf_token(read: PreTrainedTokenizerBase, name: str) -> str | None:
    """Return a special token of a GGUF file: transformers 4 has its id, transformers 5 itself."""
    token_id = read.init_kwargs.get(f"{name}_id")
    token = read.init_kwargs.get(name) if token_id is None else read.convert_ids_to_tokens(token_id)
    return None if token is None else str(token)


def _probe(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    return token_ids(
        tokenizer,
        (Message(role="user", content="Well?"), Message(role="assistant", content=response)),
    )


def _pad_candidates(
    tokenizer: PreTrainedTokenizerBase, configured: int | None
) -> Iterator[int | None]:
    """Yield candidates in order of preference.

    After the usual ones come all special tokens, the last ones first: they are often reserved,
    while templates use the first ones.
    """
    yield tokenizer.pad_token_id
    yield configured
    yield tokenizer.unk_token_id
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    yield from sorted(
        (token_id for token_id, token in added.items() if token.special), reverse=True
    )


def _names(tokenizer: PreTrainedTokenizerBase, ids: set[int]) -> str:
    return ", ".join(repr(tokenizer.convert_ids_to_tokens(token_id)) for token_id in sorted(ids))
