"""Small neural networks trained on the CPU by compiled back-propagation.

`fastbp.train(X, y, hidden=(64, 64))` trains one; `python -m fastbp` shows it on XOR.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastbp.choices import (
        SGD,
        Adam,
        AdamW,
        Constant,
        CosineDecay,
        ExponentialDecay,
        InverseScaling,
        IRprop,
        ReduceOnPlateau,
        RMSprop,
    )
    from fastbp.errors import (
        CheckpointError,
        DataError,
        DivergenceError,
        FastbpError,
        ParameterError,
        ParameterTypeError,
        ResourceError,
    )
    from fastbp.network import Network
    from fastbp.train import EpochState, TrainResult, resume, train

__version__ = "0.1.0"

_HOMES = {
    "train": ["train", "resume", "TrainResult", "EpochState"],
    "network": ["Network"],
    "choices": [
        "SGD",
        "Adam",
        "AdamW",
        "RMSprop",
        "IRprop",
        "Constant",
        "ExponentialDecay",
        "InverseScaling",
        "CosineDecay",
        "ReduceOnPlateau",
    ],
    "errors": [
        "FastbpError",
        "ParameterError",
        "ParameterTypeError",
        "CheckpointError",
        "DataError",
        "ResourceError",
        "DivergenceError",
    ],
}
_ROOMS = ("export", "plots", "sklearn", "xor")
__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CheckpointError",
    "Constant",
    "CosineDecay",
    "DataError",
    "DivergenceError",
    "EpochState",
    "ExponentialDecay",
    "FastbpError",
    "IRprop",
    "InverseScaling",
    "Network",
    "ParameterError",
    "ParameterTypeError",
    "RMSprop",
    "ReduceOnPlateau",
    "ResourceError",
    "TrainResult",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of names, when it is first used."""
    if name in _ROOMS:
        return importlib.import_module(f"fastbp.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"fastbp.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'fastbp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
