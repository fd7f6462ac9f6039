"""Every check of an argument, made once, at the door.

A check returns its argument in the one form the rest of the package works with, or raises. Messages name the argument,
the requirement and what was given. They show settings, but never data: of an array they say its type, shape, dtype, the
number of bad values and the index of the first.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp import choices

# Named `as` themselves, so that the rest of the package may take them from here: mypy counts other imports as private.
from fastbp.errors import CheckpointError as CheckpointError
from fastbp.errors import DataError as DataError
from fastbp.errors import DivergenceError as DivergenceError
from fastbp.errors import FastbpError as FastbpError
from fastbp.errors import ParameterError as ParameterError
from fastbp.errors import ParameterTypeError as ParameterTypeError
from fastbp.errors import ResourceError as ResourceError
from fastbp.scalars import attribute, plain, shown
from fastbp.scalars import count as count
from fastbp.scalars import flag as flag
from fastbp.scalars import number as number
from fastbp.workspace import SUM_ERROR, starts_of

Array = npt.NDArray[Any]

_MOST_LAYERS = 1000
_MOST_CLASSES = 2**16
_BYTES_PER_GIB = 2**30
_PIECE = 2**18  # values converted and looked at in one go, half a millisecond: what Ctrl-C may have to wait for


def choice(name: str, value: object, allowed: Collection[str], condition: str = "") -> str:
    """Return `value` if it is one of the allowed names; `condition` is said after them when it is not.

    >>> choice("activation", "sigmiod", choices.ELEMENTWISE)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastbp.errors.ParameterError: 'activation' must be one of 'identity', ..., got 'sigmiod'; did you mean 'sigmoid'?
    """
    value = plain(value)
    if isinstance(value, str) and value in allowed:
        return value
    requirement = f"must be one of {', '.join(map(repr, allowed))}{condition}"
    if not isinstance(value, str):
        raise ParameterTypeError(f"{requirement}, got {shown(value)}", name)
    close = difflib.get_close_matches(value[:80].lower(), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ParameterError(f"{requirement}, got {shown(value)}{hint}", name)


def seed(value: object) -> int:
    """Return a seed that numpy.random.RandomState takes: 0..2**32-1, drawn from fresh entropy for None."""
    if value is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return count("seed", value, 0, 2**32 - 1)


def threads(value: object, name: str = "threads") -> int | None:
    """Return how many threads, None for "auto"."""
    if isinstance(value, str):
        choice(name, value, ("auto",), " or an integer >= 1")
        return None
    return count(name, value, 1, 1024, "must be 'auto' or an integer")


def hidden(value: object, name: str = "hidden") -> tuple[int, ...]:
    """Return the widths of the hidden layers, given one or a list, tuple or 1-D integer array of at most 1000.

    >>> hidden(64), hidden([64, 32]), hidden(())
    ((64,), (64, 32), ())
    """
    value = plain(value)
    if isinstance(value, (int, np.integer)):
        return (count(name, value),)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ParameterTypeError(f"must be an integer >= 1 or a sequence of them, got {shown(value)}", name)
    if len(value) > _MOST_LAYERS:
        raise ParameterError(f"must have at most {_MOST_LAYERS} layers, got {shown(value)}", name)
    if all(type(width) is int and 0 < width < 2**31 for width in value):  # what names cost, a network waits for
        return tuple(value)
    return tuple(count(f"{name}[{i}]", width) for i, width in enumerate(value))


def sizes(value: object) -> tuple[int, ...]:
    """Units of each layer, inputs first: at least two counts."""
    units = hidden(value, "sizes")
    if len(units) < 2:
        raise ParameterError(f"must name at least inputs and outputs, got {len(units)} layer", "sizes")
    return units


def activations(value: object, hidden_layers: int) -> tuple[str, ...]:
    """Return the name of the activation of each hidden layer, given one for all or a list or tuple of one for each."""
    value = plain(value)
    if isinstance(value, str):
        return (choice("activation", value, choices.ELEMENTWISE),) * hidden_layers
    if not isinstance(value, (list, tuple)):
        raise ParameterTypeError(f"must be a name or a list or tuple of names, got {shown(value)}", "activation")
    if len(value) != hidden_layers:
        raise ParameterError(
            f"must be one name or one per hidden layer ({hidden_layers}), got {len(value)}", "activation"
        )
    return tuple(choice(f"activation[{i}]", name, choices.ELEMENTWISE) for i, name in enumerate(value))


def output(value: object, loss: str) -> str:
    """Return the activation of the output layer; None stands for the natural partner of `loss`."""
    outputs = choices.LOSSES[loss].outputs
    return outputs[0] if value is None else choice("output", value, outputs, f" with the loss {loss!r}")


def quantiles(value: object, loss: str) -> tuple[float, ...]:
    """Return the levels of "quantile", given a list, tuple or 1-D array of them, none below the one before; else ().

    >>> quantiles([0.1, 0.9], "quantile"), quantiles([0.1, 0.9], "huber")
    ((0.1, 0.9), ())
    """
    value = plain(value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f":
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ParameterTypeError(f"must be a sequence of numbers above 0 and below 1, got {shown(value)}", "quantiles")
    levels = tuple(number(f"quantiles[{i}]", level, above=0, below=1) for i, level in enumerate(value))
    if not levels or list(levels) != sorted(levels):
        raise ParameterError(f"must be one number or more, none below the one before, got {shown(value)}", "quantiles")
    return levels if loss == "quantile" else ()


def outputs(units: tuple[int, ...], loss: str, levels: tuple[float, ...]) -> None:
    """Check that the last layer has the outputs that the loss needs."""
    if loss == "quantile" and units[-1] != len(levels):
        raise ParameterError(
            f"must end with {_plural(len(levels), 'output')}, one for each of the 'quantiles', got {units[-1]}", "sizes"
        )
    if loss == "gaussian_nll" and units[-1] % 2:
        raise ParameterError(
            f"must end with a mean and a log variance for each target with the loss 'gaussian_nll', got {units[-1]}",
            "sizes",
        )


def _settings(name: str, value: Any, table: dict[str, Any], **replaced: Any) -> Any:
    """Return checked settings, given a name of the table or an instance of one of its classes."""
    value = plain(value)
    if isinstance(value, str):
        return table[choice(name, value, table)](**replaced)
    # No subclasses: kernels read the fields, which a subclass could make disagree with what is checked here.
    if not any(type(value) is kind for kind in table.values()):
        names, kinds = ", ".join(map(repr, table)), ", ".join(kind.__name__ for kind in table.values())
        raise ParameterTypeError(f"must be one of {names} or an instance of {kinds}, got {shown(value)}", name)
    return dataclasses.replace(value, **replaced)  # which checks them: copies and pickles are made without


def optimizer(value: object, learning_rate: object = None) -> choices.Optimizer:
    """Return checked settings, given a name or an instance; `learning_rate` overrides theirs."""
    if type(value) is str and (learning_rate is None or type(learning_rate) is float):
        return _named_optimizer(value, learning_rate)
    replaced = {} if learning_rate is None else {"learning_rate": learning_rate}
    settings: choices.Optimizer = _settings("optimizer", value, choices.OPTIMIZERS, **replaced)
    return settings


@functools.lru_cache(maxsize=256)
def _named_optimizer(name: str, learning_rate: float | None) -> choices.Optimizer:
    replaced = {} if learning_rate is None else {"learning_rate": learning_rate}
    settings: choices.Optimizer = _settings("optimizer", name, choices.OPTIMIZERS, **replaced)
    return settings


def schedule(value: object, epochs: int) -> choices.Schedule:
    """Return a checked schedule, given a name or an instance; a CosineDecay without epochs gets these."""
    settings: choices.Schedule = _settings("schedule", value, choices.SCHEDULES)
    if isinstance(settings, choices.CosineDecay) and settings.epochs is None:
        return dataclasses.replace(settings, epochs=max(epochs, 1))
    return settings


def dropout(value: object, hidden_layers: int) -> tuple[float, ...]:
    """Return the rate of each hidden layer, given one for all or a list or tuple of one for each; () if all are 0.

    >>> dropout(0.5, 2), dropout([0.2, 0], 2), dropout(0.0, 2)
    ((0.5, 0.5), (0.2, 0.0), ())
    """
    value = plain(value)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * max(hidden_layers, 1)
    each = isinstance(value, (list, tuple))
    rates = tuple(number(f"dropout[{i}]" if each else "dropout", v, at_least=0, below=1) for i, v in enumerate(values))
    if (each or any(rates)) and len(rates) != hidden_layers:
        raise ParameterError(f"must be one rate or one per hidden layer ({hidden_layers}), got {len(rates)}", "dropout")
    return rates if any(rates) else ()


def representable(settings: choices.Optimizer | choices.Schedule, precision: np.dtype[Any]) -> None:
    """Refuse settings whose numbers are not `normal`."""
    normal(precision, **choices.values_of(settings))


def normal(precision: np.dtype[Any], **numbers: float) -> None:
    """Refuse numbers that overflow, or round to 0 or 1, in the precision of the arithmetic, or are subnormal there.

    >>> normal(np.dtype(np.float32), l2=1e-40)
    Traceback (most recent call last):
    fastbp.errors.ParameterError: 'l2' must be representable in float32, 0 or at least 1.18e-38 in size, got 1e-40
    """
    if all(value == 0 or 1e-30 < value < 0.999 or 1 <= value < 1e30 for value in numbers.values()):
        return  # far from all that may happen: to round as NumPy does takes 3 us
    smallest = float(np.finfo(precision).tiny)
    with np.errstate(over="ignore", under="ignore"):
        rounded = [float(precision.type(value)) for value in numbers.values()]
    for (name, value), near in zip(numbers.items(), rounded, strict=True):
        if (value > 0) != (near >= smallest) or (value < 1) != (near < 1) or not math.isfinite(near):
            needed = f"{precision}, 0 or at least {smallest:.3g} in size" if value < 1 else f"{precision}"
            raise ParameterError(f"must be representable in {needed}, got {value!r}", name)


def dtype(value: object, X: object = None) -> np.dtype[Any]:
    """Return float32 or float64; None stands for float32 if X is float32 or float16, else for float64."""
    if value is None:
        given = attribute(X, "dtype")
        return np.dtype(np.float32 if isinstance(given, np.dtype) and given.type in (np.float32, np.float16) else float)
    value = plain(value)
    if isinstance(value, str):
        return np.dtype(choice("dtype", value, ("float32", "float64")))
    scalar = value.type if isinstance(value, np.dtype) else value
    # Compared, not passed to np.dtype(), which takes nonsense for object and warns about abstract types.
    for working in (np.float32, np.float64):
        if scalar is working or (scalar is float and working is np.float64):
            return np.dtype(working)
    error = ParameterError if isinstance(value, (type, np.dtype)) else ParameterTypeError
    raise error(f"must be one of 'float32', 'float64', got {shown(value)}", "dtype")


def parameters(params: Array, units: tuple[int, ...], bias: bool, *, writeable: bool = False) -> None:
    """Check the vector of parameters of a network, or of a file: its form, and that all are finite."""
    size = starts_of(units, bias)[-1]
    good = isinstance(params, np.ndarray) and params.dtype.type in (np.float32, np.float64) and params.dtype.isnative
    if not good or params.shape != (size,) or not params.flags.c_contiguous or params.flags.writeable < writeable:
        kind = "a writeable float array" if writeable else "a float array"
        raise DataError(f"must be {kind} of shape ({size},), got {shown(params)}", "network.params")
    finite("network.params", params, params.dtype)


def replacement(value: object, params: Array) -> Array:
    """Return what shall be copied over the vector of parameters, given an array of its form; values may be any."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise DataError(f"must be an ndarray without a mask, got {shown(value)}", "network.params")
    array = np.asarray(value)  # without the methods of a subclass
    if array.dtype != params.dtype or array.shape != params.shape or not array.flags.c_contiguous:
        required = f"a contiguous {params.dtype} array of shape {params.shape}"
        raise DataError(f"must be {required}, got {shown(value)}", "network.params")
    return array


