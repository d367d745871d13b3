"""Weights in the file beside a graph: read without a copy, written one at a time, so that no model is in memory twice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data

# Runtimes map the file's pages.
_ALIGNMENT = 4096


def read_weight(tensor: TensorProto, directory: Path) -> NDArray[Any]:
    """A view of the weight's bytes on disk, or a copy where the graph holds it itself."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    place = ExternalDataInfo(tensor)
    dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    return np.memmap(directory / place.location, dtype, "r", offset=place.offset or 0, shape=shape)


class WeightFile:
    """`with WeightFile(path) as file: graph.initializer.append(file.add(name, array))`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "WeightFile":
        self._path.unlink(
            missing_ok=True
        )  # a session may map the old one, which must not change under it
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> TensorProto:
        """The initializer `name`, whose data are now at the end of the file."""
        self._file.seek(-(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT)
        offset = self._file.tell()
        np.ascontiguousarray(array).tofile(self._file)
        tensor = TensorProto(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        tensor.raw_data = b""  # set_external_data wants the field
        set_external_data(tensor, self._path.name, offset=offset, length=self._file.tell() - offset)
        tensor.ClearField("raw_data")
        return tensor


class Rewriting:
    """A graph on its way to another file: within `with`, `emit` each node or what stands for it; the weights that these read
    follow. What leads to no output is left out."""

    def __init__(self, source: Path, destination: Path) -> None:
        self._directory, self._destination = source.parent, destination
        self.model = onnx.load(source, load_external_data=False)
        self._weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        _skip_identities(self.model.graph, self._weights)
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, TensorProto] = {}
        self._file = WeightFile(destination.with_name(f"{destination.name}.data"))

    def __enter__(self) -> "Rewriting":
        self._file.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._finish()
        self._file.__exit__()

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Of the source."""
        return list(self.model.graph.node)

    def is_weight(self, name: str) -> bool:
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight."""
        return tuple(self._weights[name].dims)

    def weight(self, name: str) -> NDArray[Any]:
        return read_weight(self._weights[name], self._directory)

    def emit(self, *nodes: onnx.NodeProto) -> None:
        """Add nodes, in the order of computation."""
        self._nodes.extend(nodes)

    def add_weight(self, name: str, array: NDArray[Any]) -> str:
        """Write a weight for the new graph; its name. One that is there already is not written again."""
        if name not in self._added:
            self._added[name] = self._file.add(name, array)
        return name

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """The same for a few numbers, which stay in the graph itself: shapes are inferred from them."""
        self._added.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _finish(self) -> None:
        graph = self.model.graph
        read = {value.name for value in graph.output}
        needed = []
        for node in reversed(self._nodes):
            if not read.isdisjoint(node.output):
                needed.append(node)
                read |= _inputs(node)
        kept = [self._file.add(name, self.weight(name)) for name in self._weights if name in read]
        del graph.node[:]
        graph.node.extend(reversed(needed))
        del graph.initializer[:]
        graph.initializer.extend(
            [*(tensor for name, tensor in self._added.items() if name in read), *kept]
        )
        onnx.save(self.model, self._destination)


def _skip_identities(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> None:
    """A weight that several layers share is read through nodes that do nothing: they read it directly."""
    shown = {value.name for value in graph.output}
    named = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    source = {
        name: origin
        for name, origin in ((name, _origin(name, named)) for name in named)
        if origin in weights
    }
    kept = [node for node in graph.node if node.output[0] not in source or node.output[0] in shown]
    for node in kept:
        for position, name in enumerate(node.input):
            node.input[position] = source.get(name, name)
    inner = {name for node in kept for name in _inputs(node)} & source.keys()
    kept[:0] = [node for node in graph.node if node.output[0] in inner and node not in kept]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)


def _origin(name: str, named: Mapping[str, str]) -> str:
    while name in named:
        name = named[name]
    return name


def _inputs(node: onnx.NodeProto) -> set[str]:
    """What a node reads, the branches of an `If` included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _inputs(inner)
    return names
