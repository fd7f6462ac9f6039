"""`Trainer`: a training that is kept open, one update at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checkpoint, checks, choices
from fastbp.choices import REDUCTIONS, Optimizer
from fastbp.network import CALL_WORK, Network, engine
from fastbp.workspace import (
    EPOCH,
    POWER1,
    POWER2,
    aligned,
    make_memory,
    make_plan,
    memory_sizes,
    panels_in,
)

Array = NDArray[Any]

STEPS = 1024  # of one lap: kernels take each for an epoch, and memory has a loss for so many
MOST_BATCHES = 64  # numbers of rows that a trainer is prepared for
STATE = ("params", "first", "second", "totals")  # of a Memory: what a step changes


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a trainer was told, checked."""

    optimizer: Optimizer
    mean: bool
    l2: float
    dropout: tuple[float, ...]
    clip_norm: float
    seed: int


class Batch(NamedTuple):
    """What is prepared for one number of rows."""

    x: Array  # (n, inputs), y as it is handed in and weights (n,): views of the rows that are taken
    y: Array
    weights: Array
    take: Callable[[], int]  # what `bind_rows` and `bind` of the back end returned
    run: Callable[[int], int]
    calls: tuple[int, ...]  # blocks of each call of `run`: between them Python attends to Ctrl-C


