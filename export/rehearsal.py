"""Export a small copy of a model first, and measure what the artifact would give.

The copy (kwise/train/model/architecture/small_copy.py) is exported, run by the engine's own session
and compared with transformers: short and long conversations, with special tokens inside, alone, in
a batch of unlike lengths, and again after the others. This takes seconds whatever the size of the
model, so it comes before training (see kwise/train/run/exportable.py) and before an export, and
says in one line what would be refused at its end. The parity of the artifact itself is measured all
the same, see parity.py.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnxruntime
from msgspec import UNSET
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.artifact.manifest import GraphContract, Manifest, Member
from kwise.engine.artifact.read import Artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError
from kwise.export.checkpoint import rope_limit, supports_trie
from kwise.export.graphs.padded_graph import export_padded
from kwise.export.graphs.trie_graph import export_trie
from kwise.export.parity import allowed_difference
from kwise.train.checkpoint.members import members_of
from kwise.train.checkpoint.pooling import HEADER_KEY, header_of
from kwise.train.model.architecture.invariance import (
    CannotScore,
    Invariance,
    longest_measured,
    longest_that_holds,
)
from kwise.train.model.architecture.probe import Probe, conversation_probe
from kwise.train.model.architecture.quiet import quiet
from kwise.train.model.architecture.small_copy import small_copies

LayoutName = Literal["trie", "padded", "separate"]


class ExportGraph(Protocol):
    """Writes the graph of a model into a directory, and returns the contract of the graph."""

    def __call__(
        self, model: PreTrainedModel, directory: Path, *, with_type_ids: bool = True
    ) -> GraphContract:
        """Write the graph. `with_type_ids` is for the padded graph, see `export_padded`."""


EXPORTS: dict[LayoutName, ExportGraph] = {
    "trie": export_trie,
    "padded": export_padded,
    "separate": export_padded,
}
_TOLERANCE = 1e-4  # the default of `kwise export --tolerance`
_PROMPT_CACHE_BYTES = 1 << 20
_MIN_TOKENS = 32
_ONNXRUNTIME_WARNING, _ONNXRUNTIME_FATAL = 2, 4  # its default, and the highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The expected outcome of exporting a model.

    Attributes:
        layout: the fastest layout whose rewards are transformers'.
        max_tokens: the longest conversation for which they are; None if no limit was found.
        reasons: why each faster layout, and a longer conversation, is not possible.
    """

    layout: LayoutName
    max_tokens: int | None = None
    reasons: tuple[str, ...] = ()


class _Refused(Exception):
    """The small copy cannot be exported in a layout."""


# A process may train or export models of one architecture again and again.
_rehearsed: dict[tuple[object, ...], Rehearsal | ConfigError] = {}


def rehearse_all_layouts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None
) -> Rehearsal:
    """Return what `kwise export` would give of the model with the layout `auto`.

    Raises:
        ConfigError: it would refuse the model.
    """
    limit = rope_limit(model)
    limits = [number for number in (limit, max_tokens) if number is not None]
    probe = conversation_probe(tokenizer, model)
    rehearsal = rehearse(model, probe, possible_layouts(model), min(limits, default=None))
    if limit is None or (max_tokens is not None and max_tokens <= limit):
        return rehearsal
    reason = "its rotary embeddings change beyond that and those of the graph do not"
    return replace(
        rehearsal,
        max_tokens=min(limit, rehearsal.max_tokens or limit),
        reasons=(*rehearsal.reasons, reason),
    )


def possible_layouts(model: PreTrainedModel) -> list[LayoutName]:
    """Return the layouts to try, the best first.

    Raises:
        ConfigError: the model reads its reward with mean pooling, and cannot have the trie layout.
    """
    if header_of(model.config) is not None:
        if not supports_trie(model):
            raise ConfigError(
                f"{type(model).__name__} cannot share prompts, which mean pooling "
                f"({HEADER_KEY} in config.json) needs"
            )
        return ["trie"]
    padded: list[LayoutName] = ["padded", "separate"]
    return ["trie", *padded] if supports_trie(model) else padded


def rehearse(
    model: PreTrainedModel,
    probe: Probe,
    layouts: Sequence[LayoutName],
    max_tokens: int | None,
) -> Rehearsal:
    """Export a small copy of the model in each layout until one gives transformers' rewards.

    Args:
        model: the model, which stays as it is.
        probe: what its conversations look like.
        layouts: the layouts to try, the best first.
        max_tokens: the longest conversation; None for no limit.

    Raises:
        ConfigError: no layout does. The message names the architecture and the reason.
    """
    settings = model.config.to_json_string(use_diff=False)
    key = (type(model), settings, probe, *layouts, max_tokens)
    if key not in _rehearsed:
        try:
            _rehearsed[key] = _rehearse(model, probe, layouts, max_tokens)
        except ConfigError as error:
            _rehearsed[key] = error
    outcome = _rehearsed[key]
    if isinstance(outcome, ConfigError):
        raise outcome
    return outcome


