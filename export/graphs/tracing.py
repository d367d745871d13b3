"""Helpers around torch's tracer, for both graphs: no warnings, and no copies of the weights.

The TorchScript exporter copies every weight several times: into the graph, into its protobuf
message, and again when Optimum reads and writes the file. So the trie graph is traced with its
parameters as inputs (`ParametersAsInputs`). The written graph is then small, and `attach_weights`
turns these inputs into initializers, copying one weight at a time from the checkpoint's tensors to
the file beside the graph. Peak memory is that of the checkpoint, and the 2 GB limit of protobuf
does not apply.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from kwise.export.weights import WeightFile


@contextmanager
def without_tracer_warnings() -> Iterator[None]:
    """Silence the tracer's warnings.

    torch warns about every Python value in transformers' code that tracing turns into a constant.
    The check of parity shows whether one of them matters.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", module="torch\\.onnx")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


class ParametersAsInputs(nn.Module):
    """A wrapper of `module` that takes its weights as a list among its arguments.

    names, weights: the parameters, in the order of the list; tied parameters once.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [
            module
        ]  # in a list, so it is not a submodule: the tracer copies their parameters
        self.names = [name for name, _ in module.named_parameters()]
        self.weights = [parameter.detach() for _, parameter in module.named_parameters()]
        numbers = {
            id(parameter): number for number, (_, parameter) in enumerate(module.named_parameters())
        }
        # torch.func.functional_call does the same but refuses to do so while tracing.
        self._places = [
            (part, name, numbers[id(parameter)])
            for part in module.modules()
            for name, parameter in part.named_parameters(recurse=False)
        ]

    @contextmanager
    def holding(self, weights: Sequence[Tensor]) -> Iterator[Any]:
        """Yield the module, with these weights instead of its parameters within this context."""
        own = [part._parameters[name] for part, name, _ in self._places]
        try:
            for part, name, number in self._places:
                part._parameters[name] = weights[number]
            yield self._module[0]
        finally:
            for (part, name, _), parameter in zip(self._places, own, strict=True):
                part._parameters[name] = parameter


def attach_weights(
    graph: onnx.GraphProto,
    inputs: Sequence[str],
    names: Sequence[str],
    weights: Sequence[Tensor],
    data: Path,
) -> None:
    """Turn the graph's inputs into initializers, with their data in the file `data`.

    A weight that the graph reads transposed, as in every linear layer, is written transposed. A
    weight that it does not read is left out.

    Args:
        inputs: the graph inputs to turn into initializers.
        names: the initializers' names.
        weights: their values.
    """
    weight_of_input = {
        given: (name, weight) for given, name, weight in zip(inputs, names, weights, strict=True)
    }
    transposed = {}
    for node in [
        node
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weight_of_input
    ]:
        name, weight = weight_of_input[node.input[0]]
        axes = next(iter(node.attribute)).ints
        transposed[node.output[0]] = f"{name}.transposed", weight.permute(*axes)
        graph.node.remove(node)
    weight_of_input |= transposed
    used = {name for node in graph.node for name in node.input} & weight_of_input.keys()
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in used:
                node.input[position] = weight_of_input[name][0]
    remaining = [value for value in graph.input if value.name not in weight_of_input]
    del graph.input[:]
    graph.input.extend(remaining)
    with WeightFile(data) as file:
        for name, weight in (weight_of_input[name] for name in weight_of_input if name in used):
            graph.initializer.append(file.add(name, weight.contiguous().numpy()))
