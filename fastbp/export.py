"""Networks for others: to and from scikit-learn's MLP and the state dict of a PyTorch module, and to ONNX and C.

fastbp and scikit-learn keep the weights of a layer as (inputs, outputs), PyTorch as (outputs, inputs). What is handed
out are copies, and what is handed in is never written to.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbp import c_code, checkpoint, checks, onnx_graph
from fastbp.choices import CLASSIFYING, LOSSES
from fastbp.network import Network
from fastbp.scalars import attribute, plain, shown

Array = NDArray[Any]

# What scikit-learn calls the activations and outputs that it has; each of its outputs comes with one loss.
SKLEARN_ACTIVATIONS = {"identity": "identity", "sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}
SKLEARN_OUTPUTS = {
    "squared_error": "identity",
    "poisson": "exp",
    "binary_cross_entropy": "logistic",
    "cross_entropy": "softmax",
}

C_NAME = re.compile(r"[A-Za-z](_?[A-Za-z0-9])*")  # two underscores, or one at an end, are reserved somewhere
C_KEYWORDS = (
    "alignas", "alignof", "auto", "bool", "break", "case", "char", "const", "constexpr", "continue", "default", "do",
    "double", "else", "enum", "extern", "false", "float", "for", "goto", "if", "inline", "int", "long", "nullptr",
    "register", "restrict", "return", "short", "signed", "sizeof", "static", "static_assert", "struct", "switch",
    "thread_local", "true", "typedef", "typeof", "typeof_unqual", "union", "unsigned", "void", "volatile", "while",
)  # fmt: skip
EXPORTED = (
    "a Network, a fitted MLPClassifier or MLPRegressor of fastbp.sklearn or scikit-learn, "
    "or a Pipeline of scikit-learn with a StandardScaler and one of these"
)

_TORCH_NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.(weight|bias)")


def to_sklearn(network: Network) -> Any:
    """Return a fitted estimator of scikit-learn that predicts what the network does.

    Parameters
    ----------
    network : Network
        With the loss "squared_error" and the output "identity", or "poisson" (scikit-learn 1.7), for a regressor; with
        "binary_cross_entropy" or "cross_entropy" for a classifier. Its hidden layers share one activation: "identity",
        "sigmoid", "tanh" or "relu".

    Returns
    -------
    sklearn.neural_network.MLPClassifier or MLPRegressor
        `coefs_[l]` is a copy of the weights (inputs, outputs), `intercepts_[l]` of the biases, zeros if the network has
        none. Classes are the numbers 0, 1, ... With one output `predict_proba` has two columns, of which the second is
        what the network predicts; with several outputs of "binary_cross_entropy" it has a column for each label.
        It predicts, scores and can be saved; `fit` starts from new weights.

    Raises
    ------
    ParameterError
        If scikit-learn has no such activation, output or loss, or the hidden activations differ.
    ParameterTypeError
        If `network` is not a Network.
    DataError
        If its parameters are not finite.
    ImportError
        If scikit-learn is not installed, or is too old for the loss.

    Examples
    --------
    >>> network = Network((2, 3, 1), activation="tanh", seed=0)
    >>> estimator = to_sklearn(network)
    >>> estimator
    MLPRegressor(activation='tanh', hidden_layer_sizes=(3,))
    >>> X = [[0.5, -1.0], [2.0, 0.0]]
    >>> bool(np.allclose(estimator.predict(X), network.predict(X)[:, 0]))
    True
    """
    checks.instance("network", network, Network)
    checks.parameters(network.params, network.sizes, network.bias)
    classifier, regressor = _estimators("to_sklearn")
    settings = _settings(network)
    outputs = network.sizes[-1]
    if network.loss in CLASSIFYING:
        estimator = classifier(**settings)
        estimator._label_binarizer = binarizer = _label_binarizer(network.loss, outputs)
        estimator.classes_ = binarizer.classes_
    elif network.loss == "squared_error":
        estimator = regressor(**settings)
    elif "loss" in regressor().get_params():
        estimator = regressor(loss=network.loss, **settings)
    else:
        raise ImportError(f"the loss {network.loss!r} needs scikit-learn >= 1.7")
    estimator.n_features_in_, estimator.n_outputs_, estimator.n_layers_ = network.sizes[0], outputs, len(network.sizes)
    estimator.out_activation_ = SKLEARN_OUTPUTS[network.loss]
    estimator.coefs_ = [weights.copy() for weights in network.weights]
    estimator.intercepts_ = _biases(network)
    return estimator


def from_sklearn(estimator: Any) -> Network:
    """Return the network that a fitted estimator of scikit-learn is, or a copy of the one that ours has.

    Parameters
    ----------
    estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
        After `fit`; or one of `fastbp.sklearn`, whose `network_` is copied.

    Returns
    -------
    Network
        With copies of `coefs_` and `intercepts_`, in their precision. The loss is "cross_entropy" for a classifier of
        several classes, "binary_cross_entropy" for two or for several labels a row, and for a regressor its own. The
        network numbers classes: output k is the class `estimator.classes_[k]`; of two, its one output is the
        probability of `estimator.classes_[1]`.

    Raises
    ------
    ParameterError
        If the estimator is not fitted, or has an activation that scikit-learn does not.
    ParameterTypeError
        If it is none of these.
    DataError
        If its coefficients are not finite or do not fit each other.
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> network = Network((2, 3, 4), loss="cross_entropy", seed=0)
    >>> from_sklearn(to_sklearn(network))
    Network((2, 3, 4), ('relu', 'softmax'), 'cross_entropy', float64)
    """
    network = getattr(estimator, "network_", None)
    if isinstance(network, Network):
        checks.parameters(network.params, network.sizes, network.bias)
        return network.copy()
    if not isinstance(estimator, _estimators("from_sklearn")):
        kind = type(estimator)
        raise checks.ParameterTypeError(
            f"must be scikit-learn's MLPClassifier or MLPRegressor, or a fitted one of fastbp.sklearn, "
            f"got {kind.__module__}.{kind.__qualname__}",
            "estimator",
        )
    if not hasattr(estimator, "coefs_"):
        raise checks.ParameterError("must be fitted, got one without 'coefs_'", "estimator")
    names = {theirs: ours for ours, theirs in SKLEARN_ACTIVATIONS.items()}
    losses = {output: loss for loss, output in SKLEARN_OUTPUTS.items()}
    activation = names[checks.choice("estimator.activation", estimator.activation, names)]
    loss = losses[checks.choice("estimator.out_activation_", estimator.out_activation_, losses)]
    weights = [checks.layer(f"coefs_[{i}]", values, 2) for i, values in enumerate(estimator.coefs_)]
    biases = [checks.layer(f"intercepts_[{i}]", values, 1) for i, values in enumerate(estimator.intercepts_)]
    return _network(weights, biases, activation=activation, loss=loss)


def to_torch(network: Network) -> dict[str, Array]:
    """Return the parameters as PyTorch names and lays them out, as arrays of NumPy.

    They are the state dict of ``torch.nn.Sequential(Linear, activation, Linear, ..., Linear)``, with the activation as
    a module between any two layers, "identity" too. An activation after the last layer has no parameters.

    Parameters
    ----------
    network : Network
        Of any activations and loss.

    Returns
    -------
    dict of str to ndarray
        "0.weight" (outputs, inputs) and "0.bias" (outputs,) of the first layer, "2.weight" and "2.bias" of the second,
        and so on: copies, in the network's precision. No biases if the network has none, as with
        ``Linear(..., bias=False)``.

    Raises
    ------
    ParameterTypeError
        If `network` is not a Network.
    DataError
        If its parameters are not finite.

    Notes
    -----
    PyTorch loads tensors::

        module.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(network).items()})

    fastbp's "gelu" is ``torch.nn.GELU()`` and "leaky_relu" ``torch.nn.LeakyReLU()``, with their defaults.

    Examples
    --------
    >>> {name: array.shape for name, array in to_torch(Network((2, 3, 1))).items()}
    {'0.weight': (3, 2), '0.bias': (3,), '2.weight': (1, 3), '2.bias': (1,)}
    """
    checks.instance("network", network, Network)
    checks.parameters(network.params, network.sizes, network.bias)
    state = {}
    for layer, (weights, biases) in enumerate(zip(network.weights, network.biases, strict=True)):
        state[f"{2 * layer}.weight"] = weights.T.copy()  # not ascontiguousarray: of one column it makes a view
        if network.bias:
            state[f"{2 * layer}.bias"] = biases.copy()
    return state


def from_torch(
    state_dict: Mapping[str, Any],
    *,
    activation: str | Sequence[str] = "relu",
    output: str | None = None,
    loss: str = "squared_error",
) -> Network:
    """Return a network with the parameters of a ``torch.nn.Sequential`` of linear layers.

    Parameters
    ----------
    state_dict : mapping of str to tensor or array_like
        What `state_dict()` of the module returns: "<number>.weight" (outputs, inputs) and "<number>.bias" (outputs,) of
        each linear layer, in the order of the numbers, whatever modules without parameters lie between. Missing biases
        are zeros, or none at all if all are missing.
    activation : str or sequence of str, default "relu"
        Activation of the hidden layers, one name or one for each, which a state dict does not tell.
    output : str, optional
        Activation of the last layer; by default the natural partner of the loss. Where the module returns logits, the
        network predicts probabilities.
    loss : str, default "squared_error"
        One of the losses of `Network`.

    Returns
    -------
    Network
        Of float64 if a layer is, or has whole numbers, else of float32.

    Raises
    ------
    ParameterError
        If the mapping has other names or no layer, or a setting is unknown.
    ParameterTypeError
        If an argument has the wrong type.
    DataError
        If a value is not an array of finite numbers, or layers do not fit each other.

    Examples
    --------
    >>> network = from_torch({"0.weight": [[1.0, 2.0]], "0.bias": [0.5]})
    >>> network.params
    array([1. , 2. , 0.5])
    """
    if not isinstance(state_dict, Mapping):
        raise checks.ParameterTypeError(f"must be a mapping, got {type(state_dict).__name__}", "state_dict")
    layers: dict[int, dict[str, Array]] = {}
    for name, value in state_dict.items():
        match = _TORCH_NAME.fullmatch(name) if isinstance(name, str) else None
        if not match:
            raise checks.ParameterError(f"must have names such as '0.weight', '0.bias', got {name!r:.80}", "state_dict")
        values = value.detach().cpu() if hasattr(value, "detach") else value
        array = checks.layer(f"state_dict[{name}]", values, 2 if match[2] == "weight" else 1)
        layers.setdefault(int(match[1]), {})[match[2]] = array
    for number, layer in layers.items():
        if "weight" not in layer:
            raise checks.ParameterError(f"must have '{number}.weight' beside '{number}.bias'", "state_dict")
    ordered = [layer for _, layer in sorted(layers.items())]
    weights = [layer["weight"].T for layer in ordered]
    biases = [layer.get("bias", np.zeros(len(layer["weight"]), layer["weight"].dtype)) for layer in ordered]
    bias = any("bias" in layer for layer in ordered)
    return _network(weights, biases, bias=bias, activation=activation, output=output, loss=loss)


def to_onnx(
    network: Any,
    path: str | os.PathLike[str],
    *,
    classes: Sequence[Any] | None = None,
    scaler: Any = None,
) -> None:
    """Write a model of ONNX that predicts what the network does: opset 17, IR 8, plain tensors, any number of rows.

    Its input is "X" (rows, inputs), in the precision of the network. A network for numbers has the output
    "predictions" (rows, outputs). One for classes has "label" (rows,) and "probabilities" (rows, classes); with several
    outputs of "binary_cross_entropy" both have a column for each output, and a label is 0 or 1.

    Parameters
    ----------
    network : Network, estimator or Pipeline
        With an estimator, fitted, of `fastbp.sklearn` or scikit-learn's MLP, its classes become the labels. A Pipeline
        of scikit-learn may have a StandardScaler before it.
    path : str or os.PathLike
        Exactly the name of the file; written as `Network.save` writes.
    classes : sequence of int or str, optional
        The labels, one for each class; by default those of the estimator, or 0, 1, ...
    scaler : StandardScaler or pair (mean, scale) of array_like, optional
        What inputs pass first: ``(X - mean) / scale``, each of shape (inputs,), computed in the precision of the
        network.

    Raises
    ------
    ParameterError
        If `classes` are not one label for each class, or given where the network has none, if `scaler` is not fitted,
        or given with a Pipeline that has one, if the network has the loss "cross_entropy" and one output, or
        parameters of 2 GiB, which no such file can hold, or if `path` contains the character NUL.
    ParameterTypeError
        If an argument has the wrong type.
    DataError
        If parameters are not finite, or mean and scale do not fit the inputs or the precision, or a scale is not above
        0.
    ImportError
        If onnx is not installed.
    OSError
        If the file cannot be written; the old one is untouched then.

    Examples
    --------
    >>> to_onnx(Network((2, 3, 3), loss="cross_entropy", seed=0), "network.onnx", classes=["red", "green", "blue"])
    >>> import onnx
    >>> [output.name for output in onnx.load("network.onnx").graph.output]
    ['label', 'probabilities']
    """
    ready, scaling, labels = _exported(network, None, scaler, classes)
    try:
        importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError('to_onnx needs onnx: pip install "fastbp[onnx]"') from error
    checkpoint.replace(path, onnx_graph.model(ready, scaling, labels))


def to_c(
    network: Any,
    path: str | os.PathLike[str],
    *,
    name: str,
    dtype: Any = None,
    scaler: Any = None,
    classes: Sequence[Any] | None = None,
) -> None:
    """Write one file of C99 that predicts what the network does, for a row at a time, without allocating memory.

    With the name "iris" it defines ``iris_predict(x, y, scratch)``, which writes what `Network.predict` returns, and
    the macros ``IRIS_INPUTS``, ``IRIS_OUTPUTS`` and ``IRIS_SCRATCH``, the number of numbers that the caller lends it.
    For classes it also has ``iris_probabilities(x, p, scratch)``, ``iris_class(x, scratch)``, which returns the number
    of the likeliest, ``IRIS_CLASSES`` and, if they have labels, the array ``iris_classes`` of them; where a row has
    several labels ``iris_labels(x, labels, scratch)`` writes a 0 or 1 for each. The comment at its beginning tells
    this, and what it takes of memory and time; compiled with ``-DIRIS_SELFTEST`` it is a program that checks itself.

    Parameters
    ----------
    network : Network, estimator or Pipeline
        As for `to_onnx`.
    path : str or os.PathLike
        Exactly the name of the file; written as `Network.save` writes.
    name : str
        What all its names begin with: an identifier of C in ASCII, no keyword, without an underscore at an end or two
        in a row.
    dtype : {"float64", "float32"}, optional
        Precision of numbers and arithmetic; by default that of the network. Parameters are rounded to it.
    scaler, classes
        As for `to_onnx`.

    Raises
    ------
    ParameterError, ParameterTypeError, OSError
        As `to_onnx` does, or if `name` or `dtype` is none.
    DataError
        As `to_onnx` does, or if parameters overflow `dtype`, or predictions do, for inputs of 0 too.

    Notes
    -----
    Where the machine fuses multiply-adds, sums have the bits of `Network.predict`, and so has all that follows from
    them by "identity", "relu" and "leaky_relu". The other activations call the C library, and an output then agrees to
    4 units in the last place of the numbers that lead to it; so it does where products are rounded first. Subnormal
    numbers are kept, which `predict` on x86 counts as 0.

    Examples
    --------
    >>> to_c(Network((2, 3, 1), seed=0), "network.c", name="net")
    >>> with open("network.c") as file:
    ...     print(*[line for line in file if line.startswith("#define NET_S")])
    #define NET_SCRATCH 3
    <BLANKLINE>
    """
    chosen = None if dtype is None else checks.dtype(dtype)
    word = plain(name)
    if not isinstance(word, str):
        raise checks.ParameterTypeError(f"must be a str, got {shown(name)}", "name")
    if not C_NAME.fullmatch(word) or word in C_KEYWORDS:
        raise checks.ParameterError(
            "must be letters of ASCII, digits and single underscores between them, with a letter first, and no keyword "
            f"of C, got {shown(word)}",
            "name",
        )
    ready, scaling, labels = _exported(network, chosen, scaler, classes)
    checkpoint.replace(path, c_code.source(ready, word, scaling, labels).encode("ascii"))


def _estimators(function: str) -> tuple[Any, Any]:
    """Return scikit-learn's two classes."""
    try:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
    except ImportError as error:
        raise ImportError(f'{function} needs scikit-learn: pip install "fastbp[sklearn]"') from error
    return MLPClassifier, MLPRegressor


