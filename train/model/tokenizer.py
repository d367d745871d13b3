"""A tokenizer that is ready for rewards: it has a chat template, and a padding token that no conversation ends with.

transformers' `…ForSequenceClassification` of a decoder reads its hidden state at the last token that is not
`config.pad_token_id`. Where the padding token also ends every conversation (pad = eos is the usual advice for training
language models), it reads one token early, in any batch: transformers #35352, TRL #6952. So the padding token is chosen
against the chat template's own output, and `batch.py` refuses the rare text that ends with it all the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kwise.errors import ConfigError
from kwise.train.model.pretrained import reading
from kwise.types import Conversation, Message


def load_tokenizer(model: str, chat_template: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, a hub name or a `.gguf` file, padding on the right.

    Its chat template is that of the file `chat_template` if given, else its own, else `plain_template`.

    Raises:
        ConfigError: there is no such model, or no fast tokenizer, or the chat template cannot render a user's and an
            assistant's turn.
        OSError: there is no such chat template.
    """
    with reading("--model", model):
        tokenizer = (
            _from_gguf(Path(model))
            if model.endswith(".gguf")
            else AutoTokenizer.from_pretrained(model)
        )
    if not tokenizer.is_fast:
        raise ConfigError(
            f"--model {model}: has no fast tokenizer (tokenizer.json), which the engine needs"
        )
    tokenizer.padding_side = "right"
    if chat_template is not None:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
    try:
        _probe(tokenizer, "Yes.")
    except TemplateError as error:
        raise ConfigError(f"the chat template cannot render a conversation: {error}") from error
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """The tokens that a reward is computed from, here and in the engine: the chat template applied to the whole
    conversation. The template writes every special token; the tokenizer adds none."""
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    return list(tokenizer.apply_chat_template(messages, tokenize=True))


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, configured: int | None) -> int:
    """The id of a token to pad with: never one that a conversation ends with, and one that no text is made of.

    The tokenizer's or the model's (`configured`) own choice is kept where it is safe; SmolLM2's is, though it equals eos:
    its template ends every turn with a newline after <|im_end|>.

    Raises:
        ConfigError: every special token of the tokenizer ends conversations.
    """
    endings = {_probe(tokenizer, response)[-1] for response in ("Yes.", "no", "42")}
    for candidate in _pad_candidates(tokenizer, configured):
        if candidate is not None and candidate not in endings:
            return candidate
    raise ConfigError(
        f"the tokenizer has no token to pad with: its conversations end with {_names(tokenizer, endings)}, and it has no "
        "other special token. Give a --chat-template that ends otherwise, with a newline for instance"
    )


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template for a tokenizer that comes without: "role: content" and an empty line for each turn, in the
    tokenizer's own frame (BOS … EOS, or [CLS] … [SEP], which bidirectional encoders read their reward at).

    The frame's tokens are written out, so the template needs nothing but the messages. A tokenizer with a single
    special token, as GPT-2's, keeps it for padding: its conversations end with the empty line.
    """
    start = tokenizer.cls_token or tokenizer.bos_token or ""
    end = tokenizer.sep_token or tokenizer.eos_token or ""
    if len(set(tokenizer.all_special_ids)) == 1:
        end = ""
    turns = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n\\n' }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ END }}{% endif %}"
    return _literal(start) + turns + prompt.replace("END", repr(end))


def _literal(text: str) -> str:
    return f"{{{{ {text!r} }}}}"


def _from_gguf(path: Path) -> PreTrainedTokenizerBase:
    """transformers 4.57 reads vocabulary, merges and chat template of a llama GGUF well, and the rest not: its EOS is
    the BOS (integrations/ggml.py, `GGUFLlamaConverter.tokenizer`), and encoding prepends BOS whatever the file says. The
    ids in the file are right, so the tokenizer is built again with those, adding no token by itself.
    """
    read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = read.backend_tokenizer
    backend.post_processor = processors.Sequence([])
    special = {
        f"{name}_token": read.convert_ids_to_tokens(token_id)
        for name in ("bos", "eos", "unk", "pad")
        if (token_id := read.init_kwargs.get(f"{name}_token_id")) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=read.chat_template, **special
    )


def _probe(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    return token_ids(
        tokenizer,
        (Message(role="user", content="Well?"), Message(role="assistant", content=response)),
    )


def _pad_candidates(
    tokenizer: PreTrainedTokenizerBase, configured: int | None
) -> Iterator[int | None]:
    """In the order of preference. After the usual ones any special token, reserved ones for instance, the later the
    better: the first are those that templates use."""
    yield tokenizer.pad_token_id
    yield configured
    yield tokenizer.unk_token_id
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    yield from sorted(
        (token_id for token_id, token in added.items() if token.special), reverse=True
    )


def _names(tokenizer: PreTrainedTokenizerBase, ids: set[int]) -> str:
    return ", ".join(repr(tokenizer.convert_ids_to_tokens(token_id)) for token_id in sorted(ids))