class Trainer:
    """A training that is kept open: each step makes one update of a network from the rows it is handed.

    For learning from a stream, for control and reinforcement learning, or for a training loop of one's own: a step with
    one row takes a few microseconds.

    Parameters
    ----------
    network : Network
        What is trained, in place. Its `params` may be written to between two steps.
    optimizer : {"adam", "sgd", "adamw", "rmsprop", "irprop"} or settings, default "adam"
        As for `fastbp.train`. "irprop" reads the signs of whole gradients, and wants the same rows at each step.
    learning_rate : float, optional
        In place of the optimiser's own; above 0.
    l2 : float, default 0.0
        Penalty of each step, as `fastbp.train` adds it to each batch; at least 0.
    dropout : float or sequence of float, default 0.0
        Share of the units of the hidden layers that each row does without, in [0, 1): one for all layers, or one for
        each.
    clip_norm : float, optional
        Gradients of a greater Euclidean norm are scaled down to this one; above 0.
    reduction : {"mean", "sum"}
        Whether the gradient of a step, penalty and all, is divided by the sum of the weights of its rows.
    seed : int, optional
        Seed of dropout, 0 to 2^32 - 1; by default a fresh one.

    Attributes
    ----------
    network : Network
        The network that is trained.
    steps : int
        Steps made.

    Raises
    ------
    ParameterError
        If a setting is out of range, or is subnormal in the precision of the network.
    ParameterTypeError
        If an argument has the wrong type.
    ResourceError
        If the state of the optimiser would not fit into memory.

    Notes
    -----
    Steps on the batches of an epoch, in their order, give the bits that ``train(..., shuffle=False, epochs=1)`` gives.
    Two cases differ. Dropout: there it depends on the place of a row among those of the epoch, here on the number of
    the step and the place of the row in it. And a last batch that is short, in a network whose layers all have at most
    8 units: if it has no more than 8 rows (16 in float32) and the others have more, its sums have another order there.

    Several threads may share a trainer, whose steps are made one after the other. Trainers of different networks work
    side by side.

    Examples
    --------
    >>> trainer = Trainer(Network((1, 1), init="zeros"), optimizer="sgd", learning_rate=0.1)
    >>> for x in (1.0, 2.0, 3.0) * 100:
    ...     loss = trainer.step([[x]], [2 * x + 1])
    >>> trainer.steps, trainer.network.params.round(3)
    (300, array([2., 1.]))
    """

    def __init__(
        self,
        network: Network,
        *,
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        l2: float = 0.0,
        dropout: Any = 0.0,
        clip_norm: float | None = None,
        reduction: str = "mean",
        seed: int | None = None,
    ) -> None:
        checks.instance("network", network, Network)
        precision, layers = network.params.dtype, len(network.sizes) - 2
        settings = Settings(
            optimizer=checks.optimizer(optimizer, learning_rate),
            mean=checks.choice("reduction", reduction, REDUCTIONS) == "mean",
            l2=checks.number("l2", l2, at_least=0),
            dropout=checks.dropout(dropout, layers),
            clip_norm=0.0 if clip_norm is None else checks.number("clip_norm", clip_norm, above=0),
            seed=checks.seed(seed),
        )
        self._prepare(network, settings, precision)

    def _prepare(self, network: Network, settings: Settings, precision: Any) -> None:
        """Take the settings, once they fit the precision, and the memory of a training that has made no step."""
        rates = {f"dropout[{layer}]": rate for layer, rate in enumerate(settings.dropout)}
        checks.representable(settings.optimizer, precision)
        checks.normal(precision, l2=settings.l2, huber_delta=network.huber_delta, **rates)
        checks.normal(np.dtype(np.float64), clip_norm=settings.clip_norm)
        params = network._params
        checks.memory(6 * params.nbytes, f"the training of {params.size} parameters")
        plan = make_plan(network, 1, 1, settings.optimizer)
        self._network, self._settings, self._precision, self._steps = network, settings, precision, 0
        self._memory = make_memory(plan, params, STEPS)
        self._saved = self._memory._replace(**{name: getattr(self._memory, name).copy() for name in STATE})
        self._batches: dict[tuple[tuple[int, ...], tuple[int, ...], bool], Batch] = {}
        self._lock = Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Trainer is neither copied nor pickled, but saved by `save` and loaded by `load`")

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self._network

    @property
    def steps(self) -> int:
        """Steps made."""
        return self._steps

    def step(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Make one update from these rows, as one batch.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            One sample a row; finite numbers. Never written to. Arrays in the precision of the network are taken
            fastest.
        y : array_like of shape (n,) or (n, outputs)
            Targets, as `fastbp.train` takes them. Never written to.
        sample_weight : array_like of shape (n,), optional
            Weights of the rows, at least 0. The mean loss is the weighted one.

        Returns
        -------
        float
            Mean loss of a row before the update, with the penalty of `l2`.

        Raises
        ------
        DataError
            If shapes do not fit the network, a value or a parameter is not finite, or a label is out of range.
        ParameterTypeError
            If an argument is not an array of numbers.
        ResourceError
            If what the step computes with would not fit into memory.
        DivergenceError
            If the loss, the weights or what the optimiser keeps of the gradients cease to be finite. Its `epoch` is the
            number of the step.

        Notes
        -----
        Whatever is raised, Ctrl-C too, the step was not made: network and optimiser are as they were before.

        Examples
        --------
        >>> trainer = Trainer(Network((2, 1), init="zeros"), optimizer="sgd", learning_rate=0.5)
        >>> trainer.step([[1.0, 2.0]], [3.0])
        4.5
        >>> trainer.network.params
        array([1.5, 3. , 1.5])
        """
        batches, precision, weights = self._batches, self._precision, None
        if not (
            type(X) is type(y) is np.ndarray
            and sample_weight is None
            and X.dtype == y.dtype == precision
            and (X.shape, y.shape, False) in batches
        ):
            X, y, weights = self._checked(X, y, sample_weight)
        with self._lock:
            batch = batches.get((X.shape, y.shape, weights is not None)) or self._batch(len(X), weights is not None)
            batch.x[...] = X
            batch.y[...] = y
            if weights is not None:
                batch.weights[...] = weights
            compute, steps = self._compute, self._steps
            while batch.take() == compute.REFUSED:
                self._refuse(batch)
            try:
                for blocks in batch.calls:
                    status = batch.run(blocks)
                if status == compute.DIVERGED:
                    raise checks.DivergenceError(steps + 1)
                loss = self._memory.loss.item(steps % STEPS)
                self._steps = steps + 1
                if self._steps % STEPS == 0:
                    self._begin_lap()
            except BaseException:
                self._restore(steps)
                raise
        return loss

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Array, Array, Array | None]:
        """Return rows as `train` takes them. It runs code of the caller's, and must not hold the lock."""
        network, precision = self._network, self._precision
        X = checks.features(X, precision, network.sizes[0])
        y = checks.targets(y, network.loss, len(X), network.sizes[-1], precision)
        return X, y, None if sample_weight is None else checks.row_weights(sample_weight, len(X), precision)

    def _batch(self, n: int, weighted: bool) -> Batch:
        """Prepare for steps of so many rows."""
        network, settings, precision, memory = self._network, self._settings, self._precision, self._memory
        inputs, outputs = network.sizes[0], network.sizes[-1]
        plan = make_plan(
            network, n, n, settings.optimizer, mean=settings.mean, weighted=weighted, l2=settings.l2,
            clip_norm=settings.clip_norm, dropout=settings.dropout,
            seed=settings.seed << 31 | (self._steps // STEPS) % 2**31,  # an epoch alone would be too short a counter
        )  # fmt: skip
        features, sizes = inputs + outputs + 1, memory_sizes(plan, precision, 1)
        laid_out = panels_in(n, plan) * plan.width * features
        checks.memory(precision.itemsize * (n * features + laid_out + sum(sizes.values())), f"a step of {n} rows")
        own = make_memory(plan, memory.params, 0)._replace(
            gradient=memory.gradient, first=memory.first, second=memory.second, position=memory.position,
            totals=memory.totals, loss=memory.loss, error=memory.error, data=aligned(laid_out, precision),
            order=np.arange(n),
        )  # fmt: skip
        rows = aligned(n * features, precision).reshape(n, features)
        rows[:, -1] = 1
        compute, flat = self._compute, rows.ravel()
        most = max(1, CALL_WORK // (3 * plan.block * plan.width * network._work()))
        full, rest = divmod(plan.blocks_per_epoch, most)
        batch = Batch(
            x=rows[:, :inputs],
            y=rows[:, inputs:-1],
            weights=rows[:, -1],
            take=compute.bind_rows(plan, own, self._saved, flat),
            run=compute.bind(plan, own, own.data if compute.PANELS else flat, flat[:0]),
            calls=(most,) * full + (rest,) * (rest > 0),
        )
        if rows.size <= CALL_WORK // MOST_BATCHES:  # to prepare for more takes a small share of their step
            batches = self._batches
            while len(batches) >= MOST_BATCHES:
                del batches[next(iter(batches))]
            batches[(n, inputs), (n, outputs), weighted] = batch
            if outputs == 1:
                batches[(n, inputs), (n,), weighted] = batch._replace(y=batch.y[:, 0])
        return batch

    @property
    def _compute(self) -> Any:
        return engine("numba")

    def _refuse(self, batch: Batch) -> None:
        """Say what is wrong with the rows or the parameters, unless another thread has put it right meanwhile."""
        network = self._network
        checks.parameters(network.params, network.sizes, network.bias)
        checks.finite("X", batch.x, self._precision)
        checks.targets(batch.y, network.loss, len(batch.x), network.sizes[-1], self._precision)

    def _begin_lap(self) -> None:
        """Count the steps from 0 again, and draw for dropout from the stream of the next lap."""
        self._memory.position[EPOCH] = 0
        if self._settings.dropout:
            self._batches.clear()

    def _restore(self, steps: int) -> None:
        """Return to the state before a step, the last that was begun."""
        memory = self._memory
        for name in STATE:
            getattr(memory, name)[:] = getattr(self._saved, name)
        memory.gradient[:] = 0
        memory.position[:] = 0
        memory.position[EPOCH] = steps % STEPS
        self._steps = steps

    def save(self, path: checkpoint.Path) -> None:
        """Save network, settings and the state of the optimiser to a file that `Trainer.load` reads.

        Parameters
        ----------
        path : str or os.PathLike
            Exactly the name of the file; written as `Network.save` writes.

        Raises
        ------
        DataError
            If a parameter of the network is not finite.
        OSError
            If the file cannot be written; the old one is untouched then.
        ParameterError
            If `path` contains the character NUL.
        ParameterTypeError
            If `path` is not a str or os.PathLike.

        Examples
        --------
        >>> trainer = Trainer(Network((1, 1), init="zeros"))
        >>> loss = trainer.step([[1.0]], [1.0])
        >>> trainer.save("trainer.npz")
        >>> Trainer.load("trainer.npz").step([[1.0]], [1.0]) == trainer.step([[1.0]], [1.0])
        True
        """
        settings = dataclasses.asdict(self._settings)
        settings["optimizer"] = {"class": type(self._settings.optimizer).__name__, **settings["optimizer"]}
        with self._lock:
            self._network._checked()
            network, arrays = self._network._to_file()
            memory, steps = self._memory, self._steps
            kept = {"first": memory.first, "second": memory.second, "powers": memory.totals[[POWER1, POWER2]]}
            arrays = {name: array.copy() for name, array in {**arrays, **kept}.items()}
        metadata = {"kind": "trainer", "network": network, "settings": settings, "steps": steps}
        checkpoint.write(path, metadata, arrays)

    @classmethod
    def load(cls, path: checkpoint.Path) -> Trainer:
        """Return the trainer of a file written by `save`, with a network of its own.

        The file is checked before it is believed, as `Network.load` does.

        Parameters
        ----------
        path : str or os.PathLike
            Exactly the name of the file.

        Returns
        -------
        Trainer
            Its steps have the bits that those of the saved one would have had.

        Raises
        ------
        CheckpointError
            If the file is damaged, from a later version, or not one of `Trainer.save`.
        OSError
            If the file cannot be read.
        ParameterError
            If `path` contains the character NUL.
        ParameterTypeError
            If `path` is not a str or os.PathLike.
        ResourceError
            If the file or the trainer does not fit into memory.

        Examples
        --------
        >>> Trainer(Network((1, 1), init="zeros")).save("trainer.npz")
        >>> Trainer.load("trainer.npz").steps
        0
        """
        metadata, arrays = checkpoint.read(path)
        with checkpoint.blaming(path):
            if metadata.get("kind") != "trainer" or metadata.keys() != {"kind", "network", "settings", "steps"}:
                raise ValueError("it does not hold a trainer")
            network = Network._from_file(metadata["network"], {"params": arrays.pop("params")})
            settings = _settings_from_file(metadata["settings"], len(network.sizes) - 2)
            steps = checks.count("steps", metadata["steps"], 0, 2**53)
            _check_state(arrays, network.params)
            trainer = object.__new__(cls)
            trainer._prepare(network, settings, network.params.dtype)
            memory = trainer._memory
            memory.first[:], memory.second[:] = arrays["first"], arrays["second"]
            memory.totals[[POWER1, POWER2]] = arrays["powers"]
            memory.position[EPOCH] = steps % STEPS
            trainer._steps = steps
            return trainer


def _settings_from_file(saved: dict[str, Any], layers: int) -> Settings:
    """Return the checked settings that `save` described, or raise nearly anything."""
    classes = {kind.__name__: kind for kind in choices.OPTIMIZERS.values()}
    fields = {key: value for key, value in saved["optimizer"].items() if key != "class"}
    given = Settings(**{**saved, "optimizer": classes[saved["optimizer"]["class"]](**fields)})
    return Settings(
        optimizer=checks.optimizer(given.optimizer),
        mean=checks.flag("mean", given.mean),
        l2=checks.number("l2", given.l2, at_least=0),
        dropout=checks.dropout(given.dropout or 0.0, layers),
        clip_norm=checks.number("clip_norm", given.clip_norm, at_least=0),
        seed=checks.count("seed", given.seed, 0, 2**32 - 1),
    )


def _check_state(arrays: dict[str, Array], params: Array) -> None:
    """Raise ValueError unless these are the arrays of an optimiser."""
    forms = {"first": (params.shape, params.dtype), "second": (params.shape, params.dtype), "powers": ((2,), float)}
    if arrays.keys() != forms.keys():
        raise ValueError("arrays are missing, or there are others")
    for name, (shape, dtype) in forms.items():
        if arrays[name].shape != shape or arrays[name].dtype != dtype or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name!r} has another shape or dtype, or values that are not finite")
    if (arrays["second"] < 0).any() or (arrays["powers"] < 0).any() or (arrays["powers"] > 1).any():
        raise ValueError("'second' or 'powers' is out of range")
