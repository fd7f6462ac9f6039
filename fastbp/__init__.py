"""Small neural networks trained on the CPU by compiled back-propagation.

`fastbp.train(X, y, hidden=(64, 64))` trains one; `python -m fastbp` shows it on XOR.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
from fastbp.version import __version__ as __version__

if TYPE_CHECKING:
    from fastbp.network import Network
    from fastbp.train import EpochState, TrainResult, resume, train
    from fastbp.trainer import Trainer

# Names that need NumPy, which `python -m fastbp --help` does without, and the modules that they are imported from when
# they are first used.
_LATER = {
    "EpochState": "train",
    "Network": "network",
    "TrainResult": "train",
    "Trainer": "trainer",
    "resume": "train",
    "train": "train",
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
    "Trainer",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name that needs NumPy, or a module of names, when it is first used."""
    if name in _ROOMS:
        return importlib.import_module(f"fastbp.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'fastbp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastbp.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