def layer(name: str, value: object, dimensions: int) -> Array:
    """Return weights or biases that another library made as a finite array of float32 or float64.

    >>> layer("0.bias", [1, 2], 1)
    array([1., 2.])
    """
    array = _array(name, value, np.dtype(float))
    if array.ndim != dimensions:
        raise DataError(f"must be {dimensions}-D, got shape {array.shape}", name)
    return finite(name, array, dtype(None, array))


def instance(name: str, value: object, kind: type) -> None:
    """Check that the value is of this class."""
    if not issubclass(type(value), kind):  # not isinstance(), which believes what a mock says of its class
        raise ParameterTypeError(f"must be a {kind.__name__}, got {shown(value)}", name)


def alone(**settings: tuple[object, object]) -> None:
    """Refuse settings, given with their defaults, that a ready network brings with it."""
    for name, (value, default) in settings.items():
        bare = plain(value)
        bare = bare.item() if isinstance(bare, np.generic) else bare
        # Only plain values are compared: what a Series, a tensor or pd.NA answers has no truth.
        if value is not default and (type(bare) not in (str, bool, int, float, tuple) or bare != default):
            raise ParameterError("must be left out where 'network' is given, which brings its own", name)


def path(value: object) -> str:
    """Return the path of a file, given as a str or os.PathLike; a number would be taken for an open file."""
    value = plain(value)
    if not isinstance(value, (str, os.PathLike)):
        raise ParameterTypeError(f"must be a str or os.PathLike, got {shown(value)}", "path")
    try:
        name = os.fsdecode(value)
        encoded = os.fsencode(name)
    except UnicodeError as error:
        raise ParameterError("must hold only characters that names of files can have here", "path") from error
    except Exception as error:  # whatever a foreign __fspath__ raises
        raise ParameterTypeError(f"must have a name as str or bytes, got {shown(value)}", "path") from error
    if b"\0" in encoded:
        raise ParameterError("must not contain the character NUL", "path")
    return name


