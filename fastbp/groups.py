"""Many networks side by side: which share a group, what a group is given, and the threads that walk the groups.

What a group computes is in `lanes.py`, which is compiled and only imported when there is one.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbp import checks
from fastbp import data as data_of
from fastbp.choices import IRPROP, SECOND_ORDER
from fastbp.data import Data
from fastbp.network import Network, engine
from fastbp.results import best_of, result_of, scored
from fastbp.settings import Settings
from fastbp.trainer import CHUNK_SECONDS, Trainer, batch_of, watched_by
from fastbp.workspace import (
    BEST,
    BEST_RATE,
    FACTOR,
    GROUP_EPOCH,
    GROUP_LAID,
    GROUP_RATE,
    GROUP_UNTIL,
    PENALTY,
    POWER1,
    POWER2,
    VALIDATION_MISFIT,
    VECTOR_BYTES,
    Group,
    group_sizes,
    make_group,
    make_lanes_plan,
    rows_of,
)

Array = NDArray[Any]

MOST_BLOCKS = 2**24  # of one call
# Parameters up to which lanes are faster than one network after the other, and rows of a batch that weigh as much as
# its update. With batches of 32 they gave 4.1 and 2.5 times the networks a second (float32 and float64) at 16-8-8-1,
# 2.3 and 1.6 at 16-32-1, 1.5 and 1.2 at 16-32-32-1 (1,633), and from 64-32-10 (2,410) on no more, or less where there
# are too few networks for all threads; with single rows 1.6 and 1.0 at 16-32-1 (577).
MOST_PARAMETERS, ROWS_OF_UPDATE = 2500, 6


class Task(NamedTuple):
    """One network that is to be trained, checked."""

    place: int  # in the order they were given in
    network: Network
    settings: Settings  # but for the seed
    seed: int
    epochs: int
    X: Array  # all rows of the data, shared by all tasks
    y: Array
    weights: Array | None  # (n,) of all rows
    rows: NDArray[np.int64] | None  # rows of X to train on, by number; all of them if None
    held: NDArray[np.int64] | None  # rows of X for validation
    validation: tuple[Array, Array, Array | None] | None  # or other data
    diverged: int = 0  # epoch in which a first attempt diverged: this one ends before it


class Outcome(NamedTuple):
    """What became of a network."""

    params: Array
    stopped: str
    epochs: int
    loss: Array  # (epochs,)
    validation_loss: Array | None
    validation_score: Array | None
    best_epoch: int | None


class Rows(NamedTuple):
    """The rows of one network in a group."""

    trained: NDArray[np.int64] | None  # by number; all of them if None
    weights: Array | None  # of those
    held: NDArray[np.int64]  # in the data for validation
    held_weights: Array | None
    spread: tuple[float, ...]


# --- which networks share a group -------------------------------------------------------------------------------------


def in_lanes(task: Task) -> bool:
    """Whether a network is trained in a lane: a larger one would not stay in the caches eight or sixteen times.

    Optimisers of second order have no lanes, nor have losses whose outputs are no predictions of the columns of y.
    """
    if task.settings.optimizer.code in SECOND_ORDER or task.network.loss in ("quantile", "gaussian_nll"):
        return False
    batch_size = batch_of(task.settings, counts(task)[0])
    return task.network.params.size * (batch_size + ROWS_OF_UPDATE) <= MOST_PARAMETERS * batch_size


def key_of(task: Task) -> Any:
    """Return what the networks of a group have in common; what is equal takes the same path through the loops."""
    told, network = task.settings, task.network
    n, held = counts(task)
    weighted = task.weights is not None or told.class_weight is not None
    drops = tuple(rate > 0 for rate in told.dropout)
    optimizer = type(told.optimizer)
    values = tuple(getattr(told.optimizer, name) for name in optimizer.__dataclass_fields__ if name != "learning_rate")
    own_rows = task.rows is not None or told.validation is not None
    return (
        network._description, network.params.dtype, n, held, batch_of(told, n), optimizer, values, told.schedule,
        told.shuffle, told.mean, told.l2 > 0, drops, told.clip_norm, told.patience, told.min_delta, told.watch,
        weighted, own_rows, id(task.validation),
    )  # fmt: skip


def counts(task: Task) -> tuple[int, int]:
    """Rows to train on, and rows for validation."""
    n = len(task.X) if task.rows is None else len(task.rows)
    if task.held is not None:
        return n, len(task.held)
    if task.validation is not None:
        return n, len(task.validation[0])
    held = data_of.share(task.settings.validation, n) if task.settings.validation else 0
    return n - held, held


def rows_of_task(task: Task) -> Rows:
    """Draw the rows for validation and weigh the classes, as `train` does for one network."""
    X, y, told, loss = task.X, task.y, task.settings, task.network.loss
    trained = np.arange(len(X)) if task.rows is None else task.rows
    held = np.zeros(0, np.int64)
    held_X, held_y, held_weights = X, y, task.weights
    if task.held is not None:
        held = task.held
    elif task.validation is not None:
        held_X, held_y, held_weights = task.validation
        held = np.arange(len(held_X))
    elif told.validation:
        chosen = data_of.chosen(task.seed, len(trained), counts(task)[1])
        trained, held = trained[~chosen], trained[chosen]
    weights = None if task.weights is None else task.weights[trained]
    if told.class_weight is not None:
        weights = checks.class_weights(told.class_weight, loss, y[trained], weights)
    spread: tuple[float, ...] = ()
    if len(held):
        spread = data_of.spread_of(told, loss, rows_of(held_X, held_y, held_weights, held), X.shape[1], y.shape[1])
    held_weights = None if held_weights is None or not len(held) else held_weights[held]
    whole = task.rows is None and not told.validation
    return Rows(None if whole else trained, weights, held, held_weights, spread)


# --- a group ----------------------------------------------------------------------------------------------------------


class Bucket:
    """The networks of one key: those that wait, what they share, and what became of the others."""

    def __init__(self, tasks: list[Task]) -> None:
        first = tasks[0]
        self.tasks, self.waiting = tasks, deque(tasks)
        self.dtype = first.network.params.dtype
        self.lanes = VECTOR_BYTES // self.dtype.itemsize
        n, held = counts(first)
        told, rows = first.settings, first.rows
        self.own_rows = bool(rows is not None or told.validation or first.weights is not None or told.class_weight)
        self.plan = make_lanes_plan(
            first.network, n, batch_of(told, n), told.optimizer, mean=told.mean,
            weighted=first.weights is not None or told.class_weight is not None,
            shuffled=told.shuffle and batch_of(told, n) < n, l2=float(told.l2 > 0), clip_norm=told.clip_norm,
            dropout=told.dropout, schedule=told.schedule, validation_rows=held, watched=watched_by(told, held),
            patience=-1 if told.patience is None else told.patience, min_delta=told.min_delta,
            keep_best=bool(held) and told.patience is not None,
        )  # fmt: skip
        self.lines = {task.place: line for line, task in enumerate(tasks)}

    def open(self, data: Array) -> None:
        """Prepare what all groups share: the data (n, F), flat, and the losses."""
        validation, width = self.tasks[0].validation, len(self.tasks)
        self.data = self.held_data = data
        if validation is not None:
            self.held_data = rows_of(*validation).ravel()
        epochs = max(task.epochs for task in self.tasks)
        # Not filled: a network writes its line, and `outcome` the rest of it. The first touch of a number took 10 to 14
        # ns on a virtual machine, which threads share now.
        self.loss = np.empty((width, epochs))
        held = epochs if self.plan.validation_rows else 0
        self.validation_loss, self.validation_misfit = np.empty((2, width, held))
        self.spreads: dict[int, tuple[float, ...]] = {}

    def bytes_needed(self, groups: int) -> tuple[int, int]:
        """Bytes of so many groups, and of what is kept of one network."""
        item, plan = self.dtype.itemsize, self.plan
        epochs = max(task.epochs for task in self.tasks)
        kept = plan.parameters * item + 8 * epochs * (3 if plan.validation_rows else 1)
        return groups * VECTOR_BYTES * sum(group_sizes(plan, self.own_rows).values()), kept

    def outcome(self, task: Task, params: Array, stopped: str, epochs: int) -> Outcome:
        """Say what became of a network, of whose losses the bucket has a line."""
        line, plan = self.lines[task.place], self.plan
        loss = self.loss[line]
        loss[epochs:] = np.nan
        if not plan.validation_rows:
            return Outcome(params, stopped, epochs, loss, None, None, None)
        losses, misfit = self.validation_loss[line], self.validation_misfit[line]
        losses[epochs:] = misfit[epochs:] = np.nan
        watched = (misfit if plan.watched == VALIDATION_MISFIT else losses)[:epochs]
        return Outcome(
            params,
            stopped,
            epochs,
            loss,
            losses,
            scored(misfit, np.array(self.spreads.get(line, ()))),
            best_of(watched),
        )


class Lanes:
    """One group: who is in which lane."""

    def __init__(self, bucket: Bucket) -> None:
        from fastbp import lanes

        self.bucket, self.kernels, plan = bucket, lanes, bucket.plan
        self.tasks: list[Task | None] = [None] * bucket.lanes
        self.ends = np.zeros(bucket.lanes, np.int64)  # epoch of the group at which each is done
        self.group: Group = make_group(
            plan, bucket.dtype, bucket.loss, bucket.validation_loss, bucket.validation_misfit, bucket.own_rows
        )
        self.group.status[:] = lanes.IDLE
        self.run: Callable[[int], bool] = lanes.bind(plan, self.group, bucket.data, bucket.held_data)

    def enter(self, lane: int, task: Task) -> None:
        """Give a lane to a network."""
        bucket, plan, V = self.bucket, self.bucket.plan, self.bucket.lanes
        group, told = self.group, task.settings
        self.tasks[lane] = task
        begun = int(group.position[GROUP_EPOCH])
        self.ends[lane] = begun + task.epochs
        for name in ("params", "gradient", "first", "second", "best"):
            getattr(group, name)[lane::V] = task.network._params if name == "params" else 0
        if plan.optimizer == IRPROP:
            group.second[lane::V] = told.optimizer.learning_rate
        group.numbers[lane::V] = 0
        group.numbers[PENALTY * V + lane] = told.l2
        rates = group.dropout[lane::V]
        rates[: len(told.dropout)] = told.dropout
        totals = group.totals[lane::V]
        totals[:] = 0
        totals[[POWER1, POWER2, FACTOR]] = 1
        totals[[BEST, BEST_RATE]] = np.inf
        totals[GROUP_RATE] = told.optimizer.learning_rate
        group.seeds[lane], group.begun[lane], group.status[lane] = task.seed, begun, self.kernels.RUNNING
        group.stale[lane::V] = 0
        line = bucket.lines[task.place]
        group.histories[lane] = line * bucket.loss.shape[1] - begun
        if bucket.own_rows or plan.shuffled or plan.validation_rows:
            self._give_rows(lane, task, line)
        group.position[GROUP_LAID] = 0

    def _give_rows(self, lane: int, task: Task, line: int) -> None:
        group, V = self.group, self.bucket.lanes
        own = rows_of_task(task)
        if group.rows.size:
            group.rows[lane::V] = np.arange(self.bucket.plan.rows) if own.trained is None else own.trained
        if group.weights.size:
            group.weights[lane::V] = 1 if own.weights is None else own.weights
        group.held[lane::V] = own.held
        group.held_weights[lane::V] = 1 if own.held_weights is None else own.held_weights
        self.bucket.spreads[line] = own.spread
        if own.spread:
            group.spread[lane::V] = own.spread

    def leave(self) -> list[tuple[Task, Outcome | None]]:
        """Take out the networks that have ended; without an outcome those that are to be trained once more."""
        group, V, bucket, epoch = self.group, self.bucket.lanes, self.bucket, int(self.group.position[GROUP_EPOCH])
        ended: list[tuple[Task, Outcome | None]] = []
        for lane, task in enumerate(self.tasks):
            status = int(group.status[lane])
            if task is None or (status == self.kernels.RUNNING and epoch < self.ends[lane]):
                continue
            done = epoch - int(group.begun[lane])
            if status == self.kernels.DIVERGED:
                # Trained anew, to the epoch before, which has the bits that it had.
                ended.append((task._replace(epochs=done - 1, diverged=done), None))
            else:
                best = bucket.plan.keep_best and group.totals[BEST * V + lane] < np.inf
                params = (group.best if best else group.params)[lane::V].copy()
                reasons = {self.kernels.PATIENT: "patience", self.kernels.PLATEAU: "plateau"}
                stopped = "diverged" if task.diverged else reasons.get(status, "epochs")
                ended.append((task, bucket.outcome(task, params, stopped, done)))
            self.tasks[lane], group.status[lane] = None, self.kernels.IDLE
            group.params[lane::V] = 0
        return ended

    def fill(self) -> bool:
        """Give free lanes to those who wait, all that are free: one takes the time of all; return whether any is in."""
        waiting, group = self.bucket.waiting, self.group
        free = [lane for lane, task in enumerate(self.tasks) if task is None]
        for lane in free:
            try:
                self.enter(lane, waiting.popleft())
            except IndexError:  # another thread has taken the last one
                break
        there = [lane for lane, task in enumerate(self.tasks) if task is not None]
        if there:
            group.position[GROUP_UNTIL] = self.ends[there].min()
        return bool(there)


# --- all of them ------------------------------------------------------------------------------------------------------


class Workshop:
    """Threads that train all networks: the next free one takes the next that waits."""

    def __init__(self, tasks: list[Task], threads: int, attend: Callable[[int], None]) -> None:
        self.threads, self.attend = threads, attend
        self.outcomes: dict[int, Outcome] = {}
        buckets: dict[Any, list[Task]] = {}
        keys: dict[Any, Any] = {}  # by what the tasks share, since each takes 10 us
        self.alone: deque[Task] = deque()
        compiled = engine("numba").PANELS  # and not the reference, which has no lanes
        for task in tasks:
            if task.epochs == 0:
                self._finish(task, Outcome(task.network.params.copy(), "epochs", 0, np.zeros(0), None, None, None))
            elif compiled and in_lanes(task):
                shared = (
                    id(task.settings),
                    id(task.network._description),
                    id(task.weights),
                    task.rows is None,
                    counts(task),
                    id(task.validation),
                )
                key = keys.get(shared)
                if key is None:
                    key = keys[shared] = key_of(task)
                buckets.setdefault(key, []).append(task)
            else:
                self.alone.append(task)
        self.buckets = [Bucket(group) for group in buckets.values()]
        self.halt = threading.Event()
        self.errors: list[BaseException] = []
        self.compile_seconds = 0.0

    def run(self) -> None:
        """Train all; whatever ends one thread ends all."""
        rows: dict[tuple[int, int], Array] = {}
        for bucket in self.buckets:
            task = bucket.tasks[0]
            shared = rows.get((id(task.X), id(task.y)))
            if shared is None:
                shared = rows[id(task.X), id(task.y)] = rows_of(task.X, task.y).ravel()
            bucket.open(shared)
            began = time.perf_counter()
            Lanes(bucket).run(0)  # compiles, which threads would do one after the other
            self.compile_seconds += time.perf_counter() - began
        # No more than there is work for: to start one takes 0.3 ms.
        parts = len(self.alone) + sum(-(-len(bucket.tasks) // bucket.lanes) for bucket in self.buckets)
        count = min(self.threads, parts) - 1
        helpers = [threading.Thread(target=self._help, daemon=True) for _ in range(count)]
        try:
            for helper in helpers:
                helper.start()
            self._work()
            for helper in helpers:
                helper.join()
        except BaseException:
            self.halt.set()
            for helper in helpers:
                if helper.ident is not None:
                    helper.join()
            raise
        if self.errors:
            raise self.errors[0]

    def _help(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.errors.append(error)
            self.halt.set()

    def _work(self) -> None:
        while self.alone and not self.halt.is_set():
            try:
                task = self.alone.popleft()
            except IndexError:
                break
            self._train_alone(task)
        for bucket in self.buckets:
            if bucket.waiting and not self.halt.is_set():
                self._train_group(bucket)

    def _train_group(self, bucket: Bucket) -> None:
        lanes, blocks = Lanes(bucket), 1
        while lanes.fill():
            ended = False
            while not ended:
                if self.halt.is_set():
                    return
                began = time.perf_counter()
                ended = lanes.run(blocks)
                seconds = time.perf_counter() - began
                blocks = max(1, min(8 * blocks, MOST_BLOCKS, int(blocks * CHUNK_SECONDS / max(seconds, 1e-9))))
            for task, outcome in lanes.leave():
                if outcome is None:
                    self._again(bucket, task)
                else:
                    self._finish(task, outcome)

    def _again(self, bucket: Bucket, task: Task) -> None:
        """Train a network once more that diverged, to the epoch before; or say that it was the first."""
        if task.epochs:
            bucket.waiting.appendleft(task)
        else:
            self._finish(task, bucket.outcome(task, task.network.params.copy(), "diverged", 0))

    def _train_alone(self, task: Task) -> None:
        """Train a network that is none for a lane by `Trainer`."""
        X, y, w = task.X, task.y, task.weights
        validation, held = task.validation, counts(task)[1]
        if task.held is not None:
            validation = X[task.held], y[task.held], None if w is None else w[task.held]
        if task.rows is not None:
            X, y, w = X[task.rows], y[task.rows], None if w is None else w[task.rows]
        network = task.network.copy()
        settings = dataclasses.replace(task.settings, seed=task.seed)
        trainer = Trainer._of(network, settings, None)
        course = trainer._course(Data(X, y, w, validation, held, network.sizes[-1]), task.epochs)
        diverged, stopped = trainer._train(course, lambda epoch: "halt" if self.halt.is_set() else None)
        if not self.halt.is_set():
            result = result_of(network, settings, course.plan, course.memory, stopped, 0.0, 0.0)
            self._finish(
                task,
                Outcome(
                    network.params, "diverged" if diverged else stopped, len(result.loss), result.loss,
                    result.validation_loss, result.validation_score, result.best_epoch,
                ),
            )  # fmt: skip

    def _finish(self, task: Task, outcome: Outcome) -> None:
        self.outcomes[task.place] = outcome
        self.attend(len(self.outcomes))
