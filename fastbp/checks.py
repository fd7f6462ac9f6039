"""Every check of an argument, made once, at the door; the error classes.

A check returns its argument in the one form the rest of the package works with, or raises. Messages name the argument,
the requirement and what was given. They show settings, but never data: of an array they say its type, shape, dtype, the
number of bad values and the index of the first.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import operator
import os
from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp import choices

Array = npt.NDArray[Any]

_MOST_LAYERS = 1000
_MOST_CLASSES = 2**16
_SUM_TOLERANCE = 1e-5  # of a row of probabilities; rounding them to float32 moves their sum by 6e-8 at most
_BYTES_PER_GIB = 2**30


class FastbpError(Exception):
    """Any error that fastbp raises on purpose."""


class ParameterError(FastbpError, ValueError):
    """A setting is of the right type but out of its range."""


class ParameterTypeError(FastbpError, TypeError):
    """An argument is of the wrong type."""


class DataError(FastbpError, ValueError):
    """X, y or another array has the wrong shape, dtype or values."""


class ResourceError(FastbpError, MemoryError):
    """The request needs more memory than the machine has."""


class DivergenceError(FastbpError, ArithmeticError):
    """Loss or weights ceased to be finite in `epoch`, counted from 1; `result` ends with the last finite weights."""

    def __init__(self, epoch: int, result: Any = None) -> None:
        super().__init__(f"loss or weights ceased to be finite in epoch {epoch}; try a smaller 'learning_rate'")
        self.epoch = epoch
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epoch, self.result), self.__dict__  # the default would pass the message as the epoch


def count(name: str, value: object, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
    """Return a Python or NumPy integer in minimum..maximum as an int; True is not a count.

    >>> count("batch_size", 0)
    Traceback (most recent call last):
    fastbp.checks.ParameterError: 'batch_size' must be an integer >= 1, got 0
    """
    # timedelta64 is an np.integer by inheritance
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, np.integer)):
        raise ParameterTypeError(f"{name!r} must be an integer >= {minimum}, got {_shown(value)}")
    result = int(operator.index(value))
    if result < minimum:
        raise ParameterError(f"{name!r} must be an integer >= {minimum}, got {_shown(value)}")
    if result > maximum:
        raise ParameterError(f"{name!r} must be an integer <= {maximum}, got {_shown(value)}")
    return result


def number(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None, below: float | None = None
) -> float:
    """Return a finite Python or NumPy real number inside the bounds as a float.

    >>> number("momentum", 1, at_least=0, below=1)
    Traceback (most recent call last):
    fastbp.checks.ParameterError: 'momentum' must be a finite number >= 0 and < 1, got 1
    """
    bounds = [f"{sign} {bound}" for sign, bound in ((">", above), (">=", at_least), ("<", below)) if bound is not None]
    requirement = f"{name!r} must be a finite number {' and '.join(bounds)}".rstrip()
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ParameterTypeError(f"{requirement}, got {_shown(value)}")
    try:
        result = float(value)
    except OverflowError:  # an integer of more than 1024 bits
        result = math.inf
    inside = (above is None or result > above) and (at_least is None or result >= at_least)
    if not (math.isfinite(result) and inside and (below is None or result < below)):
        raise ParameterError(f"{requirement}, got {_shown(value)}")
    return result


def flag(name: str, value: object) -> bool:
    """Return True or False, of Python or NumPy; 0 and 1 are not flags."""
    if not isinstance(value, (bool, np.bool_)):
        raise ParameterTypeError(f"{name!r} must be True or False, got {_shown(value)}")
    return bool(value)


def choice(name: str, value: object, allowed: Iterable[str], condition: str = "") -> str:
    """Return `value` if it is one of the allowed names; `condition` is said after them when it is not.

    >>> choice("activation", "sigmiod", choices.ELEMENTWISE)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastbp.checks.ParameterError: 'activation' must be one of 'identity', ..., got 'sigmiod'; did you mean 'sigmoid'?
    """
    names = tuple(allowed)
    requirement = f"{name!r} must be one of {', '.join(map(repr, names))}{condition}"
    if not isinstance(value, str):
        raise ParameterTypeError(f"{requirement}, got {_shown(value)}")
    if value not in names:
        close = difflib.get_close_matches(value[:80].lower(), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ParameterError(f"{requirement}, got {_shown(value)}{hint}")
    return str(value)


def seed(value: object) -> int:
    """Return a seed that numpy.random.RandomState takes: 0..2**32-1, drawn from fresh entropy for None."""
    if value is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return count("seed", value, 0, 2**32 - 1)


def hidden(value: object, name: str = "hidden") -> tuple[int, ...]:
    """Return the widths of the hidden layers, given one or a list, tuple or 1-D integer array of at most 1000.

    >>> hidden(64), hidden([64, 32]), hidden(())
    ((64,), (64, 32), ())
    """
    if isinstance(value, (int, np.integer)):
        return (count(name, value),)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ParameterTypeError(f"{name!r} must be an integer >= 1 or a sequence of them, got {_shown(value)}")
    if len(value) > _MOST_LAYERS:
        raise ParameterError(f"{name!r} must have at most {_MOST_LAYERS} layers, got {_shown(value)}")
    return tuple(count(f"{name}[{i}]", width) for i, width in enumerate(value))


def sizes(value: object) -> tuple[int, ...]:
    """Units of each layer, inputs first: at least two counts."""
    units = hidden(value, "sizes")
    if len(units) < 2:
        raise ParameterError(f"'sizes' must name at least inputs and outputs, got {len(units)} layer")
    return units


def activations(value: object, hidden_layers: int) -> tuple[str, ...]:
    """Return the name of the activation of each hidden layer, given one for all or a list or tuple of one for each."""
    if isinstance(value, str):
        return (choice("activation", value, choices.ELEMENTWISE),) * hidden_layers
    if not isinstance(value, (list, tuple)):
        raise ParameterTypeError(f"'activation' must be a name or a list or tuple of names, got {_shown(value)}")
    if len(value) != hidden_layers:
        raise ParameterError(
            f"'activation' must be one name or one per hidden layer ({hidden_layers}), got {len(value)}"
        )
    return tuple(choice(f"activation[{i}]", name, choices.ELEMENTWISE) for i, name in enumerate(value))


def output(value: object, loss: str) -> str:
    """Return the activation of the output layer; None stands for the natural partner of `loss`."""
    outputs = choices.LOSSES[loss].outputs
    return outputs[0] if value is None else choice("output", value, outputs, f" with the loss {loss!r}")


def optimizer(value: object, learning_rate: object = None) -> choices.SGD | choices.Adam:
    """Return checked settings, given a name or an SGD or Adam instance; `learning_rate` overrides theirs."""
    settings = choices.OPTIMIZERS[choice("optimizer", value, choices.OPTIMIZERS)]() if isinstance(value, str) else value
    # No subclasses: kernels read `code` and `settings`, which a subclass could make disagree with what is checked here.
    if type(settings) is not choices.SGD and type(settings) is not choices.Adam:
        names = ", ".join(map(repr, choices.OPTIMIZERS))
        raise ParameterTypeError(f"'optimizer' must be one of {names} or an SGD or Adam instance, got {_shown(value)}")
    rate = number("learning_rate", settings.learning_rate if learning_rate is None else learning_rate, above=0)
    if isinstance(settings, choices.Adam):
        beta1 = number("beta1", settings.beta1, at_least=0, below=1)
        beta2 = number("beta2", settings.beta2, at_least=0, below=1)
        epsilon = number("epsilon", settings.epsilon, above=0)
        return dataclasses.replace(settings, learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon)
    momentum = number("momentum", settings.momentum, at_least=0, below=1)
    nesterov = flag("nesterov", settings.nesterov)
    if nesterov and momentum == 0:
        raise ParameterError("'nesterov' must come with a 'momentum' > 0, got True with momentum 0")
    return dataclasses.replace(settings, learning_rate=rate, momentum=momentum, nesterov=nesterov)


def representable(settings: choices.SGD | choices.Adam, precision: np.dtype[Any]) -> None:
    """Refuse settings that overflow, or round to 0 or 1, in the precision of the arithmetic."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        with np.errstate(over="ignore", under="ignore"):
            rounded = precision.type(value)
        if not np.isfinite(rounded) or (value > 0) != (rounded > 0) or (value < 1) != (rounded < 1):
            raise ParameterError(f"{field.name!r} must be representable in {precision}, got {value!r}")


