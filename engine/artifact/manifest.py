"""The manifest of an artifact: what the engine must know of a model, and its identity.

`read_manifest` checks the schema version, every field's type, and the checksum.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from math import fsum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from kwise.engine.artifact.files import FileEntry
from kwise.engine.artifact.members import ensemble_reward
from kwise.engine.artifact.names import GOLDEN, MANIFEST, TOKENIZER
from kwise.engine.artifact.typed_json import NOT_JSON, convert
from kwise.engine.precision import Precision
from kwise.errors import ArtifactError
from kwise.types import MAX_SCALE, MIN_STD, RawReward, Reward

SCHEMA_VERSION = 5
MAX_MANIFEST_BYTES = 16 << 20  # thousands of times what an export writes

# The fields of a manifest that decide what rewards a server gives. The name of the artifact, dates,
# versions and what the export measured on its machine are left out.
_IDENTITY = (
    "layout",
    "graphs",
    "cuda_graphs",
    "max_tokens",
    "vocab_size",
    "pad_token_id",
    "causal",
    "response_header",
    "special_tokens",
    "files",
    "reward_mean",
    "reward_std",
    "members",
)

Name = Annotated[str, Meta(min_length=1)]
# A file in the artifact's own directory. A path that leads elsewhere would have another file
# served.
FileName = Annotated[str, Meta(pattern=r"^[^/\\]+$")]
Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]
Bound = Annotated[float, Meta(ge=0)]
Mean = Annotated[float, Meta(ge=-MAX_SCALE, le=MAX_SCALE)]
Std = Annotated[float, Meta(ge=MIN_STD, le=MAX_SCALE)]


class GraphContract(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The properties of a graph that a session needs to run it. The exporter writes them.

    file: the ONNX file.
    reward_output: the output that holds the rewards, float32[B] or [B, 1]; with M members,
        float32[B, M].
    num_tile_groups: calls of Attention per layer in the trie layout; 0 in the padded layout.
    separate_last_tokens: the graph computes each sequence's last row differently from other rows,
        so that row must not be an inner row of another sequence.
    aligned_keys: every row's keys must lie at the same places in every batch. Attention then adds
        them up in the same order, and its mask is causal, so that a graph for CUDA needs none. See
        `kwise.engine.model.packing.pack`.
    """

    file: FileName
    reward_output: Name
    num_tile_groups: Count
    separate_last_tokens: bool
    aligned_keys: bool