def _settings(network: Network) -> dict[str, Any]:
    """Return what scikit-learn's constructors take; refuse what its MLP cannot be."""
    *hidden, output = network.activations
    loss = checks.choice("network.loss", network.loss, SKLEARN_OUTPUTS, " for scikit-learn")
    natural = LOSSES[loss].outputs[0]
    checks.choice("network.activations[-1]", output, (natural,), f" for scikit-learn with the loss {loss!r}")
    for layer, name in enumerate(hidden):
        checks.choice(f"network.activations[{layer}]", name, SKLEARN_ACTIVATIONS, " for scikit-learn")
    if len(set(hidden)) > 1:
        names = ", ".join(map(repr, hidden))
        raise checks.ParameterError(f"must be one for all hidden layers, got {names}", "network.activations")
    if loss == "cross_entropy" and network.sizes[-1] < 2:
        raise checks.ParameterError("must end with at least 2 outputs for a classifier, got 1", "network.sizes")
    activation = SKLEARN_ACTIVATIONS[hidden[0]] if hidden else "relu"
    return {"hidden_layer_sizes": network.sizes[1:-1], "activation": activation}


def _label_binarizer(loss: str, outputs: int) -> Any:
    """Return what turns outputs into classes: 0 and 1, one of several, or a 0 or 1 for each label."""
    from sklearn.preprocessing import LabelBinarizer

    if loss == "binary_cross_entropy":
        return LabelBinarizer().fit(np.array([0, 1]) if outputs == 1 else np.eye(2, outputs, dtype=int))
    return LabelBinarizer().fit(np.arange(outputs))


