"""A network as a graph of ONNX: plain tensors in the precision of the network, whatever the runtime.

Operators that runtimes have for float32 alone (Elu, Softplus; for float64 Erf) or whose attribute has that precision
(LeakyRelu) are written with others, by the formulas of `reference.py`; as there, nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbp import checks
from fastbp.choices import CLASSIFYING, LEAK
from fastbp.network import Network
from fastbp.version import __version__

Array = NDArray[Any]
Labels = list[int] | list[str]

OPSET, IR_VERSION = 17, 8
MOST_BYTES = 2**31 - 2**20  # of parameters: protobuf ends at 2 GiB
EXP_RANGE = {
    "float32": (-87.0, 88.0),
    "float64": (-708.0, 709.0),
}  # beyond it the kernels' exp has the value at its end


class Graph:
    """Nodes and constants as they are added; a tensor is known by its name."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str | float, output: str = "", **attributes: Any) -> str:
        """Add a node, and return its output; a number stands for a constant."""
        from onnx import helper

        names = [self.constant(value) if isinstance(value, float) else value for value in inputs]
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        """Add a constant: labels as they are, numbers in the precision of the graph."""
        from onnx import numpy_helper

        array = values if isinstance(values, np.ndarray) else np.array(values, self.dtype)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def rename(self, name: str, new: str) -> None:
        """Call the output of the last node otherwise."""
        assert [*self.nodes[-1].output] == [name]
        self.nodes[-1].output[0] = new


# --- activations ----------------------------------------------------------------------------------------------------


def _exp(graph: Graph, z: str) -> str:
    low, high = EXP_RANGE[graph.dtype.name]
    return graph.add("Exp", graph.add("Clip", z, low, high))


def _elu(graph: Graph, z: str) -> str:
    """exp(z) - 1 = tanh(z / 2) (exp(z) + 1), which cancels nothing."""
    below = graph.add("Min", z, 0.0)
    tanh = graph.add("Tanh", graph.add("Mul", below, 0.5))
    expm1 = graph.add("Mul", tanh, graph.add("Add", graph.add("Exp", below), 1.0))
    return graph.add("Where", graph.add("Less", z, 0.0), expm1, z)


def _erf(graph: Graph, x: str) -> str:
    """In float64 1 - exp(y) with y = log(erfc(|x|)) as a polynomial, as `simd.py` has it, by Horner's scheme."""
    if graph.dtype == np.float32:
        return graph.add("Erf", x)
    from fastbp.simd import _Float64

    size = graph.add("Neg", graph.add("Min", graph.add("Abs", x), _Float64.erf_saturates))
    *others, last = _Float64.erf_terms
    factor = graph.constant(last)
    for term in reversed(others):
        factor = graph.add("Add", graph.add("Mul", factor, size), term)
    y = graph.add("Add", graph.add("Mul", factor, size), size)
    return graph.add("Mul", graph.add("Sign", x), graph.add("Sub", 1.0, graph.add("Exp", y)))


def _gelu(graph: Graph, z: str) -> str:
    erf = _erf(graph, graph.add("Mul", z, float(np.sqrt(0.5))))
    return graph.add("Mul", z, graph.add("Add", graph.add("Mul", erf, 0.5), 0.5))


def _silu(graph: Graph, z: str) -> str:
    """Not the product with Sigmoid, of which onnxruntime 1.20 made an operator that it has for float32 alone."""
    return graph.add("Div", z, graph.add("Add", _exp(graph, graph.add("Neg", z)), 1.0))


def _softplus(graph: Graph, z: str) -> str:
    e = graph.add("Exp", graph.add("Neg", graph.add("Abs", z)))
    return graph.add("Add", graph.add("Relu", z), graph.add("Log", graph.add("Add", e, 1.0)))


FORMS: dict[str, Callable[[Graph, str], str]] = {
    "identity": lambda graph, z: z,
    "sigmoid": lambda graph, z: graph.add("Sigmoid", z),
    "tanh": lambda graph, z: graph.add("Tanh", z),
    "relu": lambda graph, z: graph.add("Relu", z),
    "leaky_relu": lambda graph, z: graph.add("Max", z, graph.add("Mul", z, LEAK)),
    "softmax": lambda graph, z: graph.add("Softmax", z, axis=-1),
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "softplus": _softplus,
    "exponential": _exp,
}


# --- the model ------------------------------------------------------------------------------------------------------


def model(network: Network, scaler: tuple[Array, Array] | None, labels: Labels | None) -> bytes:
    """Return the file: input "X"; output "predictions", or of a classifier "label" and "probabilities"."""
    from onnx import TensorProto, helper

    dtype, inputs, outputs = network.params.dtype, network.sizes[0], network.sizes[-1]
    for layer, name in enumerate(network.activations):
        checks.choice(f"network.activations[{layer}]", name, FORMS, " for ONNX")
    if network.params.nbytes > MOST_BYTES:
        given = f"{network.params.nbytes:,} bytes"
        raise checks.ParameterError(
            f"must have parameters of at most {MOST_BYTES:,} bytes for ONNX, got {given}", "network"
        )
    graph, a = Graph(dtype), "X"
    if scaler is not None:
        mean, scale = scaler
        a = graph.add("Div", graph.add("Sub", a, graph.constant(mean)), graph.constant(scale))
    for weights, biases, name in zip(network.weights, network.biases, network.activations, strict=True):
        constants = [graph.constant(values) for values in (weights, biases) if values.size]
        a = FORMS[name](graph, graph.add("Gemm", a, *constants))
    number = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
    if network.loss not in CLASSIFYING:
        graph.rename(a, "predictions")
        results = [helper.make_tensor_value_info("predictions", number, ["rows", outputs])]
    else:
        several = network.loss == "binary_cross_entropy" and outputs > 1
        if outputs > 1:
            graph.rename(a, "probabilities")
        else:
            graph.add("Concat", graph.add("Sub", 1.0, a), a, axis=1, output="probabilities")
        kind = _add_label(graph, several, labels)
        shape: list[str | int] = ["rows", outputs] if several else ["rows"]
        results = [
            helper.make_tensor_value_info("label", kind, shape),
            helper.make_tensor_value_info("probabilities", number, ["rows", max(outputs, 2)]),
        ]
    rows = helper.make_tensor_value_info("X", number, ["rows", inputs])
    whole = helper.make_model(
        helper.make_graph(graph.nodes, "fastbp", [rows], results, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastbp",
        producer_version=__version__,
    )
    content: bytes = whole.SerializeToString(deterministic=True)
    return content


def _add_label(graph: Graph, several: bool, labels: Labels | None) -> int:
    """Add "label": a 0 or 1 for each output, or the number or the name of the likeliest class; return its type."""
    from onnx import TensorProto

    if several:
        graph.add("Cast", graph.add("Greater", "probabilities", 0.5), to=TensorProto.INT64, output="label")
        return TensorProto.INT64
    if labels is None:
        graph.add("ArgMax", "probabilities", axis=-1, keepdims=0, output="label")
        return TensorProto.INT64
    number = graph.add("ArgMax", "probabilities", axis=-1, keepdims=0)
    of_strings = isinstance(labels[0], str)
    names = graph.constant(np.array(labels, object if of_strings else np.int64))
    graph.add("Gather", names, number, axis=0, output="label")
    return TensorProto.STRING if of_strings else TensorProto.INT64
