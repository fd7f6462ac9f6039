"""What optimisers share that look at more than one gradient before they move: `lbfgs.py` and `marquardt.py`.

Each has an entry of its own, so that nobody else waits for its compilation, and walks the rows with the kernels of
`kernels.py`, in panels. A call ends after so many blocks, also in the middle of an epoch, so that Python can attend to
Ctrl-C; where it goes on is in `state`. Losses of an epoch are those before its steps.

Dimensions are those of `kernels.py`.
"""

import itertools

import numpy as np

from fastbp.jit import inlined, kernel
from fastbp.kernels import end_validation, judge, panel_count, validate_block
from fastbp.simd import at, lane_sum, lanes_of, load, multiply_add, zeros
from fastbp.workspace import AT_PANEL, AT_ROW, AT_STAGE, EPOCH, FINISHED, UNFINISHED

BEGIN, STEPPED, VALIDATE, FIRST, AIM, TRIAL, LAST, ASSEMBLE, FACTORISE = range(9)  # stages of an epoch
CALL_WORK = 2**25  # multiply-adds of one call, 1 to 10 ms


def pieces_of_call(plan, work=0, threads=1):
    """Blocks of one thread that a call walks, at so many multiply-adds a row beside those of its passes."""
    work += 3 * sum(a * b for a, b in itertools.pairwise(plan.sizes.tolist()))
    return max(1, CALL_WORK // (plan.block // threads * plan.width * work))


def in_calls(plan, memory, room, run):
    """`run`, which may return UNFINISHED, as a function of the blocks alone, each an epoch."""

    def bound(blocks, arrays=(plan, memory, room)):  # which must outlive the words, their addresses
        last, status = memory.position.item(EPOCH) + blocks, UNFINISHED
        try:
            while status == UNFINISHED:
                status = run(last)
        except BaseException:  # Ctrl-C, between two calls
            if room.state[AT_STAGE] != BEGIN:
                memory.params[:] = room.point
            raise
        return status

    return bound


@kernel
def close_epoch(plan, memory, state):
    """Early stopping, and on to the next epoch;  returns FINISHED or STOPPED."""
    position, status = memory.position, FINISHED
    if plan.patience >= 0:
        status = judge(plan, memory, position[EPOCH])
    position[EPOCH] += 1
    state[AT_STAGE] = BEGIN
    return status


@kernel
def end_steps(plan, memory, state):
    """What follows the last step of an epoch;  returns the status of `run`."""
    state[AT_STAGE] = VALIDATE
    return FINISHED if plan.validation_rows else close_epoch(plan, memory, state)


@kernel
def validate(plan, memory, validation, state):
    """Walk the next rows for validation;  returns the status of `run`."""
    count = validate_block(plan, memory, validation, state[AT_ROW], state[AT_PANEL])
    if walked(plan, memory, state, count, plan.validation_rows):
        end_validation(plan, memory, memory.position[EPOCH])
        return close_epoch(plan, memory, state)
    return FINISHED


@inlined
def walked(plan, memory, state, count, rows):
    """Go on by so many rows;  returns whether it was all, and begins again then."""
    state[AT_ROW] += count
    state[AT_PANEL] += panel_count(count, plan.width, memory.activations)
    if state[AT_ROW] < rows:
        return False
    state[AT_ROW], state[AT_PANEL] = 0, 0
    return True


@kernel
def dot(n, x, y):
    """sum_q x_q y_q, both (n,)."""
    V = lanes_of(x)
    sums = zeros(4, 1, x)  # four sums at once: one alone would wait for each addition
    q = 0
    while q + 4 * V <= n:
        sums = multiply_add(load(4, 1, at(x, q), V), load(4, 1, at(y, q), V), sums)
        q += 4 * V
    total = np.float64(lane_sum(sums))
    while q < n:
        total += np.float64(x[q]) * np.float64(y[q])
        q += 1
    return total