def _biases(network: Network) -> list[Array]:
    """Return copies of the biases, zeros where there are none."""
    if network.bias:
        return [biases.copy() for biases in network.biases]
    return [np.zeros(outputs, network.params.dtype) for outputs in network.sizes[1:]]


def _network(weights: list[Array], biases: list[Array], *, bias: bool = True, **settings: Any) -> Network:
    """Return a network with copies of weights (inputs, outputs) and, if it has any, biases (outputs,)."""
    if not weights:
        raise checks.ParameterError("a network must have at least 1 layer of weights, got 0")
    sizes = (len(weights[0]), *(array.shape[1] for array in weights))
    shapes, lengths = [array.shape for array in weights], [len(vector) for vector in biases]
    if shapes != [*itertools.pairwise(sizes)] or lengths != [*sizes[1:]]:
        given = f"weights (inputs, outputs) {shapes} and biases {lengths}"
        raise checks.DataError(f"layers must have as many inputs as the one before has outputs, got {given}")
    network = Network(sizes, bias=bias, init="zeros", dtype=np.result_type(*weights, *biases), **settings)
    for ours, theirs in zip(network.weights, weights, strict=True):
        ours[:] = theirs
    if bias:
        for ours, theirs in zip(network.biases, biases, strict=True):
            ours[:] = theirs
    return network


