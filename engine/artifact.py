"""The artifact: a directory that holds all that serving needs, and the manifest that describes it.

    manifest.json, model.onnx, model.onnx.data, tokenizer.json, chat_template.jinja (if any), golden.jsonl

Reading it checks the schema version, every file's size and SHA-256, and the fingerprint, so that a damaged, half-written
or edited artifact is refused by the name of its file and never served. `kwise.export` writes artifacts through the same
`Manifest`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kwise.engine.errors import ArtifactError
from kwise.engine.types import Message

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GOLDEN = "golden.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the engine needs to know of a model. The fingerprint covers every field but `fingerprint` itself.

    layout: "trie" (causal, prefixes shared) or "padded". dtype: of weights and arithmetic. num_classes: calls of Attention a
    layer in the trie graph, 0 for padded. max_tokens: longest conversation. vocab_size: token ids are below it.
    pad_token_id: what padded batches are filled with; in causal models also what transformers skips at the end before it
    reads the reward, None where it reads the very last token. causal: later tokens do not change earlier hidden states.
    special_tokens: names that chat templates use. reward_mean, reward_std: value = (raw − mean) / std. golden_tolerance:
    largest difference from a golden reward at which the server still starts. files: name → {"sha256", "bytes"}.
    parity, provenance: what the export measured, and from what it made the artifact.
    """

    name: str
    layout: str
    dtype: str
    num_classes: int
    max_tokens: int
    vocab_size: int
    pad_token_id: int | None
    causal: bool
    special_tokens: dict[str, str]
    golden_tolerance: float
    files: dict[str, dict[str, Any]]
    reward_mean: float = 0.0
    reward_std: float = 1.0
    parity: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    fingerprint: str = ""

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

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

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
    if manifest.computed_fingerprint() != manifest.fingerprint:
        raise ArtifactError(f"{path / MANIFEST}: its fingerprint does not match its content; export the checkpoint again")
    return Artifact(path=path, manifest=manifest, golden=_read_golden(path / GOLDEN))


def describe_file(path: Path) -> dict[str, Any]:
    """{"sha256": hex, "bytes": size} of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


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
        raise ArtifactError(f"{path}: no such file; is this directory an artifact made by `kwise export`?") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(f"{path}: schema version {version}; this kwise reads version {SCHEMA_VERSION}")
    names = {f.name for f in fields(Manifest)}
    if (unknown := content.keys() - names) or (missing := names - content.keys()):
        wrong = f"unknown fields {sorted(unknown)}" if unknown else f"missing fields {sorted(missing)}"
        raise ArtifactError(f"{path}: {wrong}")
    return Manifest(**content)


def _read_golden(path: Path) -> tuple[Golden, ...]:
    golden = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        prompt = tuple(Message(**message) for message in entry["prompt"])
        golden.append(Golden(prompt=prompt, response=entry["response"], reward=entry["reward"]))
    return tuple(golden)
