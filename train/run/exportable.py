"""Say before training what `kwise export` would refuse after it.

The check is the export's own (kwise/export/rehearsal.py): it exports a small copy of the model and
compares rewards. Training can run without the packages of the export, so its module is loaded by
name and only if they are installed.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from kwise.errors import ConfigError
from kwise.train.model.reward_model import RewardModel
from kwise.train.run.processes import Processes

_REHEARSAL = "kwise.export.rehearsal"
_PACKAGES = ("optimum", "onnx", "onnx_ir", "onnxruntime")


def check_exportable(
    reward_model: RewardModel,
    name: str,
    max_tokens: int | None,
    processes: Processes,
    progress: Callable[[str], None],
) -> None:
    """Raise ConfigError if `kwise export` would refuse the model; tell its limit if it has one.

    Args:
        name: the model, as --model names it.
        max_tokens: the longest conversation of the training; None for no limit.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        progress(
            f"note: kwise export is not installed here ({missing[0]} is missing), so nothing "
            "checks whether it can export this model"
        )
        return
    for note in processes.on_main(lambda: _notes(reward_model, name, max_tokens)):
        progress(note)


def _notes(reward_model: RewardModel, name: str, max_tokens: int | None) -> list[str]:
    rehearsal = import_module(_REHEARSAL)
    try:
        result = rehearsal.rehearse_all_layouts(
            reward_model.model, reward_model.tokenizer, max_tokens
        )
    except ConfigError as error:
        raise ConfigError(
            f"--model {name}: kwise export would refuse the checkpoint: {error}. "
            "--no-export-check trains it all the same"
        ) from error
    if result.max_tokens is None or (max_tokens is not None and max_tokens <= result.max_tokens):
        return []
    return [
        f"note: kwise export will serve conversations of up to {result.max_tokens} tokens: "
        f"{result.reasons[-1]}"
    ]