def _exported(
    network: Any, dtype: np.dtype[Any] | None, scaler: Any, classes: Any
) -> tuple[Network, tuple[Array, Array] | None, list[Any] | None]:
    """Return network, mean and scale, and labels of what is to be exported, all checked and in one precision."""
    if not issubclass(type(network), Network):
        network, scaler, classes = _taken_apart(network, scaler, classes)
    checks.parameters(network.params, network.sizes, network.bias)
    if network.loss == "cross_entropy" and network.sizes[-1] < 2:
        raise checks.ParameterError("must end with at least 2 outputs for a classifier, got 1", "network.sizes")
    if dtype is not None and dtype != network.params.dtype:
        checks.finite("network.params", network.params, dtype)
        *hidden, output = network.activations
        settings = {"loss": network.loss, "huber_delta": network.huber_delta, "bias": network.bias}
        other = Network(network.sizes, activation=hidden, output=output, init="zeros", seed=0, dtype=dtype, **settings)
        with np.errstate(under="ignore"):
            other.params = network.params.astype(dtype)
        network = other
    scaling = None if scaler is None else _scaling(scaler, network.sizes[0], network.params.dtype)
    return network, scaling, None if classes is None else _labels(classes, network.loss, network.sizes[-1])


def _taken_apart(model: Any, scaler: Any, classes: Any) -> tuple[Network, Any, Any]:
    """Return the network of an estimator or a Pipeline, and what scales its inputs and which classes it has."""
    given = shown(model)
    try:
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:  # then it is none of its objects
        raise checks.ParameterTypeError(f"must be {EXPORTED}, got {given}", "network") from error
    if isinstance(model, Pipeline):
        steps = [step for _, step in model.steps]
        given = f"a Pipeline of {', '.join(type(step).__name__ for step in steps)}"
        if len(steps) == 2 and isinstance(steps[0], StandardScaler):
            if scaler is not None:
                raise checks.ParameterError("must be left out where the Pipeline has one", "scaler")
            scaler, model = steps
        elif len(steps) == 1:
            model = steps[0]
    ours = isinstance(attribute(model, "network_"), Network)
    if not ours and not (isinstance(model, _estimators("export")) and hasattr(model, "coefs_")):
        raise checks.ParameterTypeError(f"must be {EXPORTED}, got {given}", "network")
    network = from_sklearn(model)
    if classes is None and network.loss in CLASSIFYING and (network.sizes[-1] == 1 or network.loss == "cross_entropy"):
        classes = model.classes_
    return network, scaler, classes


