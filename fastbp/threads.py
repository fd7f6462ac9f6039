"""Threads inside one network: how many pay, what they share, and how they come and go.

What they do is in `teams.py`, which is compiled and only imported where there is more than one of them.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbp.choices import MARQUARDT
from fastbp.workspace import (
    ALONE_UNTIL,
    CAUTION,
    CONTROL_PLACES,
    EDGE_ROWS,
    FIGURES_PLACES,
    LEAST_CAUTION,
    LIMIT,
    MOST_PARTS,
    OPEN,
    TICKET,
    VECTOR_BYTES,
    Array,
    Memory,
    Plan,
    Share,
    Squares,
    aligned,
    forward_memory,
    parts_of,
    words_of,
)

BLOCK_WORK = 2**23  # multiply-adds of a block that threads walk: its stages then take some 100 us
BLOCK_BYTES = 2**19  # of its activations, which a second-level cache should hold

# What "auto" reckons with. The pace is that of a fast core with AVX-512 in float32: a slower one gains more than
# reckoned. A stage costs what the threads wait for each other, and fetch of each other's results from cache to cache:
# 4 to 12 us were measured, for 64 to 512 units. A call starts the threads: 35 us until the leader goes on, 60 until
# another one helps.
PACE = 60  # multiply-adds a nanosecond
UNIT_WORK = 16  # of them, what a unit costs beside its weights
ROW_WORK = 8  # likewise, what an element of a row of J costs
STAGE_SECONDS, START_SECONDS = 8e-6, 1e-4
LAST_PANEL = 0.15  # of a panel, that the others wait for whoever ends last
GAIN = 0.9  # the share of the time of one thread that several must promise to take

# Where strangers keep the cores busy, a chunk that a helper took ends when the system gives it a core again, some 3 ms
# later. So a leader begins alone for so many ticks, some 50 ms, and "auto" takes several threads only for what will
# take one longer than so many seconds.
ALONE_TICKS, FIRST_CAUTION = 2**27, 5
LONG_SECONDS = 0.2
ASKED_SECONDS = 0.01  # how long an answer holds: to ask takes 10 to 30 us


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_cores() -> int:
    """Cores that nobody else uses at this moment, or all cores, where the system does not tell."""
    global _asked
    now = time.monotonic()
    if now < _asked[0]:
        return _asked[1]
    count = os.cpu_count() or 1  # which reads a file as well
    try:
        place = os.open("/proc/loadavg", os.O_RDONLY)
        try:
            running = int(os.read(place, 100).split()[3].partition(b"/")[0])
        finally:
            os.close(place)
    except (OSError, ValueError, IndexError):
        running = 1
    _asked = now + ASKED_SECONDS, max(1, count + 1 - running)
    return _asked[1]


_asked = 0.0, 1  # until when that is known


# --- how many ---------------------------------------------------------------------------------------------------------


def seconds(plan: Plan, dtype: Any, threads: int = 1, by_units: bool = False) -> float:
    """Reckon what a whole batch takes on an idle machine."""
    if plan.optimizer == MARQUARDT:
        return _seconds_of_squares(plan, dtype, threads)
    units = plan.sizes.tolist()
    passes = 2 * plan.parameters - plan.starts.item(1) + UNIT_WORK * sum(units[1:])
    panels = -(-plan.batch_size // plan.width)
    pace = PACE * 4e9 / dtype.itemsize
    sums = panels * plan.width * plan.parameters / pace
    if threads == 1:
        return panels * plan.width * passes / pace + sums
    block = _panels_of_block(plan, dtype)
    if by_units:
        rows, stages = panels / threads, 2 * plan.layers * -(-panels // block)
        if min(units[1:-1], default=0) < 16 * threads:  # layers that are too narrow to be shared out
            rows = panels
    else:
        full, rest = divmod(panels, block)
        rows, stages = full * -(-block // threads) + -(-rest // threads), 2 * (full + (rest > 0))
        rows += LAST_PANEL
    return rows * plan.width * passes / pace + sums / threads + stages * STAGE_SECONDS


def _seconds_of_squares(plan: Plan, dtype: Any, threads: int) -> float:
    """Reckon what a step of Levenberg and Marquardt's takes: rows of J, J'J, its factor, and the trial."""
    P, outputs, rows = plan.parameters, plan.sizes.item(-1), -(-plan.batch_size // plan.width) * plan.width
    parts, bands = parts_of(plan, plan.block, threads)
    wide = PACE * 4e9 / 8
    passes = rows * (P + UNIT_WORK * int(plan.sizes[1:].sum())) / (PACE * 4e9 / dtype.itemsize)
    laid = (1 + outputs) * passes + rows * outputs * ROW_WORK * P / wide
    shared_out = laid / parts + rows * outputs * P * P / (2 * wide * parts * bands)  # what a chunk takes
    together = -(-parts * bands // threads) * shared_out + passes / min(threads, MOST_PARTS)
    return together + P**3 / (6 * wide) + (STAGE_SECONDS if threads > 1 else 0)


def is_alone(plan: Plan, dtype: Any) -> bool:
    """Whether one thread walks each batch, however many there are: it is too small to be shared out."""
    return plan.tiny or plan.batch_size <= plan.few or plan.batch_size < VECTOR_BYTES // dtype.itemsize


def best(plan: Plan, dtype: Any, batches: int = 1, most: int | None = None) -> int:
    """Return how many threads, of so many or of as many as there are cores, pay for so many batches."""
    if is_alone(plan, dtype):
        return 1
    alone, least, chosen = seconds(plan, dtype), GAIN * seconds(plan, dtype), 1
    for count in range(2, (cores() if most is None else most) + 1):
        together = min(seconds(plan, dtype, count, by_units) for by_units in (False, True))
        if together < least and (alone - together) * batches > START_SECONDS:
            least, chosen = 0.97 * together, count
    if most is None and chosen > 1 and alone * batches < LONG_SECONDS and chosen > (idle := idle_cores()):
        return best(plan, dtype, batches, idle)
    return chosen


def best_to_predict(plan: Plan, dtype: Any, most: int | None = None) -> int:
    """Return how many threads, of so many or of as many as there are cores, pay for one prediction of all rows."""
    work = plan.parameters + UNIT_WORK * int(plan.sizes[1:].sum())
    took = plan.rows * work * dtype.itemsize / (PACE * 4e9)
    return max(1, min(cores() if most is None else most, int(took / (2 * START_SECONDS))))


# --- what they share --------------------------------------------------------------------------------------------------


def _panels_of_block(plan: Plan, dtype: Any) -> int:
    """Panels of a block that threads walk: whole blocks of one thread."""
    samples, rows = plan.block * plan.width, max(plan.batch_size, plan.validation_rows)
    most = min(
        BLOCK_WORK // (3 * plan.parameters * samples),
        BLOCK_BYTES // (dtype.itemsize * samples * (plan.sizes.item(0) + 3 * int(plan.sizes[1:].sum()))),
        -(-rows // samples),
    )
    return plan.block * max(1, most)


def shared(plan: Plan, dtype: Any, threads: int) -> tuple[Plan, Share]:
    """Return the plan with the blocks of so many threads, for which memory is to be made, and what they share.

    Results have the bits of the plan that is handed in, walked by one thread.
    """
    block, lanes = _panels_of_block(plan, dtype), VECTOR_BYTES // dtype.itemsize
    units = plan.sizes[1:].tolist()
    edge = EDGE_ROWS * -(-max(units) // lanes) * lanes + lanes
    share = Share(
        control=aligned(CONTROL_PLACES, np.dtype(np.int64)),
        figures=aligned(block * FIGURES_PLACES, np.dtype(np.float64)),
        scratch=aligned(block * plan.width * (plan.tops.item(-1) + units[-1] + plan.layers * lanes), dtype),
        edges=aligned(threads * edge, dtype),
        edge=edge,
        cut=plan.block,
        by_units=threads > 1 and seconds(plan, dtype, threads, True) < seconds(plan, dtype, threads, False),
    )
    share.control[TICKET], share.control[CAUTION] = LIMIT, LEAST_CAUTION
    return plan._replace(block=block), share


# --- what they do -----------------------------------------------------------------------------------------------------


class Work:
    """What a team is to do: an entry, `team_words` or another one, its words and arguments, the arrays behind them.

    plan and share are those of `shared`, or with another entry what that takes in their place, a control among it.
    """

    def __init__(
        self, entry: Callable[..., int], plan: Plan, memory: Memory, share: Share | Squares, data: Array,
        validation: Array, *more: int,
    ) -> None:  # fmt: skip
        self.run = entry
        self.arrays = plan, memory, share  # which must outlive the words, their addresses
        self.control = share.control
        precision, version = memory.scalars.dtype.type(), plan.version
        self.words = precision, version, words_of(plan), words_of(memory), words_of(share), data, validation, *more


# --- how they come and go ---------------------------------------------------------------------------------------------


class Helpers:
    """Threads that help while they are wanted: nobody waits for one that has not begun, and it then ends at once.

    They are started below `threading.Thread`, whose `start` waits until the thread runs: it takes 50 to 80 us, this 12.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.inside = 0  # threads that have begun and not ended
        self.closed = False
        _helpers.add(self)

    def start(self, help_out: Callable[[int], object], count: int) -> None:
        """Have so many threads help out, each with a number, from 1 on; or fewer, if no more can be started."""
        allowed, here = _places()
        with self.condition, contextlib.suppress(RuntimeError):  # held, so that none can end while it is moved
            for helper in range(1, count + 1):
                thread = _thread.start_new_thread(self._live, (help_out, helper, allowed))
                if allowed:
                    _move(thread, allowed - {here})

    def _live(self, help_out: Callable[[int], object], helper: int, allowed: set[int]) -> None:
        with self.condition:
            if self.closed:
                return
            self.inside += 1
        try:
            if allowed:
                with contextlib.suppress(OSError):  # cores may have been taken from the process meanwhile
                    os.sched_setaffinity(0, allowed)  # once it has begun elsewhere, it may go wherever it likes
            help_out(helper)
        finally:
            with self.condition:
                self.inside -= 1
                self.condition.notify_all()

    def close(self) -> None:
        """Have all threads end, without waiting for it: beside a stranger on their core that takes some 3 ms."""
        with self.condition:
            self.closed = True
            self.condition.notify_all()

    def wait(self) -> None:
        """Wait until those that have begun have ended."""
        with self.condition:
            while self.inside:
                self.condition.wait()