def _rehearse(
    model: PreTrainedModel,
    probe: Probe,
    layouts: Sequence[LayoutName],
    max_tokens: int | None,
) -> Rehearsal:
    name = type(model).__name__
    new_copy = small_copies(model)
    if new_copy is None:
        return Rehearsal(layout=layouts[0])
    measured = Invariance(new_copy, probe)
    shortest, longest = probe.min_tokens, longest_measured(model, max_tokens)
    try:
        with _quiet():
            return _first_that_holds(measured, new_copy, layouts, shortest, longest)
    except CannotScore as error:
        raise ConfigError(f"{name} cannot score a conversation: {error}") from error
    except _Refused as error:
        raise ConfigError(f"{name} cannot be exported: {error}") from error


def _first_that_holds(
    measured: Invariance,
    new_copy: Callable[[], PreTrainedModel],
    layouts: Sequence[LayoutName],
    shortest: int,
    longest: int,
) -> Rehearsal:
    reasons: list[str] = []
    refused: set[LayoutName] = set()
    limited: Rehearsal | None = None
    lengths = sorted({min(shortest + 24, longest), longest})
    with tempfile.TemporaryDirectory(prefix="kwise-rehearsal-") as directory:
        for layout in layouts:
            if layout == "separate" and "padded" in refused:
                continue  # its graph is that of padded batches
            try:
                session = _session(new_copy(), layout, Path(directory) / layout)
            except _Refused as error:
                reasons.append(str(error))
                refused.add(layout)
                continue
            obstacle = partial(_obstacle, measured, session, layout)
            reason = next((why for length in lengths if (why := obstacle(length))), None)
            if reason is None:
                return Rehearsal(layout=layout, reasons=tuple(reasons))
            reasons.append(reason)
            limit = longest_that_holds(obstacle, shortest, longest)
            if limit >= _MIN_TOKENS and (limited is None or limit > (limited.max_tokens or 0)):
                limited = Rehearsal(layout=layout, max_tokens=limit)
    if limited is None:
        raise _Refused("; ".join(dict.fromkeys(reasons)))
    return Rehearsal(layout=limited.layout, max_tokens=limited.max_tokens, reasons=tuple(reasons))


def _session(model: PreTrainedModel, layout: LayoutName, directory: Path) -> GraphSession:
    """Export the copy and open it as the engine does.

    Raises:
        _Refused: it cannot be exported, or its graph cannot be run.
    """
    directory.mkdir()
    config = model.config.get_text_config()
    try:
        contract = EXPORTS[layout](model, directory)
        manifest = Manifest(
            name="rehearsal",
            layout=layout,
            graphs={Precision.FP32: contract},
            error_bounds={},
            max_tokens=1,
            vocab_size=1,
            pad_token_id=config.pad_token_id,
            causal=False,
            special_tokens={},
            files={},
            members=(Member(),) * members if (members := members_of(model.config)) > 1 else UNSET,
        )
        artifact = Artifact(path=directory, manifest=manifest, golden=())
        return GraphSession(artifact, threads=1, prompt_cache_bytes=_PROMPT_CACHE_BYTES)
    except ConfigError as error:
        raise _Refused(str(error)) from error
    except Exception as error:
        raise _Refused(f"its {layout} graph cannot be made: {_line(error)}") from error


def _obstacle(
    measured: Invariance, session: GraphSession, layout: LayoutName, length: int
) -> str | None:
    """Return why the session does not give these conversations transformers' rewards.

    Of a model with members, their mean is compared.
    """
    expected = measured.expected(length)
    sequences = [
        EncodedSequence(
            token_ids=np.array(sequence, np.int64),
            type_ids=None,
            num_tokens=len(sequence),
            prompt_tokens=len(sequence) // 2,
        )
        for sequence in measured.sequences(length)
    ]
    try:
        alone = [_rewards(session, [sequence])[0] for sequence in sequences]
        together = _rewards(session, sequences)
        afterwards = [_rewards(session, [sequence])[0] for sequence in sequences]
    except Exception as error:  # noqa: BLE001 - any error of the runtime, in this batch
        node = re.search(r"while running (\w+) node", str(error))
        if node is None:
            return f"its {layout} graph fails: {_line(error)}"
        return f"its {layout} graph fails in a {node[1]} node for some conversations"
    tolerance = allowed_difference(_TOLERANCE, expected)
    for measured_rewards, where in (
        (alone, f"at {length} tokens"),
        (together, "in a batch of unlike lengths"),
        (afterwards, "after other conversations"),
    ):
        largest = max(abs(a - b) for a, b in zip(measured_rewards, expected, strict=True))
        if not largest <= tolerance:  # negated, so that NaN fails too
            return f"the rewards of its {layout} graph differ by {largest:.2g} {where}"
    return None


def _rewards(session: GraphSession, batch: Sequence[EncodedSequence]) -> list[float]:
    """Return the reward of each sequence; with members, their mean."""
    rewards: list[float] = session.run(batch).rewards.reshape(len(batch), -1).mean(1).tolist()
    return rewards


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what other libraries write, ONNX Runtime too."""
    onnxruntime.set_default_logger_severity(_ONNXRUNTIME_FATAL)
    try:
        with quiet():
            yield
    finally:
        onnxruntime.set_default_logger_severity(_ONNXRUNTIME_WARNING)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"
