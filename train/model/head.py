"""The reward head: the linear layer that turns a hidden state into a reward.

It has one output, or M for the M members of an ensemble (checkpoint/members.py).

transformers gives it one of a few names, by architecture. A search for any linear layer with one
output is not an alternative: the shared experts of Qwen2-MoE have gates of that shape.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.checkpoint.members import MEMBERS_KEY, members_of

HEAD_NAMES = {
    "score": "decoders: Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX, OPT, …",
    "score.out_proj": "T5Gemma",
    "classifier": "BERT, ALBERT, DistilBERT, DeBERTa, ModernBERT, …",
    "classifier.out_proj": "RoBERTa, CamemBERT, ELECTRA, MPNet, Longformer, …",
    "classifier.linear_out": "Funnel",
    "classification_head.out_proj": "BART, T5, LED, …",
    "logits_proj": "XLNet",
    "sequence_summary.summary": "XLM, FlauBERT",
}
"""Name of the head in a `…ForSequenceClassification`, and the architectures that use it
(transformers 4.57).
"""


def reward_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return the name and the layer of the reward head.

    Raises:
        ConfigError: the model has no linear layer by one of `HEAD_NAMES`, or that layer does not
            have one output for each member that the config states.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    name = next((name for name in HEAD_NAMES if name in layers), None)
    if name is None:
        prefix = f"{model.base_model_prefix}."
        found = ", ".join(name for name in layers if not name.startswith(prefix)) or "none"
        raise ConfigError(
            f"{type(model).__name__} has no reward head: a linear layer is expected by the name "
            f"{', '.join(HEAD_NAMES)}; the linear layers behind its backbone are: {found}"
        )
    expected = members_of(model.config)
    if layers[name].out_features != expected:
        stated = "" if expected == 1 else f", because config.json has {MEMBERS_KEY} {expected}"
        raise ConfigError(
            f"{type(model).__name__} is not a reward model: its head {name} has "
            f"{layers[name].out_features} outputs; it must have {expected}{stated}"
        )
    return name, layers[name]


def head_name(model: PreTrainedModel) -> str | None:
    """Return the name of the reward head; None if the model has no reward head."""
    try:
        name, _ = reward_head(model)
    except ConfigError:
        return None
    return name


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the part of the model that turns token ids into hidden states.

    It is `model.base_model`. For Gemma 3 with images, which does not name that part, it is the
    module that holds the embeddings.
    """
    if model.base_model is not model:
        part: nn.Module = model.base_model
        return part
    embeddings = model.get_input_embeddings()
    return next(part for part in model.children() if embeddings in set(part.modules()))


@torch.no_grad()
def init_head(head: nn.Linear, seed: int) -> None:
    """Draw the head's weights from N(0, 1/(d+1)) for d inputs; set its bias to 0.

    Each of several members gets weights of its own.

    Stiennon et al. 2020, "Learning to summarize from human feedback", as reproduced by
    vwxyzjn/summarize_from_feedback_details (reward.py).
    """
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    if head.bias is not None:
        head.bias.zero_()
