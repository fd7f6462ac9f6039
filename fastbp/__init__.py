"""Small neural networks trained on the CPU by compiled back-propagation.

`fastbp.train(X, y, hidden=(64, 64))` trains one; `python -m fastbp` shows it on XOR.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastbp.checks import (
        DataError,
        DivergenceError,
        FastbpError,
        ParameterError,
        ParameterTypeError,
        ResourceError,
    )
    from fastbp.choices import SGD, Adam
    from fastbp.network import Network
    from fastbp.train import TrainResult, train

__version__ = "0.1.0"

_HOMES = {
    "train": "train",
    "TrainResult": "train",
    "Network": "network",
    "SGD": "choices",
    "Adam": "choices",
    "FastbpError": "checks",
    "ParameterError": "checks",
    "ParameterTypeError": "checks",
    "DataError": "checks",
    "ResourceError": "checks",
    "DivergenceError": "checks",
}
__all__ = [
    "SGD",
    "Adam",
    "DataError",
    "DivergenceError",
    "FastbpError",
    "Network",
    "ParameterError",
    "ParameterTypeError",
    "ResourceError",
    "TrainResult",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fastbp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastbp.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
