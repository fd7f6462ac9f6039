"""Checks of one number or flag, which settings and the door share, and how a message shows what was given.

Nothing here imports NumPy before it meets a value that may be NumPy's: `python -m fastbp --help` does without.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sized
from typing import Any

from fastbp.errors import ParameterError, ParameterTypeError


def count(
    name: str, value: object, minimum: int = 1, maximum: int = 2**31 - 1, requirement: str = "must be an integer"
) -> int:
    """Return a Python or NumPy integer in minimum..maximum as an int; True is not a count.

    >>> count("batch_size", 0)
    Traceback (most recent call last):
    fastbp.errors.ParameterError: 'batch_size' must be an integer >= 1, got 0
    """
    given = plain(value)
    if isinstance(given, bool) or not (isinstance(given, int) or _of_numpy(given, "integer")):
        raise ParameterTypeError(f"{requirement} >= {minimum}, got {shown(given)}", name)
    result = operator.index(given)
    if minimum <= result <= maximum:
        return result
    bound = f">= {minimum}" if result < minimum else f"<= {maximum}"
    raise ParameterError(f"{requirement} {bound}, got {shown(given)}", name)


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return a finite Python or NumPy real number inside the bounds as a float.

    >>> number("momentum", 1, at_least=0, below=1)
    Traceback (most recent call last):
    fastbp.errors.ParameterError: 'momentum' must be a finite number >= 0 and < 1, got 1
    """
    given = plain(value)
    real = not isinstance(given, bool) and (isinstance(given, (int, float)) or _of_numpy(given, "integer", "floating"))
    if real:
        try:
            result = float(given)
        except OverflowError:  # an integer of more than 1024 bits
            result = math.inf
        inside = (above is None or result > above) and (at_least is None or result >= at_least)
        inside = inside and (below is None or result < below) and (at_most is None or result <= at_most)
        if inside and math.isfinite(result):
            return result
    limits = (">", above), (">=", at_least), ("<", below), ("<=", at_most)
    bounds = [f"{sign} {bound:g}" for sign, bound in limits if bound is not None]
    requirement = f"must be a finite number {' and '.join(bounds)}".rstrip()
    error = ParameterError if real else ParameterTypeError
    raise error(f"{requirement}, got {shown(given)}", name)


def flag(name: str, value: object) -> bool:
    """Return True or False, of Python or NumPy; 0 and 1 are not flags."""
    value = plain(value)
    if not (isinstance(value, bool) or _of_numpy(value, "bool_")):
        raise ParameterTypeError(f"must be True or False, got {shown(value)}", name)
    return bool(value)


def _of_numpy(value: object, *kinds: str) -> bool:
    """Whether a value is a scalar of one of these classes of NumPy."""
    import numpy as np

    # timedelta64 is an np.integer by inheritance
    return isinstance(value, tuple(getattr(np, kind) for kind in kinds)) and not isinstance(value, np.timedelta64)


def attribute(value: object, name: str) -> Any:
    """Return an attribute, None if there is none or a foreign object fails at the question."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


_PLAIN: dict[type, Any] = {
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    list: list.copy,
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    dict: lambda value: dict(dict.items(value)),
}


def plain(value: object) -> Any:
    """Return an instance of a subclass as the int, float, str, list, tuple or dict it is, and all else as it is.

    What a subclass does in its methods, then, neither decides a check nor breaks out of it. A proxy that cannot say of
    which class it is, which isinstance() asks, becomes an object that only shares its name.
    """
    kind = type(value)
    if kind is float or kind is int or kind is str or kind is bool or value is None:  # nearly all settings
        return value
    if attribute(value, "__class__") is None:
        return type(kind.__name__, (), {})()
    for base, convert in _PLAIN.items():
        if issubclass(kind, base):
            return value if kind is base else convert(value)
    return value


def shown(value: object) -> str:
    """Describe an argument: a scalar by its value, cut at 80 characters, all else by its type and size alone."""
    import numpy as np

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