def _scaling(scaler: Any, inputs: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return mean and scale (inputs,), given so or by a StandardScaler, which may leave out either."""
    pair = plain(scaler)
    if not isinstance(pair, (list, tuple)):
        if not all(hasattr(scaler, attribute) for attribute in ("with_mean", "with_std", "transform")):
            given = shown(scaler)
            raise checks.ParameterTypeError(f"must be a StandardScaler or a pair (mean, scale), got {given}", "scaler")
        if not hasattr(scaler, "scale_"):
            raise checks.ParameterError("must be fitted, got one without 'scale_'", "scaler")
        mean = scaler.mean_ if scaler.with_mean else np.zeros(scaler.n_features_in_)
        pair = mean, scaler.scale_ if scaler.with_std else np.ones(scaler.n_features_in_)
    if len(pair) != 2:
        raise checks.ParameterError(f"must be a pair (mean, scale), got {shown(scaler)}", "scaler")
    mean, scale = (checks.layer(f"scaler[{i}]", values, 1) for i, values in enumerate(pair))
    for i, values in enumerate((mean, scale)):
        if values.shape != (inputs,):
            raise checks.DataError(f"must have shape ({inputs},), got shape {values.shape}", f"scaler[{i}]")
    mean, scale = checks.finite("scaler[0]", mean, dtype), checks.finite("scaler[1]", scale, dtype)
    if not (scale >= np.finfo(dtype).tiny).all():
        raise checks.DataError(f"must be above 0, and normal numbers in {dtype}", "scaler[1]")
    return mean, scale


def _labels(classes: Any, loss: str, outputs: int) -> list[Any]:
    """Return the labels of the classes, all of them integers or all str."""
    if loss not in CLASSIFYING:
        raise checks.ParameterError(f"must be left out with the loss {loss!r}, which predicts numbers", "classes")
    if loss == "binary_cross_entropy" and outputs > 1:
        raise checks.ParameterError("must be left out where a row has several labels", "classes")
    given = plain(classes)
    if isinstance(given, (list, tuple, np.ndarray)):
        array = np.asarray(given, object)
        values = [value.item() if isinstance(value, np.generic) else value for value in array.ravel().tolist()]
    if not isinstance(given, (list, tuple, np.ndarray)) or array.ndim != 1:
        raise checks.ParameterTypeError(f"must be a sequence of labels, got {shown(classes)}", "classes")
    values = [int(value) if isinstance(value, bool) else plain(value) for value in values]
    if {type(value) for value in values} not in ({int}, {str}, set()):
        raise checks.ParameterTypeError("must be integers or strings, all of them alike", "classes")
    expected = max(outputs, 2)
    if len(values) != expected or len(set(values)) != expected:
        given = f"{len(values)}, of which {len(set(values))} differ"
        raise checks.ParameterError(f"must be {expected} different labels, got {given}", "classes")
    for value in values:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise checks.ParameterError("must be integers of 64 bits", "classes")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise checks.ParameterError("must not contain the character NUL or half a surrogate pair", "classes")
    return values
