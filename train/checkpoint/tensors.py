"""Account for every tensor of a checkpoint: used, known to be harmless, or a reason to refuse it.

`from_pretrained` drops tensors that its class has no place for, and draws missing ones at random. A
comparison of an artifact with such a model proves nothing, because both dropped the same tensors.
So each tensor that is not used must be in the table `HARMLESS` or belong to the head of the
language model that training starts from, and only the reward head may be missing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.checkpoint.advice import advice_about
from kwise.train.checkpoint.own_class import own_heads
from kwise.train.checkpoint.stored import StoredTensors

HARMLESS = {
    "a head that predicts tokens": (
        r"^(lm_head|language_model\.lm_head|embed_out|lm_loss|pred_layer|predictions"
        r"|mask_predictions|cls\.predictions|mlm_head|output_projection|generator_lm_head"
        r"|generator_predictions|entity_predictions|lm_predictions|vocab_transform"
        r"|vocab_layer_norm|vocab_projector|crit)\.|^decoder\.(weight|bias)$"
        r"|^embedding_decoder\.bias$"
    ),
    "another head of pretraining": (
        r"^(discriminator_predictions|cls\.seq_relationship|sop_classifier)\."
    ),
    "a pooler, which the reward head does not read": r"(^|\.)pooler\.",
    "the decoder of pretraining": r"^funnel\.decoder\.",
    "a prediction of further tokens": r"(^|\.)mtp[._]",
    "a buffer that is computed": (
        r"(^|\.)(position_ids|token_type_ids|final_logits_bias|num_batches_tracked"
        r"|relative_position_index|encoder\.version|decoder\.version|_float_tensor"
        r"|embed_positions\.weights|masked_bias|causal_mask"
        r"|rotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached))$"
    ),
    "a causal mask": r"(^|\.)(attn|attention)\.bias$",
}
"""Tensors that cannot change a reward if they are not used, by what they are: regular expressions
that are searched in the name of the tensor.
"""

_WRAPPERS = {
    "pretrained_model": "TRL's model with a value head",
    "base_model.model": "PEFT",
    "module": "DeepSpeed or DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
}
"""Prefixes of the names of all tensors in a model that was saved with its wrapper."""
_MAX_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAccount:
    """The unused and the missing tensors of a checkpoint that was not refused.

    Attributes:
        harmless: Tensors of the checkpoint that the model does not use.
        new_layers: Layers that the checkpoint does not have, and that start at random.
    """

    harmless: tuple[str, ...]
    new_layers: tuple[str, ...]

    def notes(self) -> list[str]:
        """Return a sentence for the unused tensors, if there are."""
        if not self.harmless:
            return []
        return [f"{named(self.harmless)} of the checkpoint: not used, which changes no reward"]


def new_layers_notes(new_layers: Sequence[str]) -> list[str]:
    """Return a sentence for the layers that start at random, if there are."""
    if not new_layers:
        return []
    verb = "start" if len(new_layers) > 1 else "starts"
    return [f"{named(new_layers)} {verb} at random, because the checkpoint has no such weights"]


def account_for_tensors(
    place: str,
    model: PreTrainedModel,
    loading: dict[str, Any],
    stored: StoredTensors,
    head: str | None,
    *,
    head_may_be_new: bool,
) -> TensorAccount:
    """Return what became of each tensor of a checkpoint.

    Args:
        place: What the user calls the checkpoint; errors begin with it.
        model: The model that was loaded, with `ignore_mismatched_sizes`.
        loading: The `output_loading_info` of `from_pretrained`.
        stored: The tensors in the checkpoint's files.
        head: The name of the reward head, see `reward_head`; None if there is none.
        head_may_be_new: Allow a checkpoint without a reward head, to train one.

    Raises:
        ConfigError: A tensor that is not used could change a reward, one has another shape than in
            the model, or a weight is missing that training would not replace.
    """
    _check_shapes(place, model, [*map(_name_of, loading["mismatched_keys"])], stored, head)
    unused = sorted({*loading["unexpected_keys"], *stored.unlisted})
    refused = [name for name in unused if not is_harmless(name, stored.shapes.get(name, ()))]
    if refused:  # new architectures have heads that the table does not know
        heads = own_heads(model)
        refused = [name for name in refused if heads.get(name) != stored.shapes.get(name, ())]
    if refused:
        raise ConfigError(
            f"{place}: {type(model).__name__} does not use {_count(refused)} of the checkpoint "
            f"that could change a reward: {named([stored.described(name) for name in refused])}; "
            f"{advice_about(refused, model, stored, head)}"
        )
    _check_frequencies(place, model, stored)
    return TensorAccount(
        harmless=tuple(unused),
        new_layers=_new_layers(place, model, sorted(loading["missing_keys"]), head_may_be_new),
    )


def check_names(place: str, stored: StoredTensors) -> None:
    """Raise ConfigError if the tensors have the names that they have inside of a wrapper.

    transformers calls such a checkpoint corrupted, or draws all of its weights at random.
    """
    for prefix, wrapper in _WRAPPERS.items():
        wrapped = [name for name in stored.shapes if name.startswith(f"{prefix}.")]
        if wrapped:
            raise ConfigError(
                f"{place}: {wrapped[0]} shows that the model was saved inside of {wrapper}: save "
                f"the inner model, whose names do not begin with {prefix!r}"
            )


def check_finite(place: str, model: PreTrainedModel) -> None:
    """Raise ConfigError if a weight is NaN or infinite, so that rewards are.

    transformers leaves weights in eight bits as they are, with which nothing can be computed.

    Only the first of several processes looks: the others may have no weights yet (FSDP).
    """
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype.itemsize == 1:
            raise ConfigError(
                f"{place}: {name} is stored in eight bits ({weight.dtype}): save the checkpoint in "
                "16 or 32 bits"
            )
        if not (weight.is_meta or is_finite(weight)):
            raise ConfigError(f"{place}: {name} has values that are NaN or infinite")


def is_finite(weight: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    # The sum needs no memory. It may overflow, so it does not decide.
    return bool(weight.sum().isfinite() or weight.isfinite().all())


def is_harmless(name: str, shape: Sequence[int] = ()) -> bool:
    """Return whether a tensor cannot change a reward if it is not used.

    A head with one output predicts no tokens, and a mask is a square, whatever their names are.
    """
    kind = next((kind for kind, names in HARMLESS.items() if re.search(names, name)), None)
    if kind == "a causal mask":
        return len(shape) == 4 and shape[0] == shape[1] == 1
    if kind == "a head that predicts tokens" and name.endswith(".weight"):
        return len(shape) != 2 or shape[0] > 1
    return kind is not None


def _check_shapes(
    place: str,
    model: PreTrainedModel,
    mismatched: Sequence[str],
    stored: StoredTensors,
    head: str | None,
) -> None:
    """Raise ConfigError if a tensor has another shape in the checkpoint than in the model."""
    if not mismatched:
        return
    name = min(mismatched, key=lambda key: (not key.startswith(f"{head}."), key))
    expected = list(model.state_dict()[name].shape)
    if name.startswith(f"{head}."):
        advice = (
            "; if its outputs are members of an ensemble, set kwise_members in config.json"
            if expected[0] == 1
            else ""
        )
        raise ConfigError(
            f"{place} is not a reward model: its head is {stored.described(name)}, and that of a "
            f"reward model is {expected}{advice}"
        )
    raise ConfigError(
        f"{place}: config.json does not describe {_count(mismatched)} of the checkpoint: "
        f"{stored.described(name)} should be {expected}"
    )


def _new_layers(
    place: str, model: PreTrainedModel, missing: Sequence[str], head_may_be_new: bool
) -> tuple[str, ...]:
    """Return the layers without weights; raise ConfigError if there must not be any such layer."""
    if missing and not head_may_be_new:
        raise ConfigError(
            f"{place} is not a reward model: these weights are missing: {named(missing)}"
        )
    backbone = _backbone_name(model)
    lost = [key for key in missing if key.startswith(f"{backbone}.") and "pooler" not in key]
    if lost:
        raise ConfigError(
            f"{place}: the checkpoint lacks {len(lost)} weights of the language model, {lost[0]} "
            "first"
        )
    layers = sorted({key.rpartition(".")[0] for key in missing})
    weights = set(model.state_dict())
    for layer in layers:
        own = {key for key in weights if key.rpartition(".")[0] == layer}
        stored, lacking = sorted(own - set(missing)), sorted(own & set(missing))
        if stored:
            raise ConfigError(f"{place}: the checkpoint has {stored[0]} and lacks {named(lacking)}")
    return tuple(layers)


def _check_frequencies(place: str, model: PreTrainedModel, stored: StoredTensors) -> None:
    """Raise ConfigError if the checkpoint was trained with other rotary embeddings.

    Old checkpoints hold the frequencies of rotary embeddings, which are computed from config.json
    today. A config without `rope_theta` gets a default, and nothing else would show the mistake.
    Scaled embeddings are not compared, because old checkpoints hold their unscaled frequencies.
    """
    names = [name for name in stored.shapes if name.endswith("inv_freq")]
    modules = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if not names or any(getattr(m, "rope_type", "default") != "default" for m in modules):
        return
    frequencies = stored.load(names[0]).float()  # all layers share them
    computed = [m.inv_freq.float().cpu() for m in modules]
    # bf16 has 8 significant bits.
    if computed and not any(
        frequencies.shape == c.shape and torch.allclose(frequencies, c, rtol=2**-7, atol=0)
        for c in computed
    ):
        raise ConfigError(
            f"{place}: {names[0]} is not what config.json gives (rope_theta, rope_scaling, "
            "head_dim, partial_rotary_factor); state "
            "the values with which the model was trained"
        )


def _backbone_name(model: PreTrainedModel) -> str:
    """Return the name of the part of the model that holds the embeddings."""
    embeddings = model.get_input_embeddings()
    return next(
        (name for name, part in model.named_children() if embeddings in set(part.modules())),
        model.base_model_prefix,
    )


def _name_of(mismatched: Any) -> str:
    """Return the tensor's name; transformers 5 gives the shapes with it."""
    return mismatched if isinstance(mismatched, str) else str(mismatched[0])


def _count(names: Sequence[str]) -> str:
    return "a tensor" if len(names) == 1 else f"{len(names)} tensors"


def named(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