def dtype(value: object, X: object = None) -> np.dtype[Any]:
    """Return float32 or float64; None stands for float32 if X is float32 or float16, else for float64."""
    if value is None:
        given = getattr(X, "dtype", None)
        return np.dtype(np.float32 if isinstance(given, np.dtype) and given.type in (np.float32, np.float16) else float)
    if isinstance(value, str):
        return np.dtype(choice("dtype", value, ("float32", "float64")))
    scalar = value.type if isinstance(value, np.dtype) else value
    # Compared, not passed to np.dtype(), which takes nonsense for object and warns about abstract types.
    for working in (np.float32, np.float64):
        if scalar is working or (scalar is float and working is np.float64):
            return np.dtype(working)
    error = ParameterError if isinstance(value, (type, np.dtype)) else ParameterTypeError
    raise error(f"'dtype' must be one of 'float32', 'float64', got {_shown(value)}")


def parameters(params: Array, units: tuple[int, ...], bias: bool) -> None:
    """Check the vector of parameters of a network, which its owner may have replaced."""
    size = sum(o * (i + bias) for i, o in itertools.pairwise(units))
    good = isinstance(params, np.ndarray) and params.dtype in (np.float32, np.float64) and params.dtype.isnative
    if not good or params.shape != (size,) or not (params.flags.c_contiguous and params.flags.writeable):
        raise DataError(f"'network.params' must be a writeable float array of shape ({size},), got {_shown(params)}")
    _finite("network.params", params, params.dtype)