class ErrorBounds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that the rewards of one precision keep, in units of the raw reward.

    A server that measures more when it starts does not serve.

    max_error: largest difference from the fp32 reward (in fp32: from the checkpoint's reward).
    max_batch_change: largest change of a reward with the composition of its batch, where products
        are summed up in one order for every batch.
    max_order_change: how much more it may change on a device that chooses the order of summation by
        the number of rows (CUDA); 0 in fp32 and int8.
    report: what the export measured, for people.
    """

    max_error: Bound
    max_batch_change: Bound
    max_order_change: Bound = 0.0
    report: dict[str, Any]


class Member(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head that gives a reward of its own. See `kwise.engine.artifact.members`.

    mean, std: the member's value is (raw - mean) / std.
    """

    mean: Mean = 0.0
    std: Std = 1.0


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The properties of a model that the engine needs.

    name: the model's name in requests and replies.
    layout: "trie" (causal models; prefixes are shared), "padded", or "separate" (the graph of
        "padded", run for one sequence at a time).
    graphs, error_bounds: one entry per precision, the same precisions in both.
    cuda_graphs: the graphs that CUDA runs instead of those in `graphs`. They have the same weights,
        in the same files. Empty in the padded layout.
    max_tokens: longest conversation, in tokens.
    vocab_size: token ids are below it.
    pad_token_id: the token that fills padded batches. In a causal model it is also the token that
        transformers skips at the end before it reads the reward; None if it reads the last token.
    causal: later tokens do not change earlier hidden states.
    response_header: the token ids after which a response begins, in a model with mean pooling (see
        `kwise.engine.model.pooling`); absent if the reward is read at the last token.
    special_tokens: names that chat templates use, such as `bos_token`, and their text.
    files: every file of the artifact except the manifest.
    reward_mean, reward_std: the served value is (raw - mean) / std. They are 0 and 1 with members.
    members: the members of the model, in the order of the graph's outputs; absent if it has none.
    provenance: what the artifact was made from, for people.
    fingerprint: the identity of the model, see `fingerprint_of`.
    checksum: SHA-256 in hex over all other fields. Through `files` it covers every byte.
    """

    name: Name
    layout: Literal["trie", "padded", "separate"]
    graphs: Annotated[dict[Precision, GraphContract], Meta(min_length=1)]
    error_bounds: dict[Precision, ErrorBounds]
    cuda_graphs: dict[Precision, GraphContract] = {}
    max_tokens: PositiveCount
    vocab_size: PositiveCount
    pad_token_id: Count | None
    causal: bool
    response_header: Annotated[tuple[Count, ...], Meta(min_length=1)] | UnsetType = UNSET
    special_tokens: dict[str, str]
    files: dict[FileName, FileEntry]
    reward_mean: Mean = 0.0
    reward_std: Std = 1.0
    members: Annotated[tuple[Member, ...], Meta(min_length=2)] | UnsetType = UNSET
    provenance: dict[str, Any] = {}
    schema_version: int = SCHEMA_VERSION
    fingerprint: str = ""
    checksum: str = ""

    @property
    def num_members(self) -> int:
        """The number of rewards that the graph gives per conversation; 1 without members."""
        return len(self.members or (0,))

    @property
    def mean_pooling(self) -> bool:
        """True if the reward is the mean over the response's tokens."""
        return self.response_header is not UNSET

    def value(self, raw: RawReward) -> float:
        """Return the value of a raw reward; with members, the mean of their values."""
        if isinstance(raw, tuple):
            return fsum(self._member_values(raw)) / len(raw)
        return (raw - self.reward_mean) / self.reward_std

    def reward(
        self,
        raw: RawReward,
        *,
        tokens: int,
        dropped_tokens: int,
        control_tokens: int,
        cached: bool = False,
    ) -> Reward:
        """Return the reward of a response, normalised, from what the graph computed of it."""
        if isinstance(raw, tuple):
            return ensemble_reward(
                values=self._member_values(raw),
                raw=raw,
                tokens=tokens,
                dropped_tokens=dropped_tokens,
                control_tokens=control_tokens,
                cached=cached,
            )
        return Reward(
            value=(raw - self.reward_mean) / self.reward_std,
            raw=raw,
            tokens=tokens,
            dropped_tokens=dropped_tokens,
            control_tokens=control_tokens,
            cached=cached,
        )

    def _member_values(self, raw: tuple[float, ...]) -> list[float]:
        return [(r - m.mean) / m.std for r, m in zip(raw, self.members or (), strict=True)]

    @property
    def available_precisions(self) -> list[Precision]:
        """The precisions that the artifact has a graph for."""
        return list(self.graphs)

    def signed(self) -> "Manifest":
        """Return the manifest with its fingerprint and its checksum."""
        content = msgspec.to_builtins(self)
        content["fingerprint"] = fingerprint_of(content)
        return msgspec.structs.replace(
            self, fingerprint=content["fingerprint"], checksum=_hash_without(content, "checksum")
        )

    def to_json(self) -> str:
        """Return the content of `manifest.json`."""
        content = msgspec.to_builtins(self)
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 in hex over what decides the rewards: two exports of a model agree.

    Args:
        content: the manifest's fields as JSON values. Its files count without the golden rewards,
            whose last digits depend on the machine that exported.
    """
    identity = {name: content[name] for name in _IDENTITY if name in content}
    identity["files"] = {name: file for name, file in content["files"].items() if name != GOLDEN}
    return _hash_without(identity)


def is_intact(content: Mapping[str, Any]) -> bool:
    """Return whether a manifest, of any schema version, is as it was signed.

    Raises:
        KeyError: it is not signed.
    """
    # Up to schema version 4 the fingerprint was the checksum.
    signature = "checksum" if "checksum" in content else "fingerprint"
    return bool(content[signature] == _hash_without(content, signature))


def _hash_without(content: Mapping[str, Any], *excluded: str) -> str:
    covered = {name: value for name, value in content.items() if name not in excluded}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the artifact in the directory `path`, but none of its other files.

    Raises:
        ArtifactError: the manifest is missing, malformed, edited, or of another schema version.
    """
    return _read_manifest(path / MANIFEST)


def _read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file. A pipe or a device could block the reader.

    Raises:
        OSError: it cannot be read.
        ArtifactError: it is not a file, or larger than the limit.
    """
    # The flag matters if it is a pipe: to open that would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArtifactError(f"{path}: it is a directory, a pipe or a device, not a file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ArtifactError(f"{path}: it is larger than {max_bytes} bytes")
    return content


def _read_manifest(path: Path) -> Manifest:
    try:
        content = msgspec.json.decode(_read_regular(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        advice = (
            f"the directory is a checkpoint: export it with kwise export {path.parent} ARTIFACT"
            if (path.parent / "config.json").is_file()
            else "is this directory an artifact made by `kwise export`?"
        )
        raise ArtifactError(f"{path}: no such file; {advice}") from None
    except (OSError, *NOT_JSON) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        is_newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise ArtifactError(
            f"{path}: schema version {version!r}; this version of kwise reads {SCHEMA_VERSION}: "
            + ("install a newer kwise" if is_newer else "export the checkpoint again")
        )
    manifest = convert(content, Manifest, str(path))
    if manifest.error_bounds.keys() != manifest.graphs.keys():
        raise ArtifactError(f"{path}: error_bounds must have the same precisions as graphs")
    if manifest.members is not UNSET and (manifest.reward_mean, manifest.reward_std) != (0, 1):
        raise ArtifactError(
            f"{path}: reward_mean and reward_std must be 0 and 1, because each of members has a "
            "mean and a std of its own"
        )
    if manifest.response_header is not UNSET and manifest.layout != "trie":
        raise ArtifactError(
            f"{path}: response_header needs the layout trie, because other graphs give one reward "
            "per sequence"
        )
    if not manifest.cuda_graphs.keys() <= manifest.graphs.keys():
        raise ArtifactError(f"{path}: cuda_graphs must have no precision that graphs does not have")
    graphs = (*manifest.graphs.values(), *manifest.cuda_graphs.values())
    for name in (*(graph.file for graph in graphs), TOKENIZER, GOLDEN):
        if name not in manifest.files:
            raise ArtifactError(f"{path}: files does not list {name}, which serving needs")
    if not is_intact(content) or fingerprint_of(content) != manifest.fingerprint:
        raise ArtifactError(
            f"{path}: its checksum does not match its content; export the checkpoint again"
        )
    return manifest