def features(
    X: object, dtype: np.dtype[Any], inputs: int | None = None, minimum_rows: int = 1, name: str = "X"
) -> Array:
    """Return X as a finite (rows, columns) array in the working dtype: C order, aligned, writeable, native.

    It is X itself if X is all that already, so nobody may write to it. `inputs` is what an existing network expects.

    >>> features([[0, 1], [1, 1]], np.dtype(np.float64))
    array([[0., 1.],
           [1., 1.]])
    """
    return finite(name, _rows(X, dtype, inputs, minimum_rows, name), dtype)


def features_to_predict(X: object, dtype: np.dtype[Any], inputs: int) -> Array:
    """`features` of no rows or more; if it is X itself, whoever reads it has to find out whether it is finite."""
    array = _rows(X, dtype, inputs, 0, "X")
    return array if _ready(array, dtype) else finite("X", array, dtype)


def _rows(X: object, dtype: np.dtype[Any], inputs: int | None, minimum_rows: int, name: str) -> Array:
    """Return X as an array of numbers (rows, columns), dtype and layout as they are."""
    array = _array(name, X, dtype)
    if array.ndim != 2:
        hint = f"; {name}.reshape(-1, 1) makes a column of it" if array.ndim == 1 else ""
        raise DataError(f"must be 2-D (rows, columns), got shape {array.shape}{hint}", name)
    rows, columns = array.shape
    if rows < minimum_rows:
        raise DataError(f"must have at least {_plural(minimum_rows, 'row')}, got shape {array.shape}", name)
    if inputs is not None and columns != inputs:
        raise DataError(f"{name} has {_plural(columns, 'column')}, the network has {_plural(inputs, 'input')}")
    if columns < 1:
        raise DataError(f"must have at least 1 column, got shape {array.shape}", name)
    return array


