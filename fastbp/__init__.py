"""Small neural networks trained on the CPU by compiled back-propagation.

`fastbp.train(X, y, hidden=(64, 64))` trains one; `python -m fastbp` shows it on XOR.
"""

from __future__ import annotations

import importlib

from fastbp.version import __version__ as __version__

TYPE_CHECKING = False  # type checkers know the name, and `typing` takes four times as long to import as the rest
if TYPE_CHECKING:
    from typing import Any

    from fastbp.choices import (
        LBFGS,
        SGD,
        Adam,
        AdamW,
        Constant,
        CosineDecay,
        ExponentialDecay,
        InverseScaling,
        IRprop,
        LevenbergMarquardt,
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
    from fastbp.many import ManyResult, train_many
    from fastbp.network import Network
    from fastbp.train import EpochState, TrainResult, resume, train
    from fastbp.trainer import Trainer

# Where names are imported from when they are first used: NumPy, which most of them need, takes a tenth of a second, and
# the dataclasses of the settings 15 ms.
_HOMES = {
    "choices": (
        "LBFGS",
        "SGD",
        "Adam",
        "AdamW",
        "Constant",
        "CosineDecay",
        "ExponentialDecay",
        "IRprop",
        "InverseScaling",
        "LevenbergMarquardt",
        "RMSprop",
        "ReduceOnPlateau",
    ),
    "errors": (
        "CheckpointError",
        "DataError",
        "DivergenceError",
        "FastbpError",
        "ParameterError",
        "ParameterTypeError",
        "ResourceError",
    ),
    "many": ("ManyResult", "train_many"),
    "network": ("Network",),
    "train": ("EpochState", "TrainResult", "resume", "train"),
    "trainer": ("Trainer",),
}
_ROOMS = ("export", "plots", "sklearn", "xor")
__all__ = [
    "LBFGS",
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
    "LevenbergMarquardt",
    "ManyResult",
    "Network",
    "ParameterError",
    "ParameterTypeError",
    "RMSprop",
    "ReduceOnPlateau",
    "ResourceError",
    "TrainResult",
    "Trainer",
    "resume",
    "train",
    "train_many",
]


def __getattr__(name: str) -> Any:
    """Import a name, or a module of names, when it is first used."""
    if name in _ROOMS:
        return importlib.import_module(f"fastbp.{name}")
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"fastbp.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'fastbp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
