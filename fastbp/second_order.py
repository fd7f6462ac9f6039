"""Optimisers that look at more than one gradient before they move: L-BFGS.

Each has an entry of its own, so that nobody else waits for its compilation, and walks the rows with the kernels of
`kernels.py`, in panels. A call ends after so many blocks, also in the middle of an epoch, so that Python can attend to
Ctrl-C; where it goes on is in `Search.state`. An epoch is one step: the loss of the epoch is that before it.

Dimensions are those of `kernels.py`; m steps are remembered.
"""

import itertools

import numpy as np

from fastbp.choices import LBFGS_C1, LBFGS_C2, LBFGS_EVALUATIONS, LBFGS_HISTORY, LEARNING_RATE
from fastbp.formulas import add_scaled, finite, norm, penalty
from fastbp.jit import entry, kernel
from fastbp.kernels import (
    DIVERGED,
    FINISHED,
    backward,
    copy,
    end_validation,
    forward,
    judge,
    output_layer,
    panel_count,
    validate_block,
    weight_of,
)
from fastbp.simd import at, bundle, flush_subnormals, lane_sum, lanes_of, load, multiply_add, put_back, zeros
from fastbp.workspace import (
    AT_PANEL,
    AT_ROW,
    AT_STAGE,
    EPOCH,
    ERROR,
    EVALUATED,
    HIGH,
    HIGH_SLOPE,
    HIGH_VALUE,
    KNOWN,
    LOSS,
    LOW,
    LOW_SLOPE,
    LOW_VALUE,
    POINT_ERROR,
    POINT_LOSS,
    POINT_SLOPE,
    POINT_VALUE,
    POINT_WEIGHT,
    TRIED,
    WEIGHT,
    Memory,
    Plan,
    Search,
    make_search,
    words_of,
)

UNFINISHED = 4  # beside the statuses of `run`: the call has used up its blocks
BEGIN, FIRST, AIM, TRIAL, LAST, STEPPED, VALIDATE = range(7)  # stages of an epoch
CALL_WORK = 2**25  # multiply-adds of one call, 1 to 10 ms
NARROWEST = 0.1  # share of an interval that a trial keeps from its ends


