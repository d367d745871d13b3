"""Read and verify an artifact.

`read_artifact` checks the manifest and every file's size and SHA-256. A damaged, half-written or
edited artifact is refused with the name of the file, and never served.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from kwise.engine.artifact.files import verify_file
from kwise.engine.artifact.golden import Golden, read_golden
from kwise.engine.artifact.manifest import GraphContract, Manifest, read_manifest
from kwise.engine.artifact.names import CHAT_TEMPLATE, TOKENIZER, data_name
from kwise.engine.precision import Precision
from kwise.errors import ArtifactError


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A verified artifact on disk."""

    path: Path
    manifest: Manifest
    golden: tuple[Golden, ...]

    def graph_path(self, precision: Precision = Precision.FP32) -> Path:
        """Return the path of a precision's ONNX file.

        Raises:
            KeyError: the artifact has no graph in this precision.
        """
        return self.path / self.manifest.graphs[precision].file

    def with_graph(self, precision: Precision, contract: GraphContract) -> "Artifact":
        """Return the artifact with another graph of its directory for a precision."""
        graphs = self.manifest.graphs | {precision: contract}
        return replace(self, manifest=msgspec.structs.replace(self.manifest, graphs=graphs))

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template; None for models that read a pair of texts."""
        path = self.path / CHAT_TEMPLATE
        return path.read_text(encoding="utf-8") if CHAT_TEMPLATE in self.manifest.files else None


def read_artifact(path: Path) -> Artifact:
    """Read and verify the artifact in the directory `path`.

    Raises:
        ArtifactError: it is missing, half-written, damaged, edited, or of another schema version.
            The message names the file.
    """
    manifest = read_manifest(path)
    try:
        for name, expected in manifest.files.items():
            verify_file(path / name, expected)
        for graph in manifest.graphs.values():
            data = path / data_name(graph.file)
            if data.name not in manifest.files and data.exists():
                raise ArtifactError(f"{data}: the manifest does not list this file of weights")
    except OSError as error:  # a file that this user may not read, or a name that is too long
        raise ArtifactError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return Artifact(path=path, manifest=manifest, golden=read_golden(path, manifest.num_members))
