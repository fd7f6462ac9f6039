"""What a training leaves behind: its result, the state that a later one goes on from, and the file of both."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbp import checkpoint, checks
from fastbp import settings as settings_of
from fastbp.network import Network
from fastbp.settings import Settings
from fastbp.workspace import (
    BATCH_WEIGHT,
    EPOCH,
    ERROR,
    FACTOR,
    HISTORY,
    LOSS,
    MISFIT,
    PANEL,
    POSITION_PLACES,
    POWER1,
    POWER2,
    ROW,
    TOTALS_PLACES,
    VALIDATION_MISFIT,
    WEIGHT,
    Memory,
    Plan,
    slots,
    state_sizes,
)

Array = NDArray[Any]

STATE = ("first", "second", "best", "position", "totals")  # of a Memory, beside the parameters


class State(NamedTuple):
    """What `resume` goes on from: the settings, and copies of the memory at the end of the last epoch."""

    settings: Settings
    params: Array
    arrays: dict[str, Array]  # by the names of STATE and HISTORY


class TrainResult(NamedTuple):
    """What `train` and `resume` return.

    Attributes
    ----------
    network : Network
        The trained network.
    loss : ndarray of shape (epochs,)
        Mean loss of a row in each epoch, each batch before its update, and with the penalty of `l2`; float64.
    error : ndarray of shape (epochs,)
        Mean absolute difference between target and prediction, measured likewise; float64.
    validation_loss, validation_error : ndarray of shape (epochs,) or None
        The same of the rows for validation after each epoch, without penalty.
    validation_score : ndarray of shape (epochs,) or None
        Their share that is predicted right, all outputs of a row; for numbers R^2, the mean over the outputs, of which
        one whose targets are all the same counts as 0. NaN if all are such, as they are in a single row.
    best_epoch : int or None
        Epoch, counted from 1, in which the validation was best; with `patience` the network has its weights.
    stopped : {"epochs", "patience", "plateau", "time", "callback", "tolerance", "evaluations"}
        Why training ended: all epochs were done, `patience` was over, the schedule was at its minimum, the time limit
        was reached, the callback returned True, or L-BFGS was within a tolerance or had made its evaluations.
    seed : int
        What seeded weights, orders and dropout; the same seed repeats the run bit by bit.
    seconds : float
        Time of the training itself.
    compile_seconds : float
        Time to import Numba and to compile the kernels or load them from disk; almost nothing after the first call of
        a process.
    state : State
        What `resume` goes on from.
    """

    network: Network
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    validation_loss: NDArray[np.float64] | None
    validation_error: NDArray[np.float64] | None
    validation_score: NDArray[np.float64] | None
    best_epoch: int | None
    stopped: str
    seed: int
    seconds: float
    compile_seconds: float
    state: State

    def save(self, path: checkpoint.Path) -> None:
        """Save network, settings and the state of the optimiser to a file from which `resume` goes on.

        Parameters
        ----------
        path : str or os.PathLike
            Exactly the name of the file; written as `Network.save` writes.

        Raises
        ------
        DataError
            If a parameter of the network is not finite, or `state` is not what a training ends with, so that `resume`
            would refuse the file.
        OSError
            If the file cannot be written; the old one is untouched then.
        ParameterError
            If `path` contains the character NUL.
        ParameterTypeError
            If `path` is not a str or os.PathLike.

        Examples
        --------
        >>> from fastbp import resume, train
        >>> X, y = [[0.0], [1.0]], [1.0, 0.0]
        >>> train(X, y, epochs=5, seed=0).save("training.npz")
        >>> bool((resume("training.npz", X, y, epochs=5).loss == train(X, y, epochs=10, seed=0).loss).all())
        True
        """
        checks.parameters(self.network.params, self.network.sizes, self.network.bias)
        state = own_state(self)
        network, arrays = self.network._to_file()
        metadata = {"kind": "training", "network": network, "settings": settings_of.to_file(state.settings)}
        checkpoint.write(path, metadata, {**arrays, "last": state.params, **state.arrays})


class EpochState(NamedTuple):
    """What a callback is shown. Nothing of it can be written to.

    Attributes
    ----------
    epoch : int
        Epochs done.
    network : Network
        The network as it is now.
    loss, error : ndarray of shape (epoch,)
        As in `TrainResult`.
    validation_loss, validation_error : ndarray of shape (epoch,) or None
        As in `TrainResult`.
    """

    epoch: int
    network: Network
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    validation_loss: NDArray[np.float64] | None
    validation_error: NDArray[np.float64] | None


def history(plan: Plan, memory: Memory) -> dict[str, Array]:
    """Losses of the epochs done, views; those of the validation only if there is one."""
    names = HISTORY if plan.validation_rows else HISTORY[:2]
    return {name: getattr(memory, name)[: memory.position[EPOCH]] for name in names}


def result_of(
    network: Network,
    settings: Settings,
    plan: Plan,
    memory: Memory,
    stopped: str,
    seconds: float,
    compile_seconds: float,
) -> TrainResult:
    """Copy what is to be kept, and restore the weights of the best epoch."""
    losses = {name: array.copy() for name, array in history(plan, memory).items()}
    # Copies of their own: what is done to the losses of a result must not show when it is resumed.
    arrays = {name: array.copy() for name, array in losses.items()}
    arrays |= {name: getattr(memory, name).copy() for name in STATE}
    state = State(settings, memory.params.copy(), arrays)
    best_epoch, score = None, None
    if plan.validation_rows:
        misfit = losses["validation_misfit"]
        score = scored(misfit, plan.spread)
        best_epoch = best_of(misfit if plan.watched == VALIDATION_MISFIT else losses["validation_loss"])
        if best_epoch and plan.keep_best:
            memory.params[:] = memory.best
    return TrainResult(
        network, losses["loss"], losses["error"], losses.get("validation_loss"), losses.get("validation_error"),
        score, best_epoch, stopped, settings.seed, seconds, compile_seconds, state,
    )  # fmt: skip


def scored(misfit: Array, spread: Array) -> Array:
    """Return the scores of the validation."""
    outputs = spread.size
    constant = outputs - np.count_nonzero(spread)  # their R^2 counts as 0, and alone it does not exist
    return 1 - misfit - (0 if not constant else constant / outputs if constant < outputs else np.nan)


def best_of(watched: Array) -> int | None:
    """Return the epoch, counted from 1, in which a figure is least."""
    finite = np.isfinite(watched)  # predictions for other rows may overflow where those of the training do not
    return 1 + int(np.argmin(np.where(finite, watched, np.inf))) if finite.any() else None


def seen(network: Network, plan: Plan, memory: Memory) -> EpochState:
    """Show the present state, read-only."""
    shown, losses = network.copy(), history(plan, memory)
    for array in (shown._params, *losses.values()):
        array.flags.writeable = False
    first_four = [losses.get(name) for name in HISTORY[:4]]
    return EpochState(int(memory.position[EPOCH]), shown, *first_four)  # type: ignore[arg-type]


def load(path: checkpoint.Path) -> tuple[Network, State]:
    """Return what `TrainResult.save` wrote, everything in it checked as `train` checks it."""
    metadata, arrays = checkpoint.read(path)
    with checkpoint.blaming(path):
        if metadata.get("kind") != "training" or metadata.keys() != {"kind", "network", "settings"}:
            raise ValueError("it does not hold a training")
        network = Network._from_file(metadata["network"], {"params": arrays.pop("params")})
        told = settings_of.from_file(len(network.sizes) - 2, network.params.dtype, metadata["settings"])
        state = State(told, arrays.pop("last"), arrays)
        _check_arrays(network, state)
        return network, state


def own_state(result: TrainResult) -> State:
    """Return a copy of the state of a result, checked like that of a file: its arrays may have been written to."""
    try:
        told, params, arrays = result.state
        network = result.network
        checked = settings_of.rechecked(len(network.sizes) - 2, network.params.dtype, told)
        state = State(checked, np.array(params), {name: np.array(array) for name, array in arrays.items()})
        _check_arrays(network, state)
        return state
    except Exception as error:  # it may hold anything
        raise checks.DataError(f"must be as a training left it, but {error}", "result.state") from error


def _check_arrays(network: Network, state: State) -> None:
    """Raise nearly anything unless these are the arrays of a training at the end of an epoch."""
    last, arrays, dtype = state.params, state.arrays, network.params.dtype
    checks.parameters(last, network.sizes, network.bias)
    validated = "validation_loss" in arrays
    names = {*STATE, *(HISTORY if validated else HISTORY[:2])}
    if arrays.keys() != names or last.dtype != dtype:
        raise ValueError("arrays are missing, or there are others")
    P = last.size
    kept = P if validated and state.settings.patience is not None else 0
    done = arrays["position"][EPOCH] if arrays["position"].size else -1
    optimizer = state.settings.optimizer
    first, second = state_sizes(optimizer.code, slots(optimizer, np.float64), P)
    shapes = {"first": first, "second": second, "best": kept, "position": POSITION_PLACES, "totals": TOTALS_PLACES}
    for name, array in arrays.items():
        if array.shape != (shapes.get(name, done),):
            raise ValueError(f"{name!r} has shape {array.shape}")
        expected = np.int64 if name == "position" else dtype if name in ("first", "second", "best") else np.float64
        if array.dtype != expected or (name in ("first", "second", "best") and not np.isfinite(array).all()):
            raise ValueError(f"{name!r} has dtype {array.dtype} or values that are not finite")
    position, totals = arrays["position"], arrays["totals"]
    if (position < 0).any() or (position > done).any() or position[[ROW, PANEL]].any():
        raise ValueError("'position' is not the end of an epoch")
    shares = totals[[POWER1, POWER2, FACTOR]]
    sums = totals[[LOSS, ERROR, MISFIT, BATCH_WEIGHT, WEIGHT]]
    if sums.any() or not ((shares >= 0) & (shares <= 1)).all() or np.isnan(totals).any():
        raise ValueError("'totals' are not those of the end of an epoch")
    if (arrays["second"] < 0).any():
        raise ValueError("'second' has values below 0")
