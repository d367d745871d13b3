"""The artifact: a directory that holds all that serving needs, and the manifest that describes it.

    manifest.json, tokenizer.json, chat_template.jinja (if any), golden.jsonl, and for each precision a graph and its weights:
    model.onnx and model.onnx.data in fp32, model.int8.onnx and model.int8.onnx.data in int8, and so on

Reading it checks the schema version, the type of every field, every file's size and SHA-256, and the fingerprint, so that a
damaged, half-written or edited artifact is refused by the name of its file and never served. `kwise.export` writes artifacts
through the same `Manifest`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from itertools import starmap
from math import isfinite
from pathlib import Path
from typing import Any

from kwise.engine.model.precision import Precision
from kwise.errors import ArtifactError
from kwise.types import Message

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
MODEL = "model.onnx"  # the graph in fp32
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GOLDEN = "golden.jsonl"
_LAYOUTS = ("trie", "padded")


def graph_name(precision: Precision) -> str:
    """The file of a precision's graph."""
    return MODEL if precision is Precision.FP32 else f"model.{precision.value}.onnx"


def data_name(precision: Precision) -> str:
    """The file of its weights, which the graph refers to by this name; small models have them inside."""
    return f"{graph_name(precision)}.data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a precision's rewards keep to, in units of the raw reward; a server that finds more at its start does not serve.

    max_difference: from the reward in fp32, the checkpoint's or the fp32 graph's. max_change: of a reward, with what shares its
    batch. report: what the export measured, for people.
    """

    max_difference: float
    max_change: float
    report: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the engine needs to know of a model. The fingerprint covers every field but `fingerprint` itself.

    layout: "trie" (causal, prefixes shared) or "padded". precisions: what each of the artifact's graphs promises, by the names of
    `Precision`, as objects of the fields of `Promise`. num_classes: calls of Attention a layer in the trie graph, 0 for
    padded. max_tokens: longest conversation. vocab_size: token ids are below it.
    pad_token_id: what padded batches are filled with; in causal models also what transformers skips at the end before it
    reads the reward, None where it reads the very last token. causal: later tokens do not change earlier hidden states.
    special_tokens: names that chat templates use. reward_mean, reward_std: value = (raw − mean) / std. files: name →
    {"sha256", "bytes"}. provenance: from what the artifact was made.
    """

    name: str
    layout: str
    precisions: dict[str, dict[str, Any]]
    num_classes: int
    max_tokens: int
    vocab_size: int
    pad_token_id: int | None
    causal: bool
    special_tokens: dict[str, str]
    files: dict[str, dict[str, Any]]
    reward_mean: float = 0.0
    reward_std: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    fingerprint: str = ""

    def promise(self, precision: Precision) -> Promise:
        """Raises KeyError where the artifact has no such graph."""
        return Promise(**self.precisions[precision.value])

    @property
    def held(self) -> list[Precision]:
        """The precisions that there are graphs of."""
        return [Precision(name) for name in self.precisions]

    def computed_fingerprint(self) -> str:
        """SHA-256 in hex over all fields but the fingerprint; through `files` it covers every byte of the artifact."""
        content = {name: value for name, value in asdict(self).items() if name != "fingerprint"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A conversation whose reward is known: `reward` is the raw fp32 reward of the checkpoint in PyTorch."""

    prompt: tuple[Message, ...]
    response: str
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A verified artifact on disk."""

    path: Path
    manifest: Manifest
    golden: tuple[Golden, ...]

    def graph_path(self, precision: Precision = Precision.FP32) -> Path:
        return self.path / graph_name(precision)

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    @property
    def chat_template(self) -> str | None:
        """The template's source; None for models that read a pair of texts."""
        path = self.path / CHAT_TEMPLATE
        return path.read_text(encoding="utf-8") if CHAT_TEMPLATE in self.manifest.files else None


def read_artifact(path: Path) -> Artifact:
    """Read and verify the artifact in directory `path`.

    Raises:
        ArtifactError: it is missing, half-written, damaged, edited, or of another schema; names the file.
    """
    manifest = _read_manifest(path / MANIFEST)
    for name, expected in manifest.files.items():
        verify_file(path / name, expected)
    for precision in manifest.held:
        data = data_name(precision)
        if data not in manifest.files and (path / data).exists():
            raise ArtifactError(
                f"{path / data}: the manifest does not list it, so these weights are nobody's"
            )
    if manifest.computed_fingerprint() != manifest.fingerprint:
        raise ArtifactError(
            f"{path / MANIFEST}: its fingerprint does not match its content; export the checkpoint again"
        )
    return Artifact(path=path, manifest=manifest, golden=_read_golden(path / GOLDEN))


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the artifact in directory `path`, and none of its other files.

    Raises:
        ArtifactError: the manifest is missing or malformed, or has another schema.
    """
    return _read_manifest(path / MANIFEST)


def describe_file(path: Path) -> dict[str, Any]:
    """{"sha256": hex, "bytes": size} of a file."""
    with path.open("rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }


def verify_file(path: Path, expected: dict[str, Any]) -> None:
    """Raises ArtifactError where the file is missing, cut short or changed."""
    if not path.is_file():
        raise ArtifactError(f"{path}: the manifest lists it, but it is missing")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise ArtifactError(f"{path}: {size} bytes where the manifest says {expected['bytes']}")
    if describe_file(path)["sha256"] != expected["sha256"]:
        raise ArtifactError(f"{path}: damaged, its SHA-256 is not the manifest's")


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no such file; is this directory an artifact made by `kwise export`?"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema version {version}; this kwise reads version {SCHEMA_VERSION}"
        )
    names = {f.name for f in fields(Manifest)}
    if (unknown := content.keys() - names) or (missing := names - content.keys()):
        wrong = (
            f"unknown fields {sorted(unknown)}" if unknown else f"missing fields {sorted(missing)}"
        )
        raise ArtifactError(f"{path}: {wrong}")
    for name, (expected, is_valid) in _FIELDS.items():
        if not is_valid(content[name]):
            raise ArtifactError(f"{path}: {name} must be {expected}")
    graphs = [graph_name(Precision(name)) for name in content["precisions"]]
    for name in (*graphs, TOKENIZER, GOLDEN):
        if name not in content["files"]:
            raise ArtifactError(
                f"{path}: files does not list {name}, without which nothing can be served"
            )
    return Manifest(**content)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_file(name: str, value: Any) -> bool:
    """A file of the artifact itself: a name that leads elsewhere would have another file verified and served."""
    described = isinstance(value, dict) and value.keys() == {"sha256", "bytes"}
    return (
        described
        and _is_text(value["sha256"])
        and _is_count(value["bytes"])
        and name == Path(name).name
    )


def _is_promise(name: str, value: Any) -> bool:
    known = name in {precision.value for precision in Precision} and isinstance(value, dict)
    if (
        not known
        or value.keys() != {f.name for f in fields(Promise)}
        or not isinstance(value["report"], dict)
    ):
        return False
    return all(
        _is_number(value[bound]) and value[bound] >= 0 for bound in ("max_difference", "max_change")
    )


# What a field's value must be, in words and as a check. Fields that only people read may be any object.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a text", lambda value: _is_text(value) and bool(value)),
    "layout": ("one of trie and padded", lambda value: value in _LAYOUTS),
    "precisions": (
        f"promises by precision ({', '.join(precision.value for precision in Precision)}), at least one",
        lambda value: (
            isinstance(value, dict) and bool(value) and all(starmap(_is_promise, value.items()))
        ),
    ),
    "num_classes": ("a count", _is_count),
    "max_tokens": ("a count of at least 1", lambda value: _is_count(value) and value > 0),
    "vocab_size": ("a count of at least 1", lambda value: _is_count(value) and value > 0),
    "pad_token_id": ("a count or null", lambda value: value is None or _is_count(value)),
    "causal": ("true or false", lambda value: isinstance(value, bool)),
    "special_tokens": (
        "texts by name",
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    ),
    "files": (
        "sha256 and bytes by name",
        lambda value: isinstance(value, dict) and all(starmap(_is_file, value.items())),
    ),
    "reward_mean": ("a number", _is_number),
    "reward_std": ("a number greater than 0", lambda value: _is_number(value) and value > 0),
    "provenance": ("an object", lambda value: isinstance(value, dict)),
    "fingerprint": ("a text", _is_text),
}


def _read_golden(path: Path) -> tuple[Golden, ...]:
    golden = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            golden.append(_golden(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{path}:{number}: no conversation with a reward: {error!r}"
            ) from None
    if not golden:
        raise ArtifactError(
            f"{path}: it holds no conversation, so that nothing would tell a wrong reward"
        )
    return tuple(golden)


def _golden(entry: Any) -> Golden:
    """Raises ValueError, TypeError or KeyError where the entry is none."""
    prompt = tuple(Message(**message) for message in entry["prompt"])
    texts = [text for message in prompt for text in (message.role, message.content)]
    if (
        not prompt
        or not all(map(_is_text, [*texts, entry["response"]]))
        or not _is_number(entry["reward"])
    ):
        raise TypeError("prompt must be messages, response a text and reward a number")
    return Golden(prompt=prompt, response=entry["response"], reward=entry["reward"])
