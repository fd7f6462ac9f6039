"""`train_many()`: thousands of networks at once, in lanes, on threads, and on the workers of an executor."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import pickle
import platform
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from hashlib import sha256
from queue import SimpleQueue
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checks
from fastbp import data as data_of
from fastbp import settings as settings_of
from fastbp.choices import LOSSES, outputs_of
from fastbp.groups import Outcome, Task, Workshop
from fastbp.network import Network
from fastbp.progress import Progress
from fastbp.threads import cores
from fastbp.train import train

Array = NDArray[Any]

# What a network may be told: what `train` is, but for what concerns the call, and two names of its own.
_TRAIN = {name: each.default for name, each in inspect.signature(train).parameters.items() if name not in ("X", "y")}
_OF_THE_CALL = ("network", "time_limit", "callback", "callback_every", "progress", "backend", "threads")
_OWN = {"rows": None, "validation_rows": None}
_TOLD = {name: default for name, default in _TRAIN.items() if name not in _OF_THE_CALL} | _OWN
_OF_SETTINGS = tuple(
    name for name in inspect.signature(settings_of.checked).parameters
    if name in _TOLD and name not in ("seed", "epochs")
)  # fmt: skip
_SHARED = tuple(name for name in _TOLD if name not in ("seed", *_OWN))
_OF_NETWORK = ("activation", "output", "loss", "huber_delta", "quantiles", "crossing_penalty", "bias", "init")
_DATA = ("validation", "sample_weight", "rows", "validation_rows")  # settings that are large
PARTS = 4  # for each core of this machine that an executor is handed, if not told otherwise
LANES = 16  # of a vector in float32, twice those in float64: a part has a multiple of them
PROBES = 16  # parts that are sent before anybody has answered; each worker that answers is followed by two more


class ManyResult(NamedTuple):
    """What `train_many` returns: of everything there is one for each network, in the order in which they were given.

    Attributes
    ----------
    networks : list of Network
        The trained networks.
    loss : ndarray of shape (epochs, networks)
        Mean loss of a row in each epoch, as in `TrainResult`; NaN after a network's last epoch.
    validation_loss, validation_score : ndarray of shape (epochs, networks) or None
        Of the rows for validation after each epoch, as in `TrainResult`; None if no network has any.
    epochs : ndarray of shape (networks,)
        Epochs that each network was trained for.
    best_epoch : ndarray of shape (networks,)
        Epoch, counted from 1, in which the validation was best; 0 where there is none.
    stopped : list of {"epochs", "patience", "plateau", "tolerance", "evaluations", "diverged", "interrupted"}
        Why each network ended. One that diverged has the weights of its last epoch that ended well, one that was
        interrupted its first.
    seeds : ndarray of shape (networks,)
        What seeded each network.
    seconds, compile_seconds : float
        Time of the training itself; time to compile kernels or load them from disk. An executor's workers compile
        within the first, and the second is 0.
    """

    networks: list[Network]
    loss: NDArray[np.float64]
    validation_loss: NDArray[np.float64] | None
    validation_score: NDArray[np.float64] | None
    epochs: NDArray[np.int64]
    best_epoch: NDArray[np.int64]
    stopped: list[str]
    seeds: NDArray[np.int64]
    seconds: float
    compile_seconds: float

    def predict(self, X: ArrayLike) -> Array:
        """Return what each network predicts.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            One sample a row; finite numbers.

        Returns
        -------
        ndarray of shape (networks, n, outputs)

        Raises
        ------
        DataError
            If X does not fit the networks, or they have different numbers of outputs.

        Examples
        --------
        >>> result = train_many([[0.0], [1.0]], [0.0, 1.0], 3, epochs=5, seed=0)
        >>> result.predict([[0.5]]).shape
        (3, 1, 1)
        """
        outputs = {network.sizes[-1] for network in self.networks}
        if len(outputs) > 1:
            raise checks.DataError(f"must have the same number of outputs, got {sorted(outputs)}", "networks")
        return np.stack([network.predict(X) for network in self.networks])

    def mean(self, X: ArrayLike) -> Array:
        """Return the mean of what the networks predict, (n, outputs): of classes, their mean probabilities."""
        return self.predict(X).mean(axis=0)

    def std(self, X: ArrayLike) -> Array:
        """Return the standard deviation of what the networks predict, (n, outputs), with the divisor `networks`."""
        return self.predict(X).std(axis=0)

    def vote(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the class that most networks predict, (n,), the least of several; with one output 0 or 1.

        Examples
        --------
        >>> result = train_many([[0.0], [1.0]], [0, 1], 5, loss="binary_cross_entropy", learning_rate=0.1, seed=0)
        >>> result.vote([[0.0], [1.0]])
        array([0, 1])
        """
        members = self.predict(X)
        single = members.shape[2] == 1
        classes = (members[..., 0] > 0.5).astype(np.int64) if single else members.argmax(axis=2)
        votes = np.stack([(classes == k).sum(axis=0) for k in range(2 if single else members.shape[2])])
        return votes.argmax(axis=0)


