"""`Trainer`: the one place where a training lives, for whole epochs or for one update at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checkpoint, checks, choices
from fastbp import settings as settings_of
from fastbp.choices import Optimizer
from fastbp.data import Data, bytes_needed, split
from fastbp.network import CALL_WORK, Network, engine
from fastbp.reference import rate_factor
from fastbp.results import STATE, State
from fastbp.settings import Settings
from fastbp.threads import Team, best, cores, is_alone, shared
from fastbp.threads import bind as bind_team
from fastbp.workspace import (
    CONVERGED,
    DIVERGED,
    EPOCH,
    EXHAUSTED,
    FACTOR,
    FINISHED,
    HISTORY,
    POWER1,
    POWER2,
    REFUSED,
    STALE,
    STOPPED,
    TRAINING_LOSS,
    VALIDATION_LOSS,
    VALIDATION_MISFIT,
    Memory,
    Plan,
    address,
    aligned,
    begin,
    make_memory,
    make_plan,
    memory_sizes,
    panels_in,
    panels_of,
    repeated,
)

Array = NDArray[Any]

CHUNK_SECONDS = 0.02  # how long Ctrl-C may have to wait
STEPS = 1024  # of one lap: kernels take each for an epoch, and memory has a loss for so many
MOST_BATCHES = 64  # numbers of rows that a trainer is prepared for
SMALL = 2**12  # parameters and epochs of a training whose preparations are kept for the next
MOST_IDLE = 8  # of them
STEPPED = ("params", "first", "second", "totals")  # of a Memory: what a step changes


class Course(NamedTuple):
    """What is prepared for the epochs of a training on the same rows."""

    plan: Plan
    memory: Memory
    panels: Array  # the rows, laid out
    run: Any  # what `bind` of the back end returned
    epochs: int  # at whose end it ends, from the first one on
    compute: ModuleType
    compile_seconds: float
    team: Team | None  # of threads, which end with the training


class Batch(NamedTuple):
    """What is prepared for steps with one number of rows."""

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
    threads : int or "auto", default 1
        As for `fastbp.train`; they begin with the first step that takes them, and end with the trainer.

    Attributes
    ----------
    network : Network
        The network that is trained.
    steps : int
        Steps made.

    Raises
    ------
    ParameterError
        If a setting is out of range, or is subnormal in the precision of the network, or the optimiser is one of second
        order, which makes more of its rows than one step.
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
        threads: int | str = 1,
    ) -> None:
        checks.instance("network", network, Network)
        told = settings_of.checked(
            len(network.sizes) - 2, network.params.dtype, optimizer=optimizer, learning_rate=learning_rate, l2=l2,
            dropout=dropout, clip_norm=clip_norm, reduction=reduction, seed=seed,
        )  # fmt: skip
        self._begin(network, told, None, checks.threads(threads))
        self._open()

    @classmethod
    def _of(cls, network: Network, settings: Settings, state: State | None, threads: int | None = 1) -> Trainer:
        """Return the trainer of a training with checked settings, at its beginning or in the state it was left in."""
        trainer = object.__new__(cls)
        trainer._begin(network, settings, state, threads)
        return trainer

    def _begin(self, network: Network, settings: Settings, state: State | None, threads: int | None) -> None:
        levels = {f"quantiles[{i}]": level for i, level in enumerate(network.quantiles)}
        penalty = network.crossing_penalty
        checks.normal(network.params.dtype, huber_delta=network.huber_delta, crossing_penalty=penalty, **levels)
        self._network, self._settings, self._state = network, settings, state
        self._precision, self._steps, self._lock = network.params.dtype, 0, Lock()
        self._threads = threads
        self._team: Team | None = None

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

    def _course(self, data: Data, epochs: int) -> Course:
        """Lay the data out, and prepare to train on them for so many epochs from where the training is."""
        network, settings, state = self._network, self._settings, self._state
        # Now, and no sooner: converting X and y runs code of the caller's, which may write to the network.
        params = network.params
        checks.parameters(params, network.sizes, network.bias, writeable=True)
        if params.dtype != data.X.dtype:
            raise checks.DataError(f"must stay {data.X.dtype}, got {params.dtype}", "network.params")
        plan = self._plan(data, epochs)
        count = self._count(plan, -(-plan.rows // plan.batch_size) * epochs)
        if count == 1 and self._is_short(plan) and (course := _idle.pop((plan, epochs), None)) is not None:
            return _again(course, params, data)
        share = None
        if count > 1 and plan.second_order:
            plan = plan._replace(block=count * plan.block)
        elif count > 1:
            plan, share = shared(plan, self._precision, count)
        self._check_memory(plan, data, epochs)
        rows, held_rows, spread = split(settings, network.loss, network.quantiles, data)
        began = time.perf_counter()
        compute = engine(settings.backend)
        compile_seconds = time.perf_counter() - began
        if not compute.PANELS:
            plan = _in_whole_batches(plan)
        if spread:
            plan = plan._replace(spread=np.array(spread))
        panels = panels_of(rows, plan) if compute.PANELS and not plan.shuffled else rows.ravel()
        validation = panels[:0]
        if held_rows is not None:
            once = plan._replace(batch_size=len(held_rows), few=0)
            validation = panels_of(held_rows, once) if compute.PANELS else held_rows.ravel()
        del rows, held_rows
        done = self._done
        memory = make_memory(plan, params, done + epochs)
        if state is not None:
            for name in STATE:
                getattr(memory, name)[:] = state.arrays[name]
            for name in HISTORY:
                getattr(memory, name)[:done] = state.arrays.get(name, ())
        began = time.perf_counter()
        team = None
        if plan.second_order and compute.PANELS:
            team = Team(count) if count > 1 else None
            if plan.optimizer == choices.LIMITED_BFGS:
                from fastbp import lbfgs

                run = lbfgs.bind(plan, memory, panels, validation)
            else:
                from fastbp import marquardt

                run = marquardt.bind(plan, memory, panels, validation, team)
        elif share is None or not compute.PANELS:
            run = compute.bind(plan, memory, panels, validation)
        else:
            team = Team(count)
            run = bind_team(plan, memory, share, panels, validation, team)
        run(0)
        compile_seconds += time.perf_counter() - began
        return Course(plan, memory, panels, run, done + epochs, compute, compile_seconds, team)

    def _count(self, plan: Plan, batches: int) -> int:
        """Return how many threads are to walk so many batches."""
        if (
            self._threads == 1
            or plan.optimizer == choices.LIMITED_BFGS
            or self._settings.backend != "numba"
            or is_alone(plan, self._precision)
        ):
            return 1
        return self._threads or best(plan, self._precision, batches)

    def _leave(self, course: Course) -> None:
        """Leave what was prepared to a later training of the same plan, where to prepare it takes longer than to run.

        Nobody else may have it: a callback was shown the losses in its memory.
        """
        small = max(course.plan.parameters, course.epochs) <= SMALL
        if small and self._is_short(course.plan) and course.compute.PANELS and course.team is None:
            while len(_idle) >= MOST_IDLE:
                _idle.pop(next(iter(_idle)), None)
            _idle[course.plan, course.epochs] = course

    def _is_short(self, plan: Plan) -> bool:
        """Whether the training is a new one of one panel of rows, with nothing to be drawn or computed for them."""
        told = self._settings
        drawn = plan.shuffled or plan.validation_rows or told.class_weight is not None
        one = plan.rows <= plan.width and panels_in(plan.rows, plan) <= 1
        return one and not plan.second_order and told.backend == "numba" and self._state is None and not drawn

    @property
    def _done(self) -> int:
        """Epochs that the training began with."""
        return 0 if self._state is None else int(self._state.arrays["position"][EPOCH])

    def _plan(self, data: Data, epochs: int) -> Plan:
        """Plan the training, and refuse what cannot be."""
        network, settings, state, precision = self._network, self._settings, self._state, self._precision
        n, held = data.rows, data.held
        batch_size = batch_of(settings, n)
        _check_loss(settings.optimizer, network.loss)
        shuffled = settings.shuffle and batch_size < n
        plan = make_plan(
            network, n, batch_size, settings.optimizer, mean=settings.mean,
            weighted=data.weights is not None or settings.class_weight is not None, output_weights=data.output_weights,
            shuffled=shuffled, seed=settings.seed if shuffled or settings.dropout else 0, l2=settings.l2,
            clip_norm=settings.clip_norm, dropout=settings.dropout, schedule=settings.schedule, validation_rows=held,
            watched=watched_by(settings, held), patience=-1 if settings.patience is None else settings.patience,
            min_delta=settings.min_delta, keep_best=bool(held) and settings.patience is not None,
        )  # fmt: skip
        done = self._done
        if state is not None and epochs:
            with np.errstate(under="ignore"):
                factor = rate_factor(plan.schedule, plan.schedule_settings, done, float(state.arrays["totals"][FACTOR]))
            if factor * settings.optimizer.learning_rate < np.finfo(precision).tiny:
                raise checks.ParameterError(
                    f"must be 0, got {epochs}: after {done} epochs {settings.schedule} has brought the learning "
                    "rate to 0, and no weight would move",
                    "epochs",
                )
        return plan

    def _check_memory(self, plan: Plan, data: Data, epochs: int) -> None:
        """Refuse what does not fit into memory, and say what most of it is for."""
        in_panels, resumed = self._settings.backend == "numba", self._state is not None
        shown = plan if in_panels else _in_whole_batches(plan)
        needed = bytes_needed(shown, in_panels, self._settings, data, self._done + epochs, resumed)
        checks.memory(sum(needed.values()), f"this training, most of it for {max(needed, key=needed.__getitem__)},")

    def _train(self, course: Course, attend: Callable[[int], str | None], every: int | None = None) -> tuple[int, str]:
        """Train to the end of the course, in calls of some 20 ms, so that Python can attend to Ctrl-C.

        How it is cut shows in no result. In between, and after each `every` epochs, `attend(epoch)` is called with the
        epochs done; what it returns ends the training. Returns 0, or the epoch, counted from 1, that did not end with
        finite numbers (memory then holds the epoch before), and why the training ended.
        """
        plan, memory, run, epochs = course.plan, course.memory, course.run, course.epochs
        per_epoch, first = plan.blocks_per_epoch, int(memory.position[EPOCH])
        ends = {CONVERGED: "tolerance", EXHAUSTED: "evaluations"}
        blocks, left = 1, 0  # blocks of the next chunk; blocks left until a chunk may begin that can be taken back
        epoch, start = first, [array.copy() for array in memory.state]
        while epoch < epochs:
            if left == 0:
                whole = min(max(1, blocks // per_epoch), epochs - epoch)
                left = per_epoch * (min(whole, every - (epoch - first) % every) if every else whole)
                if epoch > first:
                    for array, saved in zip(memory.state, start, strict=True):
                        saved[:] = array
            chunk = min(blocks, left)
            began = time.perf_counter()
            status = run(chunk)
            seconds = time.perf_counter() - began
            left -= chunk
            epoch = int(memory.position[EPOCH])
            if status == DIVERGED:
                for array, saved in zip(memory.state, start, strict=True):
                    array[:] = saved
                run((epoch - 1 - int(memory.position[EPOCH])) * per_epoch)
                return epoch, "epochs"
            # Eight times as many at most: of the shortest chunks the clock tells little.
            blocks = max(1, min(8 * chunk, int(chunk * CHUNK_SECONDS / max(seconds, 1e-9))))
            if left == 0 or status != FINISHED:
                asked = attend(epoch)
                if status == STOPPED:
                    return 0, "patience" if memory.position[STALE] > plan.patience >= 0 else "plateau"
                if ended := ends.get(status, asked):
                    return 0, ended
        return 0, "epochs"

    def _open(self) -> None:
        """Prepare for steps, once memory has been seen to suffice."""
        params, settings, state = self._network._params, self._settings, self._state
        if settings.optimizer.code in choices.SECOND_ORDER:
            raise checks.ParameterError(
                f"must be one that makes a step of each gradient, got {type(settings.optimizer).__name__}", "optimizer"
            )
        checks.memory(6 * params.nbytes, f"the training of {params.size} parameters")
        memory = make_memory(make_plan(self._network, 1, 1, settings.optimizer), params, STEPS)
        if state is not None:
            memory.first[:], memory.second[:] = state.arrays["first"], state.arrays["second"]
            memory.totals[[POWER1, POWER2]] = state.arrays["totals"][[POWER1, POWER2]]
        self._memory = memory
        self._saved = memory._replace(**{name: getattr(memory, name).copy() for name in STEPPED})
        self._batches: dict[tuple[tuple[int, ...], tuple[int, ...], int], Batch] = {}

    def step(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Make one update from these rows, as one batch.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            One sample a row; finite numbers. Never written to. Arrays in the precision of the network are taken
            fastest.
        y : array_like of shape (n,) or (n, outputs)
            Targets, as `fastbp.train` takes them. Never written to.
        sample_weight : array_like of shape (n,) or (n, targets), optional
            Weights of the rows, at least 0, or of each target in them, as `fastbp.train` takes them.

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
            and (X.shape, y.shape, 0) in batches
        ):
            X, y, weights = self._checked(X, y, sample_weight)
        with self._lock:
            kind = 0 if weights is None else weights.ndim
            batch = batches.get((X.shape, y.shape, kind)) or self._batch(len(X), y.shape[1], kind)
            batch.x[...] = X
            batch.y[...] = y
            if weights is not None:
                batch.weights[...] = weights if kind == 1 else repeated(weights, self._network.sizes[-1])
            steps = self._steps
            while batch.take() == REFUSED:
                self._refuse(batch)
            try:
                for blocks in batch.calls:
                    status = batch.run(blocks)
                if status == DIVERGED:
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
        return X, *checks.weighted_targets(y, sample_weight, network.loss, len(X), network.sizes[-1], precision)

    def _batch(self, n: int, columns: int, kind: int) -> Batch:
        """Prepare for steps of so many rows, with y of so many columns, and weights of so many dimensions, if any."""
        network, settings, precision, memory = self._network, self._settings, self._precision, self._memory
        inputs, outputs = network.sizes[0], network.sizes[-1]
        plan = make_plan(
            network, n, n, settings.optimizer, mean=settings.mean, weighted=kind > 0, output_weights=kind == 2,
            l2=settings.l2, clip_norm=settings.clip_norm, dropout=settings.dropout,
            seed=settings.seed << 31 | (self._steps // STEPS) % 2**31,  # an epoch alone would be too short a counter
        )  # fmt: skip
        share = None
        if self._count(plan, 1) > 1:  # a step that takes less than to wake a thread gains nothing
            self._team = self._team or Team(self._threads or cores())
            plan, share = shared(plan, precision, self._team.threads)
        features, sizes = plan.features, memory_sizes(plan, precision, 1)
        laid_out = panels_in(n, plan) * plan.width * features
        checks.memory(precision.itemsize * (n * features + laid_out + sum(sizes.values())), f"a step of {n} rows")
        own = make_memory(plan, memory.params, 0)._replace(
            gradient=memory.gradient, first=memory.first, second=memory.second, position=memory.position,
            totals=memory.totals, loss=memory.loss, error=memory.error, data=aligned(laid_out, precision),
            order=np.arange(n),
        )  # fmt: skip
        rows = aligned(n * features, precision).reshape(n, features)
        rows[:, inputs + outputs :] = 1
        compute, flat = self._compute, rows.ravel()
        if share is None or self._team is None:
            run = compute.bind(plan, own, own.data if compute.PANELS and n > plan.few else flat, flat[:0])
        else:
            run = bind_team(plan, own, share, own.data, flat[:0], self._team)
        most = max(1, CALL_WORK // (3 * plan.block * plan.width * network._work()))
        full, rest = divmod(plan.blocks_per_epoch, most)
        batch = Batch(
            x=rows[:, :inputs],
            y=rows[:, inputs : inputs + (outputs if columns == 1 and network.quantiles else columns)],
            weights=rows[:, -1] if kind < 2 else rows[:, inputs + outputs :],
            take=compute.bind_rows(plan, own, self._saved, flat),
            run=run,
            calls=(most,) * full + (rest,) * (rest > 0),
        )
        if rows.size <= CALL_WORK // MOST_BATCHES:  # to prepare for more takes a small share of their step
            batches = self._batches
            while len(batches) >= MOST_BATCHES:
                del batches[next(iter(batches))]
            batches[(n, inputs), (n, columns), kind] = batch
            if columns == 1:
                batches[(n, inputs), (n,), kind] = batch._replace(y=batch.y[:, 0] if outputs == 1 else batch.y.T)
        return batch

    @property
    def _compute(self) -> Any:
        return engine("numba")

    def _refuse(self, batch: Batch) -> None:
        """Say what is wrong with the rows or the parameters, unless another thread has put it right meanwhile."""
        network = self._network
        checks.parameters(network.params, network.sizes, network.bias)
        checks.finite("X", batch.x, self._precision)
        y = batch.y if len(batch.y) == len(batch.x) else batch.y.T
        checks.targets(y, network.loss, len(batch.x), network.sizes[-1], self._precision)

    def _begin_lap(self) -> None:
        """Count the steps from 0 again, and draw for dropout from the stream of the next lap."""
        self._memory.position[EPOCH] = 0
        if self._settings.dropout:
            self._batches.clear()

    def _restore(self, steps: int) -> None:
        """Return to the state before a step, the last that was begun."""
        memory = self._memory
        for name in STEPPED:
            getattr(memory, name)[:] = getattr(self._saved, name)
        memory.gradient[:] = 0
        memory.position[:] = 0
        memory.position[EPOCH] = steps % STEPS
        self._steps = steps

    def _error(self) -> float:
        """Return the mean absolute difference between target and prediction in the last step."""
        return self._memory.error.item((self._steps - 1) % STEPS)

    def _state_now(self, loss: Array, error: Array) -> State:
        """Return the state of the training that was opened from a state, each step an epoch, with all their losses."""
        memory, state = self._memory, cast(State, self._state)
        arrays = {name: array.copy() for name, array in state.arrays.items()}
        arrays |= {"first": memory.first.copy(), "second": memory.second.copy(), "loss": loss, "error": error}
        arrays["position"][EPOCH] = len(loss)
        arrays["totals"][[POWER1, POWER2]] = memory.totals[[POWER1, POWER2]]
        return state._replace(params=memory.params.copy(), arrays=arrays)

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
        settings = settings_of.to_file(self._settings)
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
            told = settings_of.from_file(len(network.sizes) - 2, network.params.dtype, metadata["settings"])
            steps = checks.count("steps", metadata["steps"], 0, 2**53)
            _check_state(arrays, network.params)
            trainer = cls._of(network, told, None)
            trainer._open()
            memory = trainer._memory
            memory.first[:], memory.second[:] = arrays["first"], arrays["second"]
            memory.totals[[POWER1, POWER2]] = arrays["powers"]
            memory.position[EPOCH] = steps % STEPS
            trainer._steps = steps
            return trainer


def batch_of(settings: Settings, n: int) -> int:
    """Return the rows of a batch of n rows, and refuse what the optimiser cannot use."""
    batch_size = n if settings.batch_size is None else min(settings.batch_size, n)
    _check_together(settings, batch_size < n and batch_size)
    return batch_size


def watched_by(settings: Settings, held: int) -> int:
    """Return what early stopping watches where there are so many rows for validation."""
    return TRAINING_LOSS if not held else VALIDATION_LOSS if settings.watch == "loss" else VALIDATION_MISFIT


_idle: dict[tuple[Plan, int], Course] = {}  # small ones, taken out while they are in use


def _again(course: Course, params: Array, data: Data) -> Course:
    """Return the same for other parameters and rows: XOR's is made in 15 us instead of 60."""
    course.run.words[0] = address(params)  # the first field of a memory
    memory, (n, inputs), plan = Memory(params, *course.memory[1:]), data.X.shape, course.plan
    panel = course.panels.reshape(n, -1).T if plan.batch_size <= plan.few else course.panels.reshape(-1, plan.width)
    end = inputs + data.outputs
    panel[:inputs, :n], panel[inputs:end, :n] = data.X.T, repeated(data.y, data.outputs).T
    if data.weights is not None:
        panel[end:, :n] = data.weights if data.weights.ndim == 1 else repeated(data.weights, data.outputs).T
    for array in (memory.gradient, memory.first, memory.second, memory.position, memory.totals):
        array[:] = 0
    begin(plan, memory)
    return course._replace(memory=memory, compile_seconds=0.0)


