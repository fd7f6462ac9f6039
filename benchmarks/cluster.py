"""Measure what a part of `train_many` costs on a dask cluster, and write cluster.md."""

from __future__ import annotations

import argparse
import math
import os
import pickle
import platform
import textwrap
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastbp.many import LANES, Shared, train_many

PAGE = Path(__file__).parent / "cluster.md"
WORKERS = (1, 2, 4)
PARTS = 300
EPOCHS = 100
BUSY = 0.9
CLUSTERS = (100, 1000)
SECONDS_OF = ("seconds a part", "of client and scheduler", "of the worker")
BYTES_OF = ("data sent", "bytes of the data", "of a part", "of its answer")
SECONDS = (0.001, 0.01, 0.1, 1.0, 10.0)  # that a network takes on one core, in full lanes

_random = np.random.default_rng(0)
X = _random.standard_normal((1024, 16))
y = X[:, :1] * X[:, 1:2]
NETWORK: dict[str, Any] = {"hidden": (8, 8), "activation": "tanh", "batch_size": 32, "seed": 0}


class Figures(NamedTuple):
    """What was measured with so many workers."""

    workers: int
    wall_seconds: float  # from one part's end to the next one's, with nothing to train
    hub_seconds: float  # of a processor in client and scheduler, for each part
    worker_seconds: float  # and in the worker
    data_sent: int  # times that the data were sent
    data_bytes: int
    part_bytes: float  # of a part of LANES networks, without the data
    answer_bytes: float


class Counting(Executor):
    """Hands over to another executor, and counts the bytes of pickles."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.bare: list[int] = []
        self.carrying: list[int] = []
        self.futures: list[Future[Any]] = []

    def submit(self, function: Any, /, *arguments: Any) -> Future[Any]:
        carries = any(isinstance(argument, Shared) for argument in arguments)
        (self.carrying if carries else self.bare).append(len(pickle.dumps(arguments, protocol=5)))
        self.futures.append(self.executor.submit(function, *arguments))
        return self.futures[-1]


def measure(workers: int) -> Figures:
    """Start a cluster of processes with one thread each, and train on it."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=None
        ) as cluster,
        Client(cluster) as client,
    ):
        counting = Counting(client.get_executor())
        train_many(X, y, 8 * LANES * workers, executor=counting, part=LANES, epochs=EPOCHS, **NETWORK)
        answers = [len(pickle.dumps(future.result())) for future in counting.futures]
        full = [size for size in answers if size > 8 * EPOCHS * LANES]
        executor = client.get_executor()
        train_many(X, y, 8 * workers, executor=executor, part=1, epochs=1, **NETWORK)
        before = client.run(time.process_time)
        wall, hub = time.perf_counter(), time.process_time()
        train_many(X, y, PARTS, executor=executor, part=1, epochs=1, **NETWORK)
        wall, hub = time.perf_counter() - wall, time.process_time() - hub
        spent = sum(after - before[name] for name, after in client.run(time.process_time).items())
        return Figures(
            workers, wall / PARTS, hub / PARTS, spent / PARTS, len(counting.carrying),
            round(np.mean(counting.carrying) - np.mean(counting.bare)), float(np.mean(counting.bare)),
            float(np.mean(full)),
        )  # fmt: skip


def networks_of_a_part(workers: int, seconds: float, hub_seconds: float, worker_seconds: float) -> int:
    """Return how many networks of so many seconds a part must have for workers to be busy, in whole lanes.

    >>> networks_of_a_part(1000, 0.01, 0.001, 0.003)  # 1,000 parts at a time take the scheduler 1 s
    96
    """
    least = max(worker_seconds * BUSY / (1 - BUSY), BUSY * workers * hub_seconds) / seconds
    return max(1, math.ceil(round(least, 9) / LANES)) * LANES


def table(names: list[str], rows: list[list[str]]) -> str:
    """Return a table whose figures are flush right."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, ["---:"] * len(names), *rows))


def page(figures: list[Figures], machine: str) -> str:
    """Return the text of cluster.md."""
    hub, worker = max(row.hub_seconds for row in figures), max(row.worker_seconds for row in figures)
    measured = table(
        ["workers", *SECONDS_OF, *BYTES_OF],
        [
            [
                str(row.workers),
                *(f"{seconds:.5f}" for seconds in (row.wall_seconds, row.hub_seconds, row.worker_seconds)),
                *(f"{count:,.0f}" for count in (row.data_sent, row.data_bytes, row.part_bytes, row.answer_bytes)),
            ]
            for row in figures
        ],
    )
    wanted = table(
        ["a network takes", *(f"{workers:,} workers" for workers in CLUSTERS)],
        [
            [f"{seconds:g} s", *(f"{networks_of_a_part(workers, seconds, hub, worker):,}" for workers in CLUSTERS)]
            for seconds in SECONDS
        ],
    )
    paragraphs = f"""# A cluster

How many networks should a part have in `train_many(..., executor=client.get_executor(), part=...)`? This page is what
`python -m benchmarks cluster` wrote.

Measured on one machine ({machine}), by one run: a dask `LocalCluster` whose workers are processes of one thread,
beside one process that is client and scheduler. All share the cores, so that the time from one part to the next says
nothing of a cluster; the seconds of the processor do, and the rest of this page is computed from them. They are those
of {PARTS} parts of one 16-8-8-1 network each, trained for one epoch on 1,024 rows, which is next to nothing. Bytes are
those of parts of {LANES} networks of {EPOCHS} epochs.

{measured}

The data are sent once to each worker, and not with each part. A network adds some ten bytes to a part, and to its
answer its weights and 8 bytes for each epoch, 24 with validation.

## Networks of a part that keep workers {BUSY * 100:.0f} % busy

A network takes t seconds of one core, and a part has p networks. On each part a worker spends o seconds more, and
client and scheduler h seconds, one part after the other. They hand a part to each of W workers in W h seconds, so that
a worker is busy for the share p t / max(p t + o, W h) of its time, which is at least {BUSY} if

    p >= max({BUSY / (1 - BUSY):.0f} o, {BUSY} W h) / t

With the largest figures of the table, h = {hub * 1e3:.1f} ms and o = {worker * 1e3:.1f} ms, and in multiples of
{LANES}, which fill all lanes, p is at least:

{wanted}

There must be several parts for each worker, or most are idle while the last ones end. Nothing here was measured on 100
machines: dask hands a worker its next part before it is done with one, which hides the latency of a network, but a
scheduler of so many connections has more to do than this one. The data leave the client once for each worker, which
are {figures[0].data_bytes * CLUSTERS[-1] / 1e6:,.0f} MB of these for {CLUSTERS[-1]:,} workers, and dask warns of more
than 10 MB in one call.
""".split("\n\n")
    filled = [
        text if text.startswith(("|", "#", "    ")) else textwrap.fill(text, 120, break_on_hyphens=False)
        for text in paragraphs
    ]
    return "\n\n".join(filled) + "\n"


def machine_name() -> str:
    """Name the machine and the versions."""
    import distributed

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, distributed {distributed.__version__}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `main`."""
    parser.add_argument("--output", type=Path, default=PAGE, help="the page")


def main(arguments: argparse.Namespace) -> int:
    """Measure, and write the page."""
    figures = [measure(workers) for workers in WORKERS]
    arguments.output.write_text(page(figures, machine_name()), encoding="utf-8")
    return 0
