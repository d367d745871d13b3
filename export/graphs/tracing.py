"""What both graphs need around torch's tracer: quiet, and weights that are not copied.

The TorchScript exporter copies every weight several times: into the graph, into its protobuf, into Optimum's reading and
writing of the file. So the trie graph is traced with its parameters as inputs (`ParametersAsInputs`), and the written graph,
which is small, gets them back as initializers whose data go straight from the checkpoint's tensors to the file beside it,
one at a time. Peak memory is then the checkpoint's, and no 2 GB limit holds.
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
    """torch warns of every Python value in transformers' code that tracing fixes; parity is what tells whether one matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", module="torch\\.onnx")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


class ParametersAsInputs(nn.Module):
    """A module around `module` that is called with the weights as a list among its arguments, and holds them while it runs.

    names, weights: of its parameters, tied ones once, in the order of the list.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [
            module
        ]  # in a list, so that it is no submodule: the tracer copies a module's parameters
        self.names = [name for name, _ in module.named_parameters()]
        self.weights = [parameter.detach() for _, parameter in module.named_parameters()]
        numbers = {
            id(parameter): number for number, (_, parameter) in enumerate(module.named_parameters())
        }
        # torch.func.functional_call does this, but refuses to while tracing.
        self._places = [
            (part, name, numbers[id(parameter)])
            for part in module.modules()
            for name, parameter in part.named_parameters(recurse=False)
        ]

    @contextmanager
    def holding(self, weights: Sequence[Tensor]) -> Iterator[Any]:
        """Within, the module has these weights in the place of its parameters."""
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
    """Turn the graph's inputs `inputs` into initializers called `names`, with the data of `weights` in the file `data`.

    A weight that the graph reads transposed, as every linear layer's, is written transposed. One that it does not read is
    left out.
    """
    wanted = {
        given: (name, weight) for given, name, weight in zip(inputs, names, weights, strict=True)
    }
    transposed = {}
    for node in [
        node for node in graph.node if node.op_type == "Transpose" and node.input[0] in wanted
    ]:
        name, weight = wanted[node.input[0]]
        axes = next(iter(node.attribute)).ints
        transposed[node.output[0]] = f"{name}.transposed", weight.permute(*axes)
        graph.node.remove(node)
    wanted |= transposed
    used = {name for node in graph.node for name in node.input} & wanted.keys()
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in used:
                node.input[position] = wanted[name][0]
    kept = [value for value in graph.input if value.name not in wanted]
    del graph.input[:]
    graph.input.extend(kept)
    with WeightFile(data) as file:
        for name, weight in (wanted[name] for name in wanted if name in used):
            graph.initializer.append(file.add(name, weight.contiguous().numpy()))
