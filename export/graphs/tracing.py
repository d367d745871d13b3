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
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from kwise.export.graph_file import add_weight


@contextmanager
def without_tracer_warnings() -> Iterator[None]:
    """Silence the tracer's warnings.

    torch warns about every Python value in transformers' code that tracing turns into a constant.
    The check of parity shows whether one of them matters. If torch cannot export an operator, it
    prints the whole graph, thousands of lines.
    """
    torch._C._jit_set_onnx_log_enabled(False)
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
    graph: ir.Graph, inputs: Sequence[str], names: Sequence[str], weights: Sequence[Tensor]
) -> None:
    """Turn the graph's inputs into initializers.

    A weight that the graph reads transposed, as in every linear layer, becomes a transposed
    initializer, which is copied when the graph is written. A weight that the graph does not read is
    left out.

    Args:
        inputs: the graph inputs to turn into initializers.
        names: the initializers' names.
        weights: their values.
    """
    values = {value.name: value for value in graph.inputs}
    for input_name, name, weight in zip(inputs, names, weights, strict=True):
        value = values[input_name]
        transposes = [node for node in value.consumers() if node.op_type == "Transpose"]
        if transposes:
            transposed = add_weight(graph, f"{name}.transposed", ir.tensor(weight.T))
            for node in transposes:
                node.outputs[0].replace_all_uses_with(transposed)
                graph.remove(node, safe=True)
        if value.uses():
            value.replace_all_uses_with(add_weight(graph, name, ir.tensor(weight)))
        graph.inputs.remove(value)