def targets(
    y: object, loss: str, n: int, outputs: int | None, dtype: np.dtype[Any], name: str = "y", weights: Any = None
) -> Array:  # fmt: skip
    """Return y as an (n, outputs) array in the working dtype, laid out and shared as `features` does with X.

    squared_error, absolute_error and huber take finite numbers, poisson such as are not below 0, binary_cross_entropy
    0 and 1, all of them of shape (n,) or (n, outputs). cross_entropy takes class numbers 0..K-1 of shape (n,) or
    (n, 1), K being `outputs` or the largest number + 1, or probabilities of shape (n, K) whose rows sum to 1 within
    1e-5. quantile takes numbers of shape (n,), (n, 1) or (n, outputs), gaussian_nll of (n,) or (n, outputs / 2).
    `outputs` is None or what a network has. Where a weight of `weighted_targets` is 0, NaN is missing, and
    returned as 0; not with cross_entropy.

    >>> targets([1, 0, 2], "cross_entropy", 3, None, np.dtype(np.float64))
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 0., 1.]])
    """
    array = _array(name, y, dtype)
    if array.ndim not in (1, 2) or array.shape[1:] == (0,):
        raise DataError(f"must have shape (rows,) or (rows, outputs), got shape {array.shape}", name)
    if len(array) != n:
        X = "X" if name == "y" else "validation[0]"
        raise DataError(f"{X} has {_plural(n, 'row')}, {name} has {len(array)}")
    columns = 1 if array.ndim == 1 else array.shape[1]
    if loss == "cross_entropy" and columns == 1:
        return _one_hot(array.ravel(), outputs, dtype, name)
    if outputs is not None and columns not in _columns_of(loss, outputs):
        rest = {"quantile": ", which take 1 column, or 1 each", "gaussian_nll": ", which take half as many columns"}
        network = f"the network has {_plural(outputs, 'output')}{rest.get(loss, '')}"
        raise DataError(f"{name} has {_plural(columns, 'column')}, {network}")
    if weights is not None and loss != "cross_entropy":
        array = _without_missing(name, array, weights)
    if loss == "binary_cross_entropy":  # checked as given: 1 - 1e-9 is 1 in float32
        _every(name, (array == 0) | (array == 1), "be 0 or 1 with the loss 'binary_cross_entropy'")
    work = finite(name, array, dtype)
    if loss == "poisson":
        _every(name, work >= 0, "be >= 0 with the loss 'poisson'")
    if loss == "cross_entropy":
        _every(name, work >= 0, "hold class numbers of shape (rows,) or probabilities >= 0")
        with np.errstate(over="ignore"):
            sums = work.sum(axis=1, dtype=np.float64)
        _every(name, abs(sums - 1) <= SUM_ERROR, "hold class numbers of shape (rows,) or rows that sum to 1")
    return work if work.ndim == 2 else work[:, None]