def instance(name: str, value: object, kind: type) -> None:
    """Check that the value is of this class."""
    if not isinstance(value, kind):
        raise ParameterTypeError(f"{name!r} must be a {kind.__name__}, got {_shown(value)}")


def alone(**settings: tuple[object, object]) -> None:
    """Refuse settings, given with their defaults, that a ready network brings with it."""
    for name, (value, default) in settings.items():
        if value is not default and (isinstance(value, np.ndarray) or value != default):
            raise ParameterError(f"{name!r} must be left out where 'network' is given, which brings its own")


def features(X: object, dtype: np.dtype[Any], inputs: int | None = None, minimum_rows: int = 1) -> Array:
    """Return X as a finite (rows, columns) array in the working dtype: C order, aligned, writeable, native.

    It is X itself if X is all that already, so nobody may write to it. `inputs` is what an existing network expects.

    >>> features([[0, 1], [1, 1]], np.dtype(np.float64))
    array([[0., 1.],
           [1., 1.]])
    """
    array = _array("X", X, dtype)
    if array.ndim != 2:
        hint = "; X.reshape(-1, 1) makes a column of it" if array.ndim == 1 else ""
        raise DataError(f"'X' must be 2-D (rows, columns), got shape {array.shape}{hint}")
    rows, columns = array.shape
    if rows < minimum_rows:
        raise DataError(f"'X' must have at least {_plural(minimum_rows, 'row')}, got shape {array.shape}")
    if inputs is not None and columns != inputs:
        raise DataError(f"X has {_plural(columns, 'column')}, the network has {_plural(inputs, 'input')}")
    if columns < 1:
        raise DataError(f"'X' must have at least 1 column, got shape {array.shape}")
    return _finite("X", array, dtype)


def targets(y: object, loss: str, n: int, outputs: int | None, dtype: np.dtype[Any]) -> Array:
    """Return y as an (n, outputs) array in the working dtype, laid out and shared as `features` does with X.

    squared_error takes finite numbers, binary_cross_entropy 0 and 1, either of shape (n,) or (n, outputs).
    cross_entropy takes class numbers 0..K-1 of shape (n,) or (n, 1), K being `outputs` or the largest number + 1,
    or probabilities of shape (n, K) whose rows sum to 1 within 1e-5. `outputs` is None or what a network has.

    >>> targets([1, 0, 2], "cross_entropy", 3, None, np.dtype(np.float64))
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 0., 1.]])
    """
    array = _array("y", y, dtype)
    if array.ndim not in (1, 2) or array.shape[1:] == (0,):
        raise DataError(f"'y' must have shape (rows,) or (rows, outputs), got shape {array.shape}")
    if len(array) != n:
        raise DataError(f"X has {_plural(n, 'row')}, y has {len(array)}")
    columns = 1 if array.ndim == 1 else array.shape[1]
    if loss == "cross_entropy" and columns == 1:
        return _one_hot(array.ravel(), outputs, dtype)
    if outputs is not None and columns != outputs:
        raise DataError(f"y has {_plural(columns, 'column')}, the network has {_plural(outputs, 'output')}")
    if loss == "binary_cross_entropy":  # checked as given: 1 - 1e-9 is 1 in float32
        _every("y", (array == 0) | (array == 1), "be 0 or 1 with the loss 'binary_cross_entropy'")
    work = _finite("y", array, dtype)
    if loss == "cross_entropy":
        _every("y", work >= 0, "hold class numbers of shape (rows,) or probabilities >= 0")
        with np.errstate(over="ignore"):
            sums = work.sum(axis=1, dtype=np.float64)
        _every("y", abs(sums - 1) <= _SUM_TOLERANCE, "hold class numbers of shape (rows,) or rows that sum to 1")
    return work if work.ndim == 2 else work[:, None]


