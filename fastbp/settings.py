"""What a training is told beside its data: checked, described in a file and read again."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from fastbp import checks, choices
from fastbp.choices import BACKENDS, REDUCTIONS, Optimizer, Schedule

WATCHES = ("loss", "score")


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a training was told, checked."""

    optimizer: Optimizer
    schedule: Schedule
    batch_size: int | None
    shuffle: bool
    mean: bool
    l2: float
    dropout: tuple[float, ...]
    clip_norm: float
    class_weight: str | dict[int, float] | None
    validation: float | None
    patience: int | None
    min_delta: float
    watch: str
    seed: int
    backend: str


def checked(
    hidden_layers: int, precision: np.dtype[Any], *, optimizer: Any, seed: Any, learning_rate: Any = None,
    schedule: Any = "constant", epochs: int = 1, batch_size: Any = None, shuffle: Any = False, reduction: Any = "mean",
    l2: Any = 0.0, dropout: Any = 0.0, clip_norm: Any = None, class_weight: Any = None, validation: Any = None,
    patience: Any = None, min_delta: Any = 0.0, watch: Any = "loss", backend: Any = "numba",
) -> Settings:  # fmt: skip
    """Return settings with everything checked that kernels rely on; a seed of None is drawn."""
    settings = Settings(
        optimizer=checks.optimizer(optimizer, learning_rate),
        schedule=checks.schedule(schedule, epochs),
        batch_size=None if batch_size is None else checks.count("batch_size", batch_size),
        shuffle=checks.flag("shuffle", shuffle),
        mean=checks.choice("reduction", reduction, REDUCTIONS) == "mean",
        l2=checks.number("l2", l2, at_least=0),
        dropout=checks.dropout(dropout, hidden_layers),
        clip_norm=0.0 if clip_norm is None else checks.number("clip_norm", clip_norm, above=0),
        class_weight=checks.class_weight(class_weight),
        validation=checks.validation(validation),
        patience=None if patience is None else checks.count("patience", patience, 0),
        min_delta=checks.number("min_delta", min_delta, at_least=0),
        watch=checks.choice("watch", watch, WATCHES),
        seed=checks.seed(seed),
        backend=checks.choice("backend", backend, BACKENDS),
    )
    _check_precision(
        precision, settings.optimizer, settings.schedule, settings.l2, settings.dropout, settings.clip_norm,
        settings.min_delta,
    )  # fmt: skip
    return settings


@functools.lru_cache(maxsize=256)  # it takes some 25 us, most of them for NumPy's way of not warning
def _check_precision(
    precision: Any, optimizer: Optimizer, schedule: Schedule, l2: float, dropout: tuple[float, ...], clip_norm: float,
    min_delta: float,
) -> None:  # fmt: skip
    """Refuse settings that overflow or vanish in the precision of the arithmetic."""
    rates = {f"dropout[{layer}]": rate for layer, rate in enumerate(dropout)}
    checks.representable(optimizer, precision)
    checks.representable(schedule, np.dtype(np.float64))
    checks.normal(precision, l2=l2, **rates)
    checks.normal(np.dtype(np.float64), clip_norm=clip_norm, min_delta=min_delta)


def rechecked(hidden_layers: int, precision: np.dtype[Any], settings: Settings) -> Settings:
    """Return the same settings, or raise nearly anything: they come from a file, or may have been written to."""
    told = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    told["reduction"] = "mean" if checks.flag("mean", told.pop("mean")) else "sum"
    told["clip_norm"] = checks.number("clip_norm", told["clip_norm"], at_least=0) or None
    told["dropout"] = told["dropout"] or 0.0
    if told["seed"] is None:  # which `checked` would draw
        raise ValueError("'seed' must be an integer")
    return checked(hidden_layers, precision, **told)


def to_file(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON knows them."""
    told = dataclasses.asdict(settings)
    for name in ("optimizer", "schedule"):
        told[name] = {"class": type(getattr(settings, name)).__name__, **told[name]}
    if isinstance(told["class_weight"], dict):
        told["class_weight"] = list(told["class_weight"].items())  # JSON would make its keys strings
    return told


def from_file(hidden_layers: int, precision: np.dtype[Any], saved: dict[str, Any]) -> Settings:
    """Return the settings that `to_file` described, or raise nearly anything."""
    if saved.keys() != {field.name for field in dataclasses.fields(Settings)}:
        raise ValueError("settings are missing, or there are others")
    classes = {kind.__name__: kind for kind in (*choices.OPTIMIZERS.values(), *choices.SCHEDULES.values())}
    told = dict(saved)
    for name in ("optimizer", "schedule"):
        fields = {key: value for key, value in saved[name].items() if key != "class"}
        told[name] = classes[saved[name]["class"]](**fields)
    if isinstance(saved["class_weight"], list):
        told["class_weight"] = dict(saved["class_weight"])
    return rechecked(hidden_layers, precision, Settings(**told))
