"""Measure fastbp and the other libraries in turns: what drifts or interrupts meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.cases import calibrate

# The faster of two calls counts, in each turn: interruptions only add time, and threads of the library before, which
# wait for work for some 20 ms before they sleep, take a core from the first call alone.
CALLS = 2
NEAR = 1.5  # a peer that is at first this much slower than the best may yet be the best: calls scatter that far
ROUNDS = 7


class Measured(NamedTuple):
    """How fast libraries are."""

    speeds: dict[str, float]  # library: epochs or predictions per second
    ratios: dict[str, list[float]]  # peer near the best: how many times as fast as it fastbp was, round by round


def in_turns(runs: Mapping[str, Callable[[int], Any]]) -> Measured:
    """Time all libraries once, then fastbp and the peers near the best in turns.

    `runs` has a function for each library, among them "fastbp", that trains or predicts so many times. A speed is the
    median over the rounds; of a library that is not near the best it is that of its only turn.
    """
    times = {library: calibrate(run) for library, run in runs.items()}  # and with that, all is compiled and warm

    def speed(library: str) -> float:
        seconds = []
        for _ in range(CALLS):
            began = time.perf_counter()
            runs[library](times[library])
            seconds.append(time.perf_counter() - began)
        return times[library] / min(seconds)

    speeds = {library: speed(library) for library in runs}
    peers = [library for library in runs if library != "fastbp"]
    best = max((speeds[peer] for peer in peers), default=0)
    near = [peer for peer in peers if speeds[peer] * NEAR >= best]
    rounds: dict[str, list[float]] = {library: [] for library in ("fastbp", *near)}
    for turn in range(ROUNDS):
        for library in list(rounds)[:: 1 if turn % 2 == 0 else -1]:  # ABBA: what drifts favours neither
            rounds[library].append(speed(library))
    speeds |= {library: statistics.median(values) for library, values in rounds.items()}
    ratios = {
        peer: [fastbp / other for fastbp, other in zip(rounds["fastbp"], rounds[peer], strict=True)] for peer in near
    }
    return Measured(speeds, ratios)