def memory(bytes_needed: int, what: str) -> None:
    """Raise ResourceError if `what` needs more than the physical memory; swap is no place to train."""
    limit = _physical_memory()
    if bytes_needed > limit:
        needed, present = bytes_needed / _BYTES_PER_GIB, limit / _BYTES_PER_GIB
        raise ResourceError(f"{what} needs {needed:,.1f} GiB of memory, this machine has {present:,.1f} GiB")


def _array(name: str, value: object, dtype: np.dtype[Any]) -> Array:
    """Return `value` as an array of real numbers, dtype and layout as they are; refuse what NumPy would guess at."""
    if hasattr(value, "toarray"):
        raise ParameterTypeError(f"{name!r} must be dense, got {_shown(value)}; convert it with .toarray()")
    if isinstance(value, np.matrix) or not (isinstance(value, (list, tuple)) or hasattr(value, "__array__")):
        raise ParameterTypeError(f"{name!r} must be an array or a list of numbers, got {_shown(value)}")
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists; whatever a foreign __array__ raises
        raise DataError(f"{name!r} must convert to an array with rows of equal length, got {_shown(value)}") from error
    if array.dtype.kind not in "biuf":
        hint = "; convert with .astype(float)" if array.dtype.kind in "OSTU" else ""
        if hint and name == "y":
            hint += ", or number class names with np.unique(y, return_inverse=True)[1]"
        raise DataError(f"{name!r} must hold real numbers, got dtype {str(array.dtype)[:80]}{hint}")
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


def _finite(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """Cast to the working dtype and layout; raise DataError unless every value is finite there."""
    work = array
    if not _ready(array, dtype):  # asked for speed: features() takes 2.4 us if it is, else 6.4
        with np.errstate(all="ignore"):
            work = np.require(array, dtype, ["C", "A", "W"])
    finite = np.isfinite(work)
    if not finite.all():
        _every(name, np.isfinite(array), "be finite, without NaN or infinity")
        _every(name, finite, f"not overflow {dtype}" + " (use dtype='float64')" * (dtype == np.float32))
    return work


def _one_hot(labels: Array, outputs: int | None, dtype: np.dtype[Any]) -> Array:
    """Return class numbers as rows with a single 1."""
    # Without loss, and wide enough to compare with 65535: int8 becomes int32, float16 float32, uint64 remains.
    labels = labels.astype(np.promote_types(labels.dtype, np.uint16))
    if labels.dtype.kind == "f":
        _every("y", np.isfinite(labels), "be finite, without NaN or infinity")
        _every("y", labels == np.trunc(labels), "hold whole class numbers")
    last = min(outputs or _MOST_CLASSES, _MOST_CLASSES) - 1
    _every("y", (labels >= 0) & (labels <= last), f"hold class numbers in 0..{last}")
    classes = outputs or int(labels.max(initial=0)) + 1
    if classes < 2:
        raise DataError("'y' must have at least 2 classes with the loss 'cross_entropy', got 1")
    memory(labels.size * classes * dtype.itemsize, f"'y' as {_plural(classes, 'column')}")
    rows = np.zeros((labels.size, classes), dtype)
    rows[np.arange(labels.size), labels.astype(np.intp)] = 1
    return rows


def _every(name: str, good: Array, requirement: str) -> None:
    """Raise DataError unless all is good; say how many values are not and where the first is."""
    bad = good.size - int(np.count_nonzero(good))
    if bad:
        first = [int(i) for i in np.unravel_index(int(np.argmin(good)), good.shape)]
        raise DataError(f"{name!r} must {requirement}, got {bad} bad of {good.size}, the first at {first}")


def _shown(value: object) -> str:
    """Describe an argument: a scalar by its value, cut at 80 characters, all else by its type and size alone."""
    kind = type(value).__name__
    try:
        if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print very long ones
            return f"an integer of {value.bit_length()} bits"
        if value is None or isinstance(value, (int, float, complex, str, np.number, np.bool_)):
            return repr(value[:80] if isinstance(value, str) else value)[:80]
        if isinstance(value, type):
            return f"the class {value.__name__}"
        if isinstance(value, np.dtype):
            return f"dtype {value}"[:80]
        if isinstance(value, np.ndarray):
            return f"{kind} of shape {value.shape} and dtype {str(value.dtype)[:80]}"
        if isinstance(shape := getattr(value, "shape", None), tuple):
            return f"{kind} of shape {shape}"[:80]
        return f"{kind} of length {len(value)}" if isinstance(value, Sized) else kind
    except Exception:  # a foreign object that cannot even be described
        return kind


def _plural(n: int, noun: str) -> str:
    """Return '1 row' or '2 rows'."""
    return f"{n} {noun}{'s' * (n != 1)}"


def _physical_memory() -> int:
    """Return the bytes of physical memory, or the 2**47 that a process can address where that is not told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**47