def _columns_of(loss: str, outputs: int) -> tuple[int, ...]:
    """Return how many columns y may have for a network with so many outputs."""
    if loss == "quantile":
        return 1, outputs
    return (outputs // 2 if loss == "gaussian_nll" else outputs,)


def _without_missing(name: str, array: Array, weights: Array) -> Array:
    """Return targets with 0 in place of NaN where the weight is 0; refuse it elsewhere."""
    missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        return array
    none = weights.reshape(len(array), -1) == 0
    if none.shape[1] > 1 and array.size == len(array):  # one target of all quantiles is missing if it is for each
        none = none.all(axis=1, keepdims=True)
    good = ~missing.reshape(len(array), -1) | none
    _every(name, good.reshape(array.shape), "not be NaN where the weight is above 0")
    return np.where(missing, array.dtype.type(0), array)


def weighted_targets(
    y: object, weights: object, loss: str, n: int, outputs: int | None, dtype: np.dtype[Any],
    names: tuple[str, str] = ("y", "sample_weight"),
) -> tuple[Array, Array | None]:  # fmt: skip
    """Return `targets` and, unless they are None, their weights: (n,) for rows, or a column for each target.

    With the loss quantile and one target, the columns are those of the outputs. Rows of classes have one weight.
    """
    if weights is None:
        return targets(y, loss, n, outputs, dtype, names[0]), None
    array, given = _array(names[0], y, dtype), _array(names[1], weights, dtype)
    each = array.shape[1] if array.ndim == 2 else 1
    if loss == "cross_entropy":
        each = 1
    elif loss == "quantile" and outputs is not None:
        each = outputs
    if given.shape != (n,) and (each == 1 or given.shape != (n, each)):
        form = f"({n},), a number for each row" if each == 1 else f"({n},) or ({n}, {each}), for each row or target"
        raise DataError(f"must have shape {form}, got shape {given.shape}", names[1])
    given = _weights(names[1], given, dtype)
    return targets(array, loss, n, outputs, dtype, names[0], given), given


def row_weights(value: object, n: int, dtype: np.dtype[Any], name: str = "sample_weight") -> Array:
    """Return weights of rows as a finite array (n,) in the working dtype, none below 0 and one above."""
    array = _array(name, value, dtype)
    if array.shape != (n,):
        raise DataError(f"must have shape ({n},), a number for each row, got shape {array.shape}", name)
    return _weights(name, array, dtype)


def _weights(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    weights = finite(name, array, dtype)
    _every(name, weights >= 0, "be >= 0")
    smallest = np.finfo(dtype).tiny  # kernels take less for 0
    _every(name, (weights == 0) | (weights >= smallest), f"be 0 or at least {smallest:.3g} in {dtype}")
    if not weights.any():
        raise DataError(f"must have a value above 0, got {_plural(weights.size, 'zero')}", name)
    return weights


def class_weight(value: object) -> str | dict[int, float] | None:
    """Return None, "balanced" or a dict of class numbers and weights."""
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, dict):
        must = "must be a dict whose keys are integers"
        keys = [count("class_weight", key, 0, _MOST_CLASSES, must) for key in value]
        weights = zip(keys, value.values(), strict=True)
        return {key: number(f"class_weight[{key}]", weight, at_least=0) for key, weight in weights}
    if not isinstance(value, str):
        raise ParameterTypeError(f"must be 'balanced' or a dict, got {shown(value)}", "class_weight")
    return choice("class_weight", value, ("balanced",), " or a dict of class numbers and weights")


def class_weights(value: str | dict[int, float], loss: str, y: Array, weights: Array | None) -> Array:
    """Return weights of rows: of their classes, times `weights`; "balanced" gives all classes the same sum."""
    if loss not in choices.CLASSIFYING or (loss == "binary_cross_entropy" and y.shape[1] > 1):
        raise ParameterError("must be left out where a row does not belong to one class", "class_weight")
    if loss == "cross_entropy":
        _every("y", y.max(axis=1) == 1, "hold class numbers where 'class_weight' is given")
    classes = y.argmax(axis=1) if loss == "cross_entropy" else y[:, 0].astype(np.intp)
    number_of_classes = max(y.shape[1], 2)
    rows = np.ones(len(y)) if weights is None else weights.astype(np.float64)
    factors = np.ones(number_of_classes)
    if isinstance(value, dict):
        for key, factor in value.items():
            if key >= number_of_classes:
                raise ParameterError(f"must name classes in 0..{number_of_classes - 1}, got {key}", "class_weight")
            factors[key] = factor
    else:
        sums = np.bincount(classes, rows, number_of_classes)
        factors[sums > 0] = rows.sum() / (np.count_nonzero(sums) * sums[sums > 0])
    return row_weights(rows * factors[classes], len(y), y.dtype, "class_weight")


def validation(value: object) -> float | None:
    """Return the share of rows for validation, or None if there is none or `value` is a tuple of data."""
    value = plain(value)
    if value is None or (isinstance(value, tuple) and len(value) in (2, 3)):
        return None
    if isinstance(value, (tuple, list, np.ndarray)):
        raise ParameterTypeError(
            f"must be a share of the rows or a tuple (X, y) or (X, y, sample_weight), got {shown(value)}", "validation"
        )
    return number("validation", value, above=0, below=1)


def memory(bytes_needed: int, what: str) -> None:
    """Raise ResourceError if `what` needs more than the physical memory; swap is no place to train."""
    limit = _physical_memory()
    if bytes_needed > limit:
        needed, present = bytes_needed / _BYTES_PER_GIB, limit / _BYTES_PER_GIB
        raise ResourceError(f"{what} needs {needed:,.1f} GiB of memory, this machine has {present:,.1f} GiB")


def memory_of_many(fixed: int, each: int, count: int) -> None:
    """Raise ResourceError if many networks, with what they share, need more than the physical memory."""
    limit = _physical_memory()
    if fixed + each * count > limit:
        needed, present = (fixed + each * count) / _BYTES_PER_GIB, limit / _BYTES_PER_GIB
        raise ResourceError(
            f"{_plural(count, 'network')} of these shapes and epochs need {needed:,.1f} GiB of memory, this machine "
            f"has {present:,.1f} GiB: {max(0, (limit - fixed) // max(each, 1)):,} would fit"
        )


def row_numbers(name: str, value: object, n: int) -> Array:
    """Return numbers of rows, of which there are n."""
    array = _array(name, value, np.dtype(np.int64))
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise DataError(f"must be integers of shape (rows,), at least one, got {array.dtype} {array.shape}", name)
    if array.min() < 0 or array.max() >= n:
        raise DataError(f"must be numbers of rows, 0 to {n - 1}", name)
    return array.astype(np.int64)


def _array(name: str, value: object, dtype: np.dtype[Any]) -> Array:
    """Return `value` as an array of real numbers, dtype and layout as they are; refuse what NumPy would guess at."""
    if type(value) is not np.ndarray and not issubclass(type(value), np.generic):  # a scalar of NumPy is an array
        value = plain(value)
    if attribute(value, "toarray") is not None:
        raise ParameterTypeError(f"must be dense, got {shown(value)}; convert it with .toarray()", name)
    listed = isinstance(value, (list, tuple))
    if isinstance(value, np.matrix) or not (listed or attribute(value, "__array__") is not None):
        raise ParameterTypeError(f"must be an array or a list of numbers, got {shown(value)}", name)
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists; whatever a foreign __array__ raises
        # Errors of type or state say what is wrong with the object; one of value may show data.
        said = f": {str(error)[:120]}" if type(error) in (TypeError, RuntimeError) and not listed else ""
        shape = " with rows of equal length" * listed
        raise DataError(f"must convert to an array{shape}, got {shown(value)}{said}", name) from error
    if array.dtype.kind not in "biuf":
        hint = "; convert with .astype(float)" if array.dtype.kind in "OSTU" else ""
        if hint and name in ("y", "validation[1]"):
            hint += ", or number class names with np.unique(y, return_inverse=True)[1]"
        raise DataError(f"must hold real numbers, got dtype {str(array.dtype)[:80]}{hint}", name)
    # np.asarray drops masks, and those of the rows of a list as well
    if isinstance(value, np.ma.MaskedArray):
        _every(name, ~np.ma.getmaskarray(value), "have no masked values")
    elif isinstance(value, (list, tuple)):
        _every(name, np.array([not np.ma.is_masked(row) for row in value]), "have no rows with masked values")
    if not _ready(array, dtype):
        memory(array.size * dtype.itemsize, f"{name!r} of shape {array.shape}")
    return array


def _ready(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether kernels can read the array where it lies: native dtype, C order, aligned, writeable."""
    return array.dtype == dtype and array.flags.carray


def finite(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """Cast to the working dtype and layout; raise DataError unless every value is finite there."""
    ready = _ready(array, dtype)
    if ready and array.size <= _PIECE:  # asked for speed: features() takes 2.4 us then
        work, good = array, bool(np.isfinite(array).all())
    else:
        work, good = array if ready else np.empty(array.shape, dtype), True
        rows = max(1, _PIECE * len(array) // max(array.size, 1))
        for first in range(0, len(array), rows):  # in pieces, since NumPy does not attend to Ctrl-C
            piece = work[first : first + rows]
            if not ready:
                with np.errstate(all="ignore"):
                    piece[:] = array[first : first + rows]
            good = good and bool(np.isfinite(piece).all())
    if not good:
        _every(name, np.isfinite(array), "be finite, without NaN or infinity")
        _every(name, np.isfinite(work), f"not overflow {dtype}" + " (use dtype='float64')" * (dtype == np.float32))
    return work


def _one_hot(labels: Array, outputs: int | None, dtype: np.dtype[Any], name: str) -> Array:
    """Return class numbers as rows with a single 1."""
    # Without loss, and wide enough to compare with 65535: int8 becomes int32, float16 float32, uint64 remains.
    labels = labels.astype(np.promote_types(labels.dtype, np.uint16))
    if labels.dtype.kind == "f":
        _every(name, np.isfinite(labels), "be finite, without NaN or infinity")
        _every(name, labels == np.trunc(labels), "hold whole class numbers")
    last = min(outputs or _MOST_CLASSES, _MOST_CLASSES) - 1
    _every(name, (labels >= 0) & (labels <= last), f"hold class numbers in 0..{last}")
    classes = outputs or int(labels.max(initial=0)) + 1
    if classes < 2:
        raise DataError("must have at least 2 classes with the loss 'cross_entropy', got 1", name)
    memory(labels.size * classes * dtype.itemsize, f"{name!r} as {_plural(classes, 'column')}")
    rows = np.zeros((labels.size, classes), dtype)
    rows[np.arange(labels.size), labels.astype(np.intp)] = 1
    return rows


def _every(name: str, good: Array, requirement: str) -> None:
    """Raise DataError unless all is good; say how many values are not and where the first is."""
    bad = good.size - int(np.count_nonzero(good))
    if bad:
        first = [int(i) for i in np.unravel_index(int(np.argmin(good)), good.shape)]
        raise DataError(f"must {requirement}, got {bad} bad of {good.size}, the first at {first}", name)


def _plural(n: int, noun: str) -> str:
    """Return '1 row' or '2 rows'."""
    return f"{n} {noun}{'s' * (n != 1)}"


@functools.cache
def _physical_memory() -> int:
    """Return the bytes of physical memory, or the 2**47 that a process can address where that is not told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**47
