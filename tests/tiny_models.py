"""Models with random weights and real tokenizers, small enough for tests."""

from pathlib import Path
from typing import Any

import torch
import transformers

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}

TRIE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 24}),
    "gemma": ("Gemma", GROUPED),
    # Every other layer has a window. transformers' sdpa attention ignores the cap on scores.
    "gemma2": ("Gemma2", {**GROUPED, "sliding_window": 24, "attn_logit_softcapping": None}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt_neox": ("GPTNeoX", {**SMALL, "max_position_embeddings": 512}),
    "opt": (
        "OPT",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 96,
            "word_embed_proj_dim": 64,
            "max_position_embeddings": 512,
        },
    ),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**SMALL, "max_position_embeddings": 512}),
    "modernbert": (
        "ModernBert",
        {**SMALL, "max_position_embeddings": 512, "reference_compile": False},
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            **SMALL,
            "max_position_embeddings": 512,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
        },
    ),
}

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(pad_token: str | None = "<|pad|>") -> Any:
    """Return a tokenizer of 262 tokens: six special ones and the bytes. <|pad|> has id 5."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    if pad_token is not None:
        named["pad_token"] = pad_token
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(
    family: str, options: dict[str, Any], tokenizer: Any, path: Path, pad_token_id: int = 2
) -> Path:
    """Write a random model of the family with a real tokenizer to `path`, and return `path`."""
    torch.manual_seed(1)
    ids = {"pad_token_id": pad_token_id, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": len(tokenizer), "num_labels": 1, **ids, **options}
    )
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    # Larger than the usual initialisation, so that wrong attention changes the reward.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