def bind(plan, memory, data, validation):
    """`run` for these optimisers, as a function of the blocks alone, each an epoch."""
    search = make_search(plan, memory.params.dtype)
    words = memory.scalars.dtype.type(), words_of(plan), words_of(memory), words_of(search)
    work = sum(a * b for a, b in itertools.pairwise(plan.sizes.tolist()))
    pieces = max(1, CALL_WORK // (3 * plan.block * plan.width * work))

    def bound(blocks, arrays=(plan, memory, search)):  # which must outlive the words, their addresses
        last, status = int(memory.position[EPOCH]) + blocks, UNFINISHED
        try:
            while status == UNFINISHED:
                status = lbfgs_words(*words, data, validation, last, pieces)
        except BaseException:  # Ctrl-C, between two calls
            if search.state[AT_STAGE] != BEGIN:
                memory.params[:] = search.point
            raise
        return status

    return bound


# --- L-BFGS -----------------------------------------------------------------------------------------------------------


@entry
def lbfgs_words(precision, plan, memory, search, data, validation, last, pieces):
    """`lbfgs` with the words of plan, memory and search, and any number of the working precision."""
    before = flush_subnormals()
    status = lbfgs(
        bundle(Plan, precision, True, plan), bundle(Memory, precision, True, memory),
        bundle(Search, precision, True, search), at(data, 0), at(validation, 0), last, pieces,
    )  # fmt: skip
    put_back(before)
    return status


@kernel
def lbfgs(plan, memory, search, data, validation, last, pieces):
    """Train up to this epoch, but walk no more than so many blocks.

    data, validation: panels.  Returns the status of `run`, or UNFINISHED.
    """
    state, position, status = search.state, memory.position, FINISHED
    while status == FINISHED and position[EPOCH] < last:
        stage = state[AT_STAGE]
        if stage == BEGIN:
            state[AT_STAGE] = AIM if knows(plan, memory, search) else FIRST
            copy(plan.parameters, memory.params, search.point)
        elif stage == AIM:
            status = aim(plan, memory, search)
        elif stage == STEPPED:
            state[AT_STAGE] = VALIDATE
            if plan.validation_rows == 0:
                status = end_epoch(plan, memory, state)
        elif pieces <= 0:
            status = UNFINISHED
        else:
            pieces -= 1
            row, panel, rows = state[AT_ROW], state[AT_PANEL], plan.rows
            if stage == VALIDATE:
                rows = plan.validation_rows
                count = validate_block(plan, memory, validation, row, panel)
            else:
                count = evaluate_block(plan, memory, data, row, panel)
            state[AT_ROW], state[AT_PANEL] = row + count, panel + panel_count(count, plan.width, memory.activations)
            if row + count == rows:
                state[AT_ROW], state[AT_PANEL] = 0, 0
                if stage == VALIDATE:
                    end_validation(plan, memory, position[EPOCH])
                    status = end_epoch(plan, memory, state)
                else:
                    decide(plan, memory, search)
    return status


@kernel
def evaluate_block(plan, memory, data, row, panel):
    """Loss and gradient of the next rows;  adds to totals and gradient, returns their number."""
    S, F, totals, begin = plan.width, plan.sizes[0] + plan.sizes[plan.layers] + 1, memory.totals, np.int64(0)
    count = min(plan.rows - row, plan.block * S)
    panels = panel_count(count, S, memory.activations)
    x, a, all_zero = at(data, panel * F * S), memory.activations, memory.all_zero
    forward(plan, memory.params, all_zero, all_zero, x, F, begin, panels, begin, row, memory.kept, a)
    output_layer(plan, memory, x, F, begin, panels, totals, begin)
    backward(plan, memory, x, F, count, begin, row)
    totals[WEIGHT] = weight_of(x, F, S, panels, totals[WEIGHT])
    return count


@kernel
def end_epoch(plan, memory, state):
    """Early stopping, and on to the next epoch;  returns FINISHED or STOPPED."""
    position, status = memory.position, FINISHED
    if plan.patience >= 0:
        status = judge(plan, memory, position[EPOCH])
    position[EPOCH] += 1
    state[AT_STAGE] = BEGIN
    return status


@kernel
def knows(plan, memory, search):
    """Whether the slope at these parameters is known already."""
    known = search.state[KNOWN] == 1
    for q in range(plan.parameters):
        known = known and memory.params[q] == search.point[q]
    return known


@kernel
def aim(plan, memory, search):
    """Begin the search of an epoch at the point;  writes loss, error, direction and the first trial.

    Returns DIVERGED if loss or slope are not finite.
    """
    state, figures, epoch, P = search.state, search.figures, memory.position[EPOCH], plan.parameters
    loss, weight = figures[POINT_LOSS], figures[POINT_WEIGHT]
    memory.loss[epoch], memory.error[epoch] = loss / weight, figures[POINT_ERROR] / (weight * plan.sizes[plan.layers])
    if not (loss * 0 == 0 and finite(P, search.slope) and finite(P, search.point)):
        memory.position[EPOCH] += 1
        state[AT_STAGE], state[KNOWN] = BEGIN, 0
        return DIVERGED
    step = np.float64(plan.settings[LEARNING_RATE])
    remembered = two_loops(plan, memory, search)
    slope = dot(P, search.direction, search.slope)
    if not slope < 0:
        forget(plan, memory)
        remembered = two_loops(plan, memory, search)
        slope = dot(P, search.direction, search.slope)
    if not remembered:
        length = norm(P, search.slope)
        step = step / length if length > 1 else step
    figures[POINT_SLOPE], state[EVALUATED] = slope, 0
    figures[LOW], figures[LOW_VALUE], figures[LOW_SLOPE] = 0, figures[POINT_VALUE], slope
    figures[HIGH] = np.inf
    if slope < 0:
        go(plan, memory, search, step)
        state[AT_STAGE] = TRIAL
    else:  # there is nothing below
        state[AT_STAGE] = STEPPED
    return FINISHED


@kernel
def two_loops(plan, memory, search):
    """direction = -H slope, H the inverse Hessian that the remembered s and y make: Nocedal and Wright, algorithm 7.4.

    first (2, m, P), the latest first: steps s and changes y of the gradient; zeros, where there are none.  Writes
    shares and direction, returns whether there are any.
    """
    m, P, direction, shares = np.int64(plan.settings[LBFGS_HISTORY]), plan.parameters, search.direction, search.shares
    scale, count = 1.0, 0
    for q in range(P):
        direction[q] = -search.slope[q]
    for k in range(m):
        s, y = at(memory.first, k * P), at(memory.first, (m + k) * P)
        product = dot(P, s, y)
        if not product > 0:
            break
        if k == 0:
            scale = product / dot(P, y, y)
        shares[k] = dot(P, s, direction) / product
        add_scaled(P, y, -shares[k], direction)
        count += 1
    for q in range(P):
        direction[q] *= scale
    for k in range(count - 1, -1, -1):
        s, y = at(memory.first, k * P), at(memory.first, (m + k) * P)
        add_scaled(P, s, shares[k] - dot(P, y, direction) / dot(P, s, y), direction)
    return count > 0


@kernel
def decide(plan, memory, search):
    """What follows an evaluation, of which totals and gradient hold the sums;  clears them, and writes the search."""
    state, figures, totals, P = search.state, search.figures, memory.totals, plan.parameters
    gradient, direction = memory.gradient, search.direction
    if plan.l2 > 0:
        totals[LOSS] += penalty(plan, memory.params, gradient)
    scale = 1.0 / totals[WEIGHT] if plan.mean else 1.0
    value, step = totals[LOSS] * scale, figures[TRIED]
    for q in range(P):
        gradient[q] = scale * gradient[q]
    if state[AT_STAGE] == FIRST:
        take(plan, memory, search, value)
        state[AT_STAGE] = AIM
    else:
        slope = dot(P, direction, gradient)
        good = narrow(plan, search, value, slope)
        state[EVALUATED] += 1
        if good or state[AT_STAGE] == LAST:
            if step * (slope - figures[POINT_SLOPE]) > 0:  # s'y
                remember(plan, memory, search)
            take(plan, memory, search, value)
            state[AT_STAGE] = STEPPED
        elif state[EVALUATED] < plan.settings[LBFGS_EVALUATIONS]:
            go(plan, memory, search, next_trial(figures))
        elif figures[LOW] > 0:  # the best that was seen
            go(plan, memory, search, figures[LOW])
            state[AT_STAGE] = LAST
        else:
            copy(P, search.point, memory.params)
            forget(plan, memory)
            state[AT_STAGE] = STEPPED
    totals[LOSS], totals[ERROR], totals[WEIGHT] = 0, 0, 0
    for q in range(P):
        gradient[q] = 0


@kernel
def narrow(plan, search, value, slope):
    """Whether Wolfe's conditions hold at the trial; if not, the interval is narrowed to where they do.

    Nocedal and Wright, algorithms 3.5 and 3.6, as one: until there is an upper end, it is infinite.  Writes figures.
    """
    figures, step = search.figures, search.figures[TRIED]
    least = figures[POINT_VALUE] + plan.settings[LBFGS_C1] * step * figures[POINT_SLOPE]
    if not (value <= least and value < figures[LOW_VALUE]):
        figures[HIGH], figures[HIGH_VALUE], figures[HIGH_SLOPE] = step, value, slope
        return False
    if abs(slope) <= -plan.settings[LBFGS_C2] * figures[POINT_SLOPE]:
        return True
    if slope * (figures[HIGH] - figures[LOW]) >= 0:
        figures[HIGH], figures[HIGH_VALUE], figures[HIGH_SLOPE] = figures[LOW], figures[LOW_VALUE], figures[LOW_SLOPE]
    figures[LOW], figures[LOW_VALUE], figures[LOW_SLOPE] = step, value, slope
    return False


@kernel
def next_trial(figures):
    """Where the cubic through both ends of the interval is lowest: Nocedal and Wright, equation 3.59.

    Twice the lower end, where there is no upper one; in the middle, where the cubic has no lowest point.
    """
    low, high = figures[LOW], figures[HIGH]
    if high == np.inf:
        return 2 * low
    d1 = figures[LOW_SLOPE] + figures[HIGH_SLOPE] - 3 * (figures[LOW_VALUE] - figures[HIGH_VALUE]) / (low - high)
    square = d1 * d1 - figures[LOW_SLOPE] * figures[HIGH_SLOPE]
    share = 0.5
    if square >= 0:
        d2 = np.sqrt(square) if high > low else -np.sqrt(square)
        share = 1 - (figures[HIGH_SLOPE] + d2 - d1) / (figures[HIGH_SLOPE] - figures[LOW_SLOPE] + 2 * d2)
    if share * 0 != 0:
        share = 0.5
    return low + min(max(share, NARROWEST), 1 - NARROWEST) * (high - low)


@kernel
def go(plan, memory, search, step):
    """params = point + step direction;  writes params and the step."""
    search.figures[TRIED] = step
    for q in range(plan.parameters):
        memory.params[q] = search.point[q] + step * search.direction[q]


@kernel
def take(plan, memory, search, value):
    """Let the search be at the parameters, which were evaluated;  writes point, slope and figures."""
    figures, totals = search.figures, memory.totals
    copy(plan.parameters, memory.params, search.point)
    copy(plan.parameters, memory.gradient, search.slope)
    figures[POINT_VALUE], search.state[KNOWN] = value, 1
    figures[POINT_LOSS], figures[POINT_ERROR], figures[POINT_WEIGHT] = totals[LOSS], totals[ERROR], totals[WEIGHT]


@kernel
def remember(plan, memory, search):
    """The step s and the change y of the gradient become the latest, and the oldest ones are dropped;  writes first."""
    m, P = np.int64(plan.settings[LBFGS_HISTORY]), plan.parameters
    for k in range(2 * m - 1, 0, -1):
        if k != m:
            copy(P, at(memory.first, (k - 1) * P), at(memory.first, k * P))
    s, y = memory.first, at(memory.first, m * P)
    for q in range(P):
        s[q] = memory.params[q] - search.point[q]
        y[q] = memory.gradient[q] - search.slope[q]


@kernel
def forget(plan, memory):
    """first = 0."""
    for q in range(2 * np.int64(plan.settings[LBFGS_HISTORY]) * plan.parameters):
        memory.first[q] = 0


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
