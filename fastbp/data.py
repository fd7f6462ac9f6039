"""What a training is handed as data: checked against the network, split, weighed, and the memory that it will take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbp import checks
from fastbp.choices import CLASSIFYING, outputs_of
from fastbp.settings import Settings
from fastbp.workspace import HISTORY, PIECE, Plan, memory_sizes, panels_in, pieces, rows_of, second_order_sizes

Array = NDArray[Any]


class Data(NamedTuple):
    """What is trained on, checked, and not yet laid out."""

    X: Array
    y: Array
    weights: Array | None  # of the rows, or (n, columns) of their targets
    validation: tuple[Array, Array, Array | None] | None  # likewise, if it was handed in
    held: int  # rows for validation, handed in or drawn from the others
    outputs: int  # of the network

    @property
    def rows(self) -> int:
        """Rows that are trained on."""
        return len(self.X) - (self.held if self.validation is None else 0)

    @property
    def output_weights(self) -> bool:
        """Whether rows, of either kind, have a weight for each output."""
        given = (self.weights, None if self.validation is None else self.validation[2])
        return any(weights is not None and weights.ndim == 2 for weights in given)


def checked(
    settings: Settings, precision: Any, loss: str, X: Any, y: Any, sample_weight: Any, validation: Any,
    inputs: int | None, outputs: int | None, levels: int,
) -> Data:  # fmt: skip
    """Check the data against the loss, its levels and what a network has, and count the rows of either kind."""
    X = checks.features(X, precision, inputs)
    y, weights = checks.weighted_targets(y, sample_weight, loss, len(X), outputs or levels or None, precision)
    outputs = outputs or outputs_of(loss, y.shape[1], levels)
    if isinstance(validation, tuple):
        held_X = checks.features(validation[0], precision, X.shape[1], name="validation[0]")
        held_y, held_weights = checks.weighted_targets(
            validation[1], validation[2] if len(validation) == 3 else None, loss, len(held_X), outputs, precision,
            ("validation[1]", "validation[2]"),
        )  # fmt: skip
        return Data(X, y, weights, (held_X, held_y, held_weights), len(held_X), outputs)
    if settings.validation is None:
        if settings.watch == "score":
            raise checks.ParameterError("must be 'loss' where there is no 'validation', got 'score'", "watch")
        return Data(X, y, weights, None, 0, outputs)
    return Data(X, y, weights, None, share(settings.validation, len(X)), outputs)


def share(validation: float, n: int) -> int:
    """Return how many of n rows a share for validation is."""
    size = max(1, round(validation * n))
    if size >= n:
        raise checks.ParameterError(f"must leave rows to train on, got {validation} of {n}", "validation")
    return size


def chosen(seed: int, n: int, held: int) -> NDArray[np.bool_]:
    """Draw so many of n rows for validation."""
    order = np.random.RandomState(seed).permutation(n)  # a frozen stream
    mask = np.zeros(n, bool)
    mask[order[:held]] = True
    return mask


def split(
    settings: Settings, loss: str, quantiles: tuple[float, ...], data: Data
) -> tuple[Array, Array | None, tuple[float, ...]]:
    """Draw the rows for validation and weigh the classes; return the rows of either kind and the spread of a plan."""
    X, y, weights, form = data.X, data.y, data.weights, (data.outputs, data.output_weights)
    end = X.shape[1] + data.outputs  # of the targets
    held: Array | None = None
    if data.validation is not None:
        rows, held = rows_of(X, y, weights, None, *form), rows_of(*data.validation, None, *form)
    elif data.held:
        mask = chosen(settings.seed, len(X), data.held)
        held, rows = (rows_of(X, y, weights, np.flatnonzero(part), *form) for part in (mask, ~mask))
        if not (held[:, end:].any() and rows[:, end:].any()):
            raise checks.DataError(
                "must have a value above 0 among both parts of a 'validation' split", "sample_weight"
            )
    else:
        rows = rows_of(X, y, weights, None, *form)
    if settings.class_weight is not None:
        given = None if weights is None else rows[:, -1]
        rows[:, -1] = checks.class_weights(settings.class_weight, loss, rows[:, X.shape[1] : end], given)
    if held is None:
        return rows, held, ()
    return rows, held, spread_of(settings, loss, held, X.shape[1], data.outputs, quantiles)


def spread_of(
    settings: Settings, loss: str, held: Array, inputs: int, outputs: int, quantiles: tuple[float, ...] = ()
) -> tuple[float, ...]:
    """Return the spread of the rows for validation (n, F); () where the score is a share of rows."""
    if loss in CLASSIFYING:
        return ()
    end, predicted = inputs + outputs, outputs // 2 if loss == "gaussian_nll" else outputs
    spread = _spread(held[:, inputs:end][:, :predicted], held[:, end:][:, :predicted], quantiles)
    if settings.watch == "score" and not any(spread):
        raise checks.DataError(
            f"must hold rows of different targets where 'watch' is 'score', which is {'D^2' if quantiles else 'R^2'}: "
            "got targets "
            f"that are all the same in {len(held)} row{'s' * (len(held) != 1)}",
            "validation",
        )
    return spread


def _spread(y: Array, weights: Array, quantiles: tuple[float, ...]) -> tuple[float, ...]:
    """1 / sqrt(outputs * variance) of each column of targets, weighted, so that R^2 is 1 - the mean misfit.

    Where there are quantiles it is 1 / (outputs * pinball loss of the best constant), so that D^2 is. The weights
    (n, 1) or like y; a mean is over the sum of those of the rows, which are the means of those of their outputs.

    It is 0 where all targets are the same. They are divided by the largest difference among them, since squares of
    those above 1e154 overflow, and below 1e-154 vanish; halves, since a difference may overflow too.
    """
    first = np.take_along_axis(y, np.argmax(weights > 0, axis=0)[None], axis=0).astype(np.float64) / 2
    heaviest, limits = float(weights.max()), np.finfo(y.dtype)

    def differences(piece: slice) -> tuple[Array, Array]:
        w = weights[piece].astype(np.float64) / heaviest
        return np.where(w > 0, y[piece].astype(np.float64) / 2 - first, 0), w

    def total(term: Callable[[Array, Array], Array]) -> Array:
        parts = (term(*differences(piece)) for piece in pieces(len(y), y.shape[1]))
        return np.add.reduce([part.sum(axis=0) for part in parts])

    with np.errstate(all="ignore"):
        largest = np.zeros(y.shape[1])
        for piece in pieces(len(y), y.shape[1]):
            largest = np.maximum(largest, np.abs(differences(piece)[0]).max(axis=0))
        differ = 2 * largest >= limits.tiny  # kernels take less for 0
        scale = np.where(differ, largest, 1)
        weight = total(lambda d, w: w)
        of_rows = weight.mean()
        if quantiles:
            best = [_constant(d, w, q) for d, w, q in zip(*_columns(*differences(slice(None))), quantiles, strict=True)]
            levels, constants = np.array(quantiles), np.array(best) / scale
            losses = total(lambda d, w: w * _pinball(d / scale - constants, levels))
            differ &= losses > 0
            root = of_rows / (np.where(differ, losses, 1) * y.shape[1]) / scale / 2
        else:
            mean = total(lambda d, w: w * (d / scale)) / weight
            squares = total(lambda d, w: w * (d / scale - mean) ** 2)
            differ &= squares > 0
            root = np.sqrt(of_rows / (np.where(differ, squares, 1) * y.shape[1])) / scale / 2
        return tuple(np.where(differ, root.clip(limits.tiny, limits.max), 0).tolist())


def _columns(d: Array, w: Array) -> tuple[Array, Array]:
    """Return the columns of both, as rows."""
    return d.T, np.broadcast_to(w, d.shape).T


def _constant(d: Array, w: Array, level: float) -> float:
    """Return the number of the least weighted pinball loss: where the weights of what is below reach the level."""
    order = np.argsort(d, kind="stable")
    below = np.cumsum(w[order])
    return float(d[order[np.searchsorted(below, level * below[-1])]])


def _pinball(residual: Array, levels: Array) -> Array:
    """Return max(q r, (q - 1) r) for residuals r = y - p of the levels q."""
    return np.maximum(levels * residual, (levels - 1) * residual)


def bytes_needed(
    plan: Plan, in_panels: bool, settings: Settings, data: Data, epochs: int, resumed: bool
) -> dict[str, int]:
    """Bytes that a training takes while it takes most, by what they are for; the data handed in are among them."""
    X, y, dtype, item = data.X, data.y, data.X.dtype, data.X.dtype.itemsize
    n, held, features, P = plan.rows, data.held, plan.features, plan.parameters
    sizes = memory_sizes(plan, dtype, epochs)
    given = [X, y, data.weights, *(data.validation or ())]
    rows, laid = item * (n + held) * features, 0
    if in_panels:
        in_order = 0 if plan.shuffled else panels_in(n, plan)
        laid = (
            item * features * plan.width * (in_order + panels_in(held, plan._replace(batch_size=max(held, 1), few=0)))
        )
    piece, drawn = min(max(n, held), PIECE // features + 1), settings.validation is not None
    stages = (
        rows + (10 * len(X) + item * features * piece) * drawn,  # who is chosen, twice, and their numbers
        rows + 48 * n * (settings.class_weight is not None),
        rows + laid + 8 * sizes["order"] + 88 * piece * (laid > 0) + len(X) * drawn,
    )
    copies = P + sum(sizes[name] for name in ("gradient", "first", "second", "best"))
    block = sum(sizes[name] for name in ("all_zero", "data", "activations", "kept", "deltas", "scratch"))
    history = sum(sizes[name] for name in HISTORY)
    padded = f", batches of {plan.batch_size} padded to {plan.width}" if laid > 2 * rows else ""
    return {
        f"{len(X) + (held if data.validation else 0)} rows{padded}": sum(a.nbytes for a in given if a is not None)
        + max(stages),
        f"{P} parameters": item * ((2 + resumed) * copies + P),  # with those of a chunk's begin
        f"the normal equations of {P} parameters": 8 * sum(second_order_sizes(plan, dtype).values()),
        f"the activations of {plan.block * plan.width} rows": item * block * (1 if in_panels else 3),
        f"the losses of {epochs} 'epochs'": 8 * ((3 + resumed) * history + 3 * sizes["validation_loss"]),
    }
