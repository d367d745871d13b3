"""Models with random weights in the shape of real ones, to measure times on a machine without them.

The graphs are written where `kwise export` works, and they take a few MB without their weights. The
weights are drawn on the machine with the GPU. So a benchmark of an 8B model needs no download of
16 GB and no conversion there. The number of a weight depends on its name only, so the graphs of all
precisions have the same weights, rounded.

A shape may have fewer layers than the model. All its layers take the same time, so that of the
whole model is the measured one times a factor, up to embedding and head.
"""

import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, copytree
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact.manifest import Manifest
from kwise.engine.model.cpu import available_cpus
from kwise.engine.precision import Precision
from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install

_SIZES = "sizes.json"
_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)
_ROUNDED_NAMES = (".float16", ".bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Llama model.

    Attributes:
        config: the fields of transformers' LlamaConfig that are not at their default.
        num_layers: the layers of the graph.
        model_layers: the layers of the whole model.
    """

    config: dict[str, int]
    num_layers: int
    model_layers: int


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The graphs of a shape.

    factor: the time of the whole model is that of the graph times this.
    manifest: what the engine needs to run the graphs; it lists no files.
    """

    factor: int
    manifest: Manifest


# The vocabulary of the 8B shape is small, because it only costs memory.
SHAPES = {
    "smollm2-135m": Shape(
        config={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        num_layers=30,
        model_layers=30,
    ),
    "llama-3-8b": Shape(
        config={
            "vocab_size": 2048,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        num_layers=2,
        model_layers=32,
    ),
}


def write_shape(shape: Shape, directory: Path) -> None:
    """Write the graphs of a shape without weights, their manifest, and transformers' config.

    Raises:
        ConfigError: a package of `kwise export` is missing.
    """
    try:
        from transformers import LlamaConfig, LlamaForSequenceClassification

        from kwise.export.graphs.cuda_graph import write_cuda_graph
        from kwise.export.graphs.trie_graph import export_trie
        from kwise.export.precision.half import write_half
        from kwise.export.precision.precisions import contract_of
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{directory.parent} lacks the graphs of {directory.name}, and {error.name}, which "
            f"writes them, is missing: {how_to_install('export')}, or copy the folder from a "
            "machine where kwise bench gpu --steps shapes has run"
        ) from None
    config = LlamaConfig(
        **shape.config, num_hidden_layers=shape.num_layers, num_labels=1, pad_token_id=0
    )
    config.architectures = ["LlamaForSequenceClassification"]
    with TemporaryDirectory() as work:
        exported, shown = Path(work, "exported"), Path(work, "shown")
        exported.mkdir()
        # `fill` draws other weights.
        fp32 = export_trie(LlamaForSequenceClassification(config).eval(), exported)
        graphs = {precision: contract_of(precision, fp32) for precision in _PRECISIONS}
        for precision, contract in graphs.items():
            if precision is not Precision.FP32:
                write_half(exported / fp32.file, exported / contract.file, precision)
        cuda_graphs = {
            precision: write_cuda_graph(exported, contract)
            for precision, contract in graphs.items()
        }
        config.save_pretrained(shown)
        for contract in (*graphs.values(), *cuda_graphs.values()):
            copyfile(exported / contract.file, shown / contract.file)
        manifest = Manifest(
            name=directory.name,
            layout="trie",
            graphs=graphs,
            cuda_graphs=cuda_graphs,
            error_bounds={},
            max_tokens=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            pad_token_id=0,
            causal=True,
            special_tokens={},
            files={},
        )
        sizes = Sizes(factor=shape.model_layers // shape.num_layers, manifest=manifest)
        (shown / _SIZES).write_bytes(msgspec.json.encode(sizes))
        partial = directory.with_name(f".{directory.name}.partial")
        copytree(shown, partial, dirs_exist_ok=True)
        partial.rename(directory)


def read_sizes(directory: Path) -> Sizes:
    """Read what `write_shape` wrote about a shape.

    Raises:
        ConfigError: it was written by another version of kwise, or is damaged.
    """
    path = directory / _SIZES
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sizes)
    except (OSError, msgspec.MsgspecError):
        raise ConfigError(
            f"{path} is not of this version of kwise; remove {directory}, so that it is written "
            "again"
        ) from None


def fill(directory: Path, target: Path) -> None:
    """Copy a shape to `target` with random weights beside each graph.

    `target` appears when it is complete, so that a step that was cut leaves no half of a model.
    """
    import onnx

    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True)
    places: dict[str, dict[tuple[str, int], Any]] = defaultdict(dict)
    for path in directory.iterdir():
        copyfile(path, partial / path.name)
        if path.suffix != ".onnx":
            continue
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                place = entries["location"], int(entries["offset"])
                places[_base(tensor.name)][place] = tensor
                (partial / place[0]).touch()

    def write(base: str) -> None:
        tensors = places[base]
        weight = random_weight(base, tuple(next(iter(tensors.values())).dims))
        for (location, offset), tensor in tensors.items():
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            with (partial / location).open("r+b") as file:
                file.seek(offset)
                file.write(weight.reshape(tuple(tensor.dims)).astype(dtype).tobytes())

    with ThreadPoolExecutor(available_cpus()) as pool:  # NumPy draws without Python's lock
        list(pool.map(write, places))
    partial.rename(target)


def random_weight(name: str, dims: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the weight `name`: ones for a norm, else normal numbers that keep the scale of rows.

    The rewards of such a model differ between conversations as a real model's do, which is enough
    to compare them between devices and batches.
    """
    if len(dims) == 1:
        return np.ones(dims, np.float32)
    weight = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(dims, np.float32)
    if "embed" not in name:
        weight *= np.float32((dims[0] if "transposed" in name else dims[-1]) ** -0.5)
    return weight


def _base(name: str) -> str:
    """Return the name of a weight in fp32."""
    for rounded in _ROUNDED_NAMES:
        name = name.split(rounded)[0]
    return name