# Where the system can be told, new threads begin on another core than that of their leader. Left alone, it may put
# them into the queue behind him: on a virtual machine, where an idle core seems to be taken by others, it mostly did,
# with the other core idle, and a helper began when the leader ended. Told, it began 60 us after the first call here.
_library: Any = None
if sys.platform == "linux":
    with contextlib.suppress(OSError):
        _library = ctypes.PyDLL(None)  # which keeps the interpreter's lock
    if not (hasattr(_library, "pthread_setaffinity_np") and hasattr(_library, "sched_getcpu")):
        _library = None


def _places() -> tuple[set[int], int]:
    """Return the cores that this thread may use and the one it is on; no cores if there is nothing to choose."""
    if _library is not None:
        allowed, here = os.sched_getaffinity(0), _library.sched_getcpu()
        if len(allowed) > 1 and here in allowed:
            return allowed, here
    return set(), -1


def _move(thread: int, cores: set[int]) -> None:
    """Have a thread run on these cores."""
    size = 8 * (max(cores) // 64 + 1)
    mask = sum(1 << core for core in cores).to_bytes(size, sys.byteorder)
    _library.pthread_setaffinity_np(ctypes.c_ulong(thread), ctypes.c_size_t(size), mask)


class Room(Helpers):
    """What the threads of a team know of it; not the team itself, which then ends with its last reference."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Work | None = None  # what there is to do, if anything
        self.asleep = 0

    def help(self, helper: int) -> None:
        """Help as long as there is work, sleep while there is none: the life of a thread."""
        while True:
            with self.condition:
                while self.work is None and not self.closed:
                    self.asleep += 1
                    self.condition.wait()
                    self.asleep -= 1
                work = self.work
                if self.closed or work is None:
                    return
            work.run(*work.words, -1, helper)
            del work

    def close(self) -> None:
        """Have all threads end."""
        with self.condition:
            if self.work is not None:
                self.work.control[OPEN] = -1
            super().close()


class Team:
    """Threads that help one other, the leader: they begin with its first call, sleep between its calls, end by `close`.

    Only one thread at a time may lead. A fork ends the threads of teams that rest; they begin anew with the next call,
    in the parent and in the child.

    Parameters
    ----------
    threads : int
        How many, the leader among them.

    Examples
    --------
    >>> with Team(2) as team:
    ...     team.threads
    2
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._room: Room | None = None
        self._last: Work | None = None
        self._end: Any = None
        _teams.add(self)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, work: Work, blocks: int) -> int:
        """Do so many blocks of the work, with the help of the others; return the status of the kernel."""
        lead = work.run
        if blocks == 0 or self.threads == 1:  # the first call compiles, which no helper is to do
            return lead(*work.words, blocks, 0)
        if self._room is None and self.threads > idle_cores():
            work.control[ALONE_UNTIL], work.control[CAUTION] = -ALONE_TICKS, FIRST_CAUTION
        room = self._room or self._begin()
        try:
            with room.condition:
                if self._last is not None and self._last is not work:
                    self._last.control[OPEN] = -1
                self._last = room.work = work
                work.control[OPEN] = 1
                if room.asleep:
                    room.condition.notify_all()
            return lead(*work.words, blocks, 0)
        finally:
            work.control[OPEN] = 0
            room.work = None

    def _begin(self) -> Room:
        """Have the threads begin."""
        room = self._room = Room()
        self._end = weakref.finalize(self, room.close)
        self._end.atexit = False
        room.start(room.help, self.threads - 1)
        return room

    def close(self) -> None:
        """Have the threads end."""
        room, last, self._room, self._last = self._room, self._last, None, None
        if room is not None:
            if last is not None:
                last.control[OPEN] = -1  # whoever lingers there need not
            self._end()

    def _forget(self) -> None:
        """Know nothing of threads that only the parent has."""
        if self._room is not None:
            self._end.detach()
            self._room = self._last = None


