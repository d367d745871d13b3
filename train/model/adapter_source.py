"""Models that are given as adapters: the base model is loaded and the adapter merged into it.

An adapter's folder has adapter_config.json, which names the base model, and the tensors that PEFT
adds to it. transformers loads such a folder too, but without a head that the adapter brings, and
it keeps the adapter's layers apart, so that they are lost when the model is saved.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from kwise.errors import ConfigError
from kwise.libraries.errors import library_errors
from kwise.libraries.extras import how_to_install
from kwise.train.checkpoint.members import members_of
from kwise.train.checkpoint.stored import separate_heads, weights_in
from kwise.train.checkpoint.tensors import is_harmless
from kwise.train.model.head import HEAD_NAMES
from kwise.train.model.pretrained import naming_files, reading

_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."  # of the names of an adapter's tensors
# Ways to start an adapter that change the base model by random numbers or by training data:
# "pissa_niter_16" is a randomised decomposition, "pissa" an exact one.
_STARTS_AT_RANDOM = ("pissa_niter", "corda", "lora_ga")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """An adapter on disk.

    Attributes:
        name: its directory or hub name, as on the command line.
        folder: the local directory of its files.
        base: the name of its base model, which may be an adapter as well.
    """

    name: str
    folder: Path
    base: str

    def subject(self, option: str) -> str:
        """Return the beginning of a message about the adapter."""
        return f"{option} {self.name} is an adapter ({_CONFIG})"


def find_adapter(option: str, name: str) -> AdapterSource | None:
    """Return the adapter that `name` is; None if it is a whole model.

    Args:
        option: what the command line calls the model, for instance "--model".

    Raises:
        ConfigError: adapter_config.json cannot be read or names no base model, or the folder also
            has the weights of a whole model.
    """
    if name.endswith(".gguf"):
        return None
    with reading(option, name):
        found = find_adapter_config_file(name)
    if found is None:
        return None
    path = Path(found)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{option} {name}: {_CONFIG} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{option} {name} is an adapter ({_CONFIG}) that names no base model: merge it first"
        )
    if Path(base).resolve() == path.parent.resolve():
        raise ConfigError(
            f"{option} {name} is an adapter ({_CONFIG}) that names itself as its base"
        )
    if config.get("revision") not in (None, "", "main") and not Path(base).exists():
        raise ConfigError(
            f"{option} {name} is an adapter ({_CONFIG}) of the revision {config['revision']} of "
            f"{base}, and only the newest one can be loaded: merge it first"
        )
    if whole := weights_in(path.parent):
        raise ConfigError(
            f"{option} {name} has both a model ({whole[0]}) and an adapter ({_CONFIG}): move "
            "one of them away"
        )
    if heads := separate_heads(str(path.parent)):
        raise ConfigError(
            f"{option} {name} is an adapter ({_CONFIG}) with its head in {heads[0]}, which is not "
            "read: merge it first, and put the head into the file of weights, by the name that it "
            "has in transformers"
        )
    return AdapterSource(name=name, folder=path.parent, base=base)


def tokenizer_source(option: str, name: str) -> str:
    """Return the name of the model whose tokenizer belongs to `name`.

    An adapter's folder may have none; then it is its base model's.
    """
    adapter = find_adapter(option, name)
    if adapter is None or (adapter.folder / "tokenizer_config.json").is_file():
        return name
    return tokenizer_source(option, adapter.base)


def merge_into(model: PreTrainedModel, adapter: AdapterSource, option: str) -> set[str]:
    """Merge an adapter into its base model in place; return the names of the tensors it brings.

    Args:
        option: what the command line calls the adapter.

    Raises:
        ConfigError: peft is not installed, a tensor of the adapter has no place in the model, or
            the adapter cannot be merged exactly.
    """
    subject = adapter.subject(option)
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(
            f"{subject}, which needs the package peft: {how_to_install('lora')}, or merge it first"
        ) from None
    if getattr(model, "is_quantized", False):
        raise ConfigError(f"{subject} of a quantised model: merge it first")
    problem = f"{subject} that cannot be merged into {adapter.base}"
    with (
        naming_files(option, str(adapter.folder)),
        library_errors(problem),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        tensors = peft.utils.load_peft_weights(str(adapter.folder), device="cpu")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        _check_head(subject, shapes, members_of(model.config))
        _check_start(subject, getattr(config, "init_lora_weights", None))
        if getattr(config, "layer_replication", None):
            raise ConfigError(
                f"{subject} that replicates layers (layer_replication): merge it first"
            )
        if config.is_prompt_learning:
            raise ConfigError(f"{subject} of type {config.peft_type}, which cannot be merged")
        if config.task_type != peft.TaskType.SEQ_CLS:
            config.task_type = None  # PEFT's wrapper of a language model expects a language model
        config.inference_mode = True
        _resize_embeddings(model, tensors)
        wrapper = peft.get_peft_model(model, config)
        loaded = wrapper.load_adapter(str(adapter.folder), "default", torch_device="cpu")
        unused = {name: shapes.get(name, ()) for name in loaded.unexpected_keys}
        _check_fit(subject, adapter.base, unused, loaded.missing_keys)
        merged = wrapper.merge_and_unload()
    if merged is not model:
        raise ConfigError(f"{subject} of type {config.peft_type}, which replaces the model")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return {key.removeprefix(_PREFIX).replace("modules_to_save.", "") for key in tensors}


def _check_fit(
    subject: str, base: str, unused: dict[str, tuple[int, ...]], missing: Sequence[str]
) -> None:
    """Raise ConfigError if tensors of the adapter were not used, or if it lacks some."""
    lost = sorted(
        name for name, shape in unused.items() if not is_harmless(name.removeprefix(_PREFIX), shape)
    )
    if lost:
        problem = f"{len(lost)} of its tensors have no place there, {lost[0]} first"
    elif missing:
        problem = f"it lacks {len(missing)} tensors, {min(missing)} first"
    else:
        return
    raise ConfigError(f"{subject} that does not fit its base model {base}: {problem}")


def _resize_embeddings(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Give the embeddings as many rows as the adapter brings, if it was trained with new tokens."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    brought = tensors.get(f"{_PREFIX}{name}.weight")
    if brought is not None and len(brought) != embeddings.num_embeddings:
        model.resize_token_embeddings(len(brought), mean_resizing=False)


def _check_start(subject: str, start: object) -> None:
    """Raise ConfigError if the adapter was trained beside other weights than those of its base.

    Some ways to start an adapter subtract it from the base model's weights. PEFT repeats that when
    it loads the adapter, which must give the same weights again.
    """
    if isinstance(start, str) and start.startswith(_STARTS_AT_RANDOM):
        raise ConfigError(
            f"{subject} that started from {start} (init_lora_weights), which changes the base "
            "model's weights in a way that cannot be repeated exactly: convert it to an ordinary "
            "LoRA adapter (path_initial_model_for_weight_conversion in PEFT's save_pretrained)"
        )


def _check_head(subject: str, shapes: dict[str, tuple[int, ...]], num_heads: int) -> None:
    """Raise ConfigError if the adapter brings a head with another number of outputs."""
    for head in HEAD_NAMES:
        shape = shapes.get(f"{_PREFIX}{head}.weight")
        if shape is not None and shape[0] != num_heads:
            expected = "a reward model has 1" if num_heads == 1 else f"--heads is {num_heads}"
            raise ConfigError(f"{subject} with {shape[0]} outputs in its head {head}; {expected}")