# Why an optimiser takes all rows at once, and why it needs no rate.
_WHOLE = {"irprop": "reads signs of whole gradients", "lbfgs": "searches along lines of the whole loss"}
_WITHOUT_RATE = {
    "irprop": "needs no rate",
    "lbfgs": "searches for the length of each step",
    "levenberg_marquardt": "damps each step",
}
_CURVED = ("squared_error", "binary_cross_entropy", "cross_entropy", "huber", "poisson")  # losses of Gauss and Newton


def _check_together(settings: Settings, batch_size: int) -> None:
    """Refuse settings that do not go with the optimiser; batches of 0 rows are those of all."""
    kind = type(settings.optimizer)
    name = next(name for name, other in choices.OPTIMIZERS.items() if other is kind)
    if name in _WHOLE and batch_size:
        raise checks.ParameterError(
            f"must be None with the optimizer {name!r}, which {_WHOLE[name]}, got {batch_size}", "batch_size"
        )
    if name in _WITHOUT_RATE and not isinstance(settings.schedule, choices.Constant):
        raise checks.ParameterError(
            f"must be 'constant' with the optimizer {name!r}, which {_WITHOUT_RATE[name]}, "
            f"got {type(settings.schedule).__name__}",
            "schedule",
        )
    if settings.optimizer.code in choices.SECOND_ORDER:
        for setting, why in (("dropout", "compares losses"), ("clip_norm", _WITHOUT_RATE[name])):
            if value := getattr(settings, setting):
                raise checks.ParameterError(
                    f"must be left out with the optimizer {name!r}, which {why}, got {value}", setting
                )


def _check_loss(optimizer: Optimizer, loss: str) -> None:
    """Refuse a loss that does not go with the optimiser."""
    if isinstance(optimizer, choices.LevenbergMarquardt) and loss not in _CURVED:
        raise checks.ParameterError(
            f"must be another with the loss {loss!r}, whose curvature says nothing: 'levenberg_marquardt' goes with "
            f"{', '.join(map(repr, _CURVED))}",
            "optimizer",
        )


def _in_whole_batches(plan: Plan) -> Plan:
    """Return a plan without blocks, for which NumPy has no use."""
    return plan._replace(block=-(-plan.batch_size // plan.width))


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