def bind(plan: Plan, memory: Memory, share: Share, data: Array, validation: Array, team: Team) -> Callable[[int], int]:
    """`run` of the kernels by a team, as a function of the blocks alone; plan and share are those of `shared`."""
    from fastbp.teams import team_words

    work = Work(team_words, plan, memory, share, data, validation)
    return lambda blocks: team.run(work, blocks)


def bind_predict(plan: Plan, params: Array, threads: int, auto: bool = False) -> Callable[[Array, Array], int]:
    """`bind_predict` of the kernels for so many threads; with `auto` for no more than find an idle core."""
    from fastbp.teams import predict_words

    full, plan_words, memory = None if plan.lean else True, words_of(plan), forward_memory(plan, params.dtype, threads)

    def bound(data: Array, predictions: Array, plan: Plan = plan) -> int:  # whose arrays must outlive its words
        control, helpers = aligned(CONTROL_PLACES, np.dtype(np.int64)), Helpers()
        # Arrays and not their addresses: whoever works with them keeps them.
        words = full, plan_words, control, params, data, *memory, predictions, threads
        count = min(threads, idle_cores()) if auto else threads
        try:
            helpers.start(lambda helper: predict_words(*words, helper), count - 1)
            status: int = predict_words(*words, 0)
        finally:
            helpers.close()
        return status

    return bound


_teams: weakref.WeakSet[Team] = weakref.WeakSet()
_helpers: weakref.WeakSet[Helpers] = weakref.WeakSet()


def _before_fork() -> None:
    for team in list(_teams):
        if team._room is not None and team._room.work is None:
            team.close()
    for helpers in list(_helpers):
        if helpers.closed:
            helpers.wait()


def _after_fork() -> None:
    for team in list(_teams):
        team._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