def train_many(
    X: ArrayLike,
    y: ArrayLike,
    networks: int | Sequence[Mapping[str, Any]],
    *,
    threads: int | str = "auto",
    executor: Executor | None = None,
    part: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> ManyResult:
    """Train many networks on the same data, one in each lane of the CPU's vectors: 8 at a time in float64, or 16.

    Parameters
    ----------
    X : array_like of shape (n, inputs)
        One sample a row, held once for all networks; finite numbers. Never written to.
    y : array_like
        Targets, as `fastbp.train` takes them. Never written to.
    networks : int or sequence of dict
        How many networks, which differ by their seeds alone; or for each a dict of what it is told apart from the
        others: any of `settings`, `hidden` among them. Networks of one shape share lanes; one of more than some 2,100
        parameters, or 360 with batches of one row, is trained as by `train`.
    threads : int or "auto", default "auto"
        Threads that share the networks out; "auto" is the number of cores. With an executor those of each part, and
        "auto" is one.
    executor : concurrent.futures.Executor, optional
        Who trains, in parts: a pool of threads or processes, loky's, or ``Client.get_executor()`` of a dask cluster.
        What becomes of a part depends on no worker, so that it may be trained again where one is lost, as dask does.
    part : int, optional
        Networks of a part for the executor, which are cut in the order of their shapes; by default four parts for each
        core of this machine, in multiples of 16, which fill all lanes. Say it for a cluster.
    progress : bool, default False
        Whether to show a bar on stderr that counts the networks that have ended.
    **settings
        What all networks are told: arguments of `fastbp.train` by name, but for `network`, `backend`, `callback`,
        `callback_every`, `time_limit`; and

        rows : array_like of int
            Numbers of the rows to train on, such as a fold's; all by default. They may repeat.
        validation_rows : array_like of int
            Numbers of the rows for validation, in place of `validation`.

        `seed` is that of the first network, and the next one has the next; `sample_weight` are those of all rows of X.

    Returns
    -------
    ManyResult
        The networks, their losses, why each stopped.

    Raises
    ------
    ParameterError, ParameterTypeError, DataError
        As `fastbp.train`, before any network is trained, and if a setting is unknown or concerns the call.
    ResourceError
        If the training would not fit into memory, or a part into that of a worker; it says how many networks would.
    Exception
        What ends a worker or the executor, such as BrokenProcessPool, comes as it is; what waits is cancelled.

    Notes
    -----
    A network has the same bits whatever the number of networks, its place among them, its neighbours, the threads and
    the executor. It agrees with ``train(X, y, ..., seed=seed)`` to rounding (1e-12 in float64 where training is well
    conditioned): both draw the same weights, orders, rows for validation and dropout, but sums over the rows of a batch
    are added here in the order of the rows, there in lanes. Networks that are not for lanes have the bits of `train`.

    A lane that nobody has costs as much as one that is used: a handful of networks is trained faster by `train`, one
    after the other. A network that has stopped gives its lane to the next that waits. One that diverges stops alone.

    Ctrl-C raises KeyboardInterrupt within 50 ms; it and whatever else ends a training has an attribute `result`, a
    ManyResult of what is finished. Parts that an executor's workers are at go on to their end, and nobody hears of
    them.

    Examples
    --------
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> result = train_many(X, y, 20, hidden=4, activation="tanh", batch_size=None, learning_rate=0.1, seed=0)
    >>> result.loss.shape
    (200, 20)
    >>> result = train_many(X, y, [{"l2": 0.0}, {"l2": 0.1, "hidden": 8}], epochs=10, seed=0)
    >>> [network.sizes for network in result.networks]
    [(2, 1), (2, 8, 1)]
    """
    told = _told(networks, settings)
    wanted = checks.threads(threads)
    shown = checks.flag("progress", progress)
    if executor is not None and not isinstance(executor, Executor) and not hasattr(executor, "submit"):
        raise checks.ParameterTypeError(f"must be an Executor, got {type(executor).__name__}", "executor")
    size = None if part is None else checks.count("part", part)
    tasks = _tasks(X, y, told)
    began = time.perf_counter()
    with Progress(len(tasks), shown, "network") as bar:
        most = cores() if executor is None else 1
        workshop = Workshop(tasks, min(wanted or most, len(tasks)), bar.show)
        _check_memory(workshop)
        try:
            if executor is None:
                workshop.run()
            else:
                size = size or LANES * math.ceil(len(tasks) / (LANES * PARTS * cores()))
                _distribute(executor, tasks, X, y, told, settings, workshop, size, bar)
        except BaseException as error:
            error.result = _result(tasks, workshop.outcomes, began, 0.0)  # type: ignore[attr-defined]
            raise
        return _result(tasks, workshop.outcomes, began, workshop.compile_seconds)


# --- what each network is told ----------------------------------------------------------------------------------------


def _told(networks: Any, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all that each network is told."""
    _known(settings, "settings")
    if isinstance(networks, (bool, np.bool_)) or not isinstance(networks, (int, np.integer, Sequence)):
        raise checks.ParameterTypeError(
            f"must be an integer or a sequence of dicts, got {type(networks).__name__}", "networks"
        )
    if isinstance(networks, Sequence):
        for place, own in enumerate(networks):
            if not isinstance(own, Mapping):
                raise checks.ParameterTypeError(f"must be a dict, got {type(own).__name__}", f"networks[{place}]")
            _known(own, f"networks[{place}]")
        each: Sequence[Mapping[str, Any]] = networks
    else:
        each = [{}] * checks.count("networks", networks)
    if not each:
        raise checks.ParameterError("must have at least one network, got an empty sequence", "networks")
    first = checks.seed(settings.get("seed"))
    told = []
    for place, own in enumerate(each):
        seed = own["seed"] if own.get("seed") is not None else (first + place) % 2**32
        told.append(_TOLD | settings | dict(own) | {"seed": seed})
    return told


def _known(told: Mapping[str, Any], where: str) -> None:
    for name in told:
        if name in _OF_THE_CALL:
            raise checks.ParameterError(f"concerns no network of many, got it in {where}", str(name))
        if name not in _TOLD:
            raise checks.ParameterError(f"must be an argument of fastbp.train, got it in {where}", str(name)[:80])


def _tasks(X: Any, y: Any, told: Sequence[dict[str, Any]]) -> list[Task]:
    """Check all that the networks are told, once for what is the same."""
    arrays: dict[Any, tuple[Array, Array]] = {}
    kinds: dict[tuple[int, ...], Task] = {}
    tasks = []
    for place, own in enumerate(told):
        same = tuple([id(own[name]) for name in _SHARED])  # of objects that `told` keeps alive
        seed, kind = checks.seed(own["seed"]), kinds.get(same)
        if kind is None:
            kind = kinds[same] = _first_of(X, y, own, arrays)
            size = kind.network.params.nbytes + 8 * kind.epochs
            checks.memory_of_many(0, size, len(told))
        n, numbers = len(kind.X), {}
        for name in _OWN:
            numbers[name] = None if own[name] is None else checks.row_numbers(name, own[name], n)
        rows, held = numbers["rows"], numbers["validation_rows"]
        if held is not None and own["validation"] is not None:
            raise checks.ParameterError("must be left out where there are 'validation_rows'", "validation")
        if held is None and own["validation"] is None and kind.settings.watch == "score":
            raise checks.ParameterError("must be 'loss' where there is no 'validation', got 'score'", "watch")
        network = kind.network._another(own["init"], seed)
        tasks.append(kind._replace(place=place, network=network, seed=seed, rows=rows, held=held))
    return tasks


def _first_of(X: Any, y: Any, own: dict[str, Any], arrays: dict[Any, tuple[Array, Array]]) -> Task:
    """Check what is told the first of several networks that differ by seed and rows alone."""
    loss = checks.choice("loss", own["loss"], LOSSES)
    units, epochs = checks.hidden(own["hidden"]), checks.count("epochs", own["epochs"], minimum=0)
    precision = checks.dtype(own["dtype"], X)
    values = {name: own[name] for name in _OF_SETTINGS}
    settings = settings_of.checked(len(units), precision, seed=0, epochs=epochs, **values)
    levels = len(checks.quantiles(own["quantiles"], loss))
    if (loss, levels, precision) not in arrays:
        checked_X = checks.features(X, precision, None)
        checked_y = checks.targets(y, loss, len(checked_X), levels or None, precision)
        arrays[loss, levels, precision] = checked_X, checked_y
    rows_X, rows_y = arrays[loss, levels, precision]
    inputs, outputs = rows_X.shape[1], outputs_of(loss, rows_y.shape[1], levels)
    given, validation, other = own["sample_weight"], own["validation"], None
    weights = None if given is None else checks.row_weights(given, len(rows_X), precision)
    if isinstance(validation, tuple):
        data = data_of.checked(settings, precision, loss, rows_X, rows_y, None, validation, inputs, outputs, levels)
        other = data.validation
    network = Network((inputs, *units, outputs), seed=0, dtype=precision, **{name: own[name] for name in _OF_NETWORK})
    return Task(0, network, settings, 0, epochs, rows_X, rows_y, weights, None, None, other)


def _check_memory(workshop: Workshop) -> None:
    """Refuse what does not fit into memory, and say how many networks would."""
    fixed = each = 0
    for bucket in workshop.buckets:
        groups, kept = bucket.bytes_needed(min(workshop.threads, math.ceil(len(bucket.tasks) / bucket.lanes)))
        fixed, each = max(fixed, groups), max(each, kept)
    count = sum(len(bucket.tasks) for bucket in workshop.buckets)
    if count:
        data = 2 * workshop.buckets[0].tasks[0].X.nbytes
        checks.memory_of_many(fixed + data, each, count)


# --- on the workers of an executor ------------------------------------------------------------------------------------


class Missing(NamedTuple):
    """What a worker answers that has not got the data."""

    worker: str


class Shared(NamedTuple):
    """The data that all networks share: what is shipped once to each worker."""

    digest: str
    X: Any
    y: Any
    settings: dict[str, Any]  # those of _DATA


_kept: Shared | None = None  # of a worker: the last one that came; replaced in one go, so that threads need no lock


def _distribute(
    executor: Executor, tasks: list[Task], X: Any, y: Any, told: list[dict[str, Any]], settings: dict[str, Any],
    workshop: Workshop, size: int, bar: Progress,
) -> None:  # fmt: skip
    """Have parts trained by whoever the executor has, and gather what comes back in the workshop's outcomes.

    Nobody says who will get a part, and only a worker itself knows that it has no data. So the first parts are sent
    bare, and for each worker that answers that data are missing one part is sent with them; what else it refuses waits.
    """
    global _kept
    common = _TOLD | settings
    shared = Shared("", np.asarray(X), np.asarray(y), {name: common[name] for name in _DATA})
    buffers: list[pickle.PickleBuffer] = []  # of the arrays, which are not copied
    digest = sha256(pickle.dumps(shared, protocol=5, buffer_callback=buffers.append))
    for buffer in buffers:
        digest.update(buffer.raw())
    shared = shared._replace(digest=digest.hexdigest())
    light = {name: value for name, value in common.items() if name not in _DATA and value is not _TOLD[name]}
    light["dtype"] = checks.dtype(common["dtype"], X).name  # for an array of other libraries' floats has another one

    def part_of(places: list[int]) -> list[dict[str, Any]]:
        part = []
        for place in places:
            own = {name: value for name, value in told[place].items() if value is not common[name]}
            if "dtype" in own:
                own["dtype"] = tasks[place].network.params.dtype.name
            part.append(own)
        return part

    outcomes, call = workshop.outcomes, uuid4().hex
    answers: SimpleQueue[Future[Any]] = SimpleQueue()
    flying: dict[Future[Any], tuple[list[int], str | None]] = {}  # places, and the worker for whom data are sent along
    served: set[str] = set()  # workers for whom data are on their way
    numbers = itertools.count()

    def send(places: list[int], worker: str | None = None) -> None:
        # The number makes each call another one: dask answers the same one as it did before.
        data = shared.digest if worker is None else shared
        future = executor.submit(train_part, f"{call}-{next(numbers)}", data, light, part_of(places), workshop.threads)
        flying[future] = places, worker
        future.add_done_callback(answers.put)

    order = [task.place for task in workshop.alone]  # they take longest, so that they come first
    order += [task.place for bucket in workshop.buckets for task in bucket.tasks]  # of one shape, for full lanes
    waiting = deque(order[first : first + size] for first in range(0, len(order), size))
    before, _kept = _kept, shared  # for workers that are threads of this process, or forked from it
    try:
        for _ in range(min(PROBES, len(waiting))):
            send(waiting.popleft())
        while flying:
            future = answers.get()
            places, carried = flying.pop(future)
            answer = future.result()
            if not isinstance(answer, Missing):
                outcomes.update(zip(places, answer, strict=True))
                bar.show(len(outcomes))
                served.discard(carried or "")  # whoever had the part: if it was another, this one will ask again
                while waiting:
                    send(waiting.popleft())
                continue
            waiting.appendleft(places)
            if answer.worker not in served:
                served.add(answer.worker)
                send(waiting.popleft(), answer.worker)
                for _ in range(min(2, len(waiting))):  # where there is one, there may be more
                    send(waiting.popleft())
    finally:
        if _kept is shared:
            _kept = before
        for future in flying:
            future.cancel()


def train_part(
    number: str, data: Shared | str, settings: dict[str, Any], networks: list[dict[str, Any]], threads: int
) -> list[Outcome] | Missing:
    """Train some networks on a worker, with data that it keeps until others come, or those of which it has the digest.

    What is returned depends on no worker. `number` makes calls differ, and is read by nobody.
    """
    global _kept
    shared = _kept
    if isinstance(data, Shared):
        shared = _kept = data
    elif shared is None or shared.digest != data:
        return Missing(f"{platform.node()}, process {os.getpid()}")
    common = _TOLD | shared.settings | settings
    tasks = _tasks(shared.X, shared.y, [common | own for own in networks])
    workshop = Workshop(tasks, min(threads, len(tasks)), lambda done: None)
    _check_memory(workshop)
    workshop.run()
    return [_cut(workshop.outcomes[place]) for place in range(len(tasks))]


def _cut(outcome: Outcome) -> Outcome:
    """Leave out the epochs that were not run, which need not be shipped."""
    names = ("loss", "validation_loss", "validation_score")
    kept = {name: figures[: outcome.epochs] for name in names if (figures := getattr(outcome, name)) is not None}
    return outcome._replace(**kept)


# --- what is returned -------------------------------------------------------------------------------------------------


def _result(tasks: list[Task], outcomes: dict[int, Outcome], began: float, compile_seconds: float) -> ManyResult:
    """Gather what became of all networks."""
    seconds = time.perf_counter() - began - compile_seconds
    longest = max((outcome.epochs for outcome in outcomes.values()), default=0)
    validated = any(outcome.validation_loss is not None for outcome in outcomes.values())
    # (networks, epochs): a line is copied in one go.
    names = ("loss", "validation_loss", "validation_score")[: 3 if validated else 1]
    losses = _one_array([outcomes[place].loss for place in sorted(outcomes)], (len(tasks), longest))
    histories = {name: np.full((len(tasks), longest), np.nan) for name in names if name != "loss" or losses is None}
    epochs, best = np.zeros((2, len(tasks)), np.int64)
    stopped = ["interrupted"] * len(tasks)
    for place, outcome in outcomes.items():
        tasks[place].network._params[:] = outcome.params
        stopped[place], epochs[place], best[place] = outcome.stopped, outcome.epochs, outcome.best_epoch or 0
        for name, history in histories.items():
            figures = getattr(outcome, name)
            if figures is not None:
                history[place, : outcome.epochs] = figures[: outcome.epochs]
    return ManyResult(
        [task.network for task in tasks],
        (histories["loss"] if losses is None else losses).T,
        histories["validation_loss"].T if validated else None,
        histories["validation_score"].T if validated else None,
        epochs,
        best,
        stopped,
        np.array([task.seed for task in tasks]),
        seconds,
        compile_seconds,
    )


def _one_array(lines: list[Array], shape: tuple[int, int]) -> Array | None:
    """Return the array of which these are all the lines, in their order: as much as there is, a copy costs its time."""
    whole = lines[0].base if len(lines) == shape[0] else None
    if not isinstance(whole, np.ndarray) or whole.shape != shape or not whole.flags.c_contiguous:
        return None
    if any(line.base is not whole or line.shape != shape[1:] for line in lines):
        return None
    addresses = np.array([line.__array_interface__["data"][0] for line in lines])
    expected = whole.__array_interface__["data"][0] + whole.strides[0] * np.arange(shape[0])
    return whole if np.array_equal(addresses, expected) else None
