"""L-BFGS: an epoch is one search along a line, whose direction the steps before make. By one thread.

The loss of an epoch is that before its step. Dimensions are those of `kernels.py`; m steps are remembered.
"""

import numpy as np

from fastbp.choices import (
    LBFGS_C1,
    LBFGS_C2,
    LBFGS_EVALUATIONS,
    LBFGS_GRADIENT_TOLERANCE,
    LBFGS_HISTORY,
    LBFGS_LOSS_TOLERANCE,
    LBFGS_MAX_EVALUATIONS,
    LEARNING_RATE,
)
from fastbp.formulas import add_scaled, finite, norm, penalty
from fastbp.jit import entry, kernel
from fastbp.kernels import backward, copy, forward, output_layer, panel_count, weight_of
from fastbp.second_order import (
    AIM,
    BEGIN,
    FIRST,
    LAST,
    STEPPED,
    TRIAL,
    VALIDATE,
    dot,
    end_steps,
    in_calls,
    pieces_of_call,
    validate,
    walked,
)
from fastbp.simd import at, bundle, flush_subnormals, put_back
from fastbp.workspace import (
    AT_PANEL,
    AT_ROW,
    AT_STAGE,
    CONVERGED,
    DIVERGED,
    EPOCH,
    ERROR,
    EVALUATED,
    EXHAUSTED,
    FINISHED,
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
    SPAN,
    SPAN_BEFORE,
    TILT,
    TRIED,
    UNFINISHED,
    WEIGHT,
    Memory,
    Plan,
    Search,
    second_order_memory,
    words_of,
)

# Of a line search: by what share of its last growth a step grows, at least and at most; to what share an interval
# shrinks in two trials; and the shortest one, as a share of its upper end.
LEAST_GROWTH, MOST_GROWTH, SHRINKING, SHORTEST = 1.1, 4.0, 0.66, 0.1


def bind(plan, memory, data, validation):
    """`run` for L-BFGS, as a function of the blocks alone, each an epoch."""
    search, pieces = second_order_memory(plan, memory.params.dtype), pieces_of_call(plan)
    words = memory.scalars.dtype.type(), words_of(plan), words_of(memory), words_of(search)

    def run(last):
        return lbfgs_words(*words, data, validation, last, pieces)

    return in_calls(plan, memory, search, run)


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

    data, validation: panels.  Returns the status of `run`, UNFINISHED, or at the end of an epoch what `ended` says.
    """
    state, status = search.state, FINISHED
    while status == FINISHED and memory.position[EPOCH] < last:
        stage = state[AT_STAGE]
        if stage == BEGIN:
            state[AT_STAGE] = AIM if knows(plan, memory, search) else FIRST
            copy(plan.parameters, memory.params, search.point)
        elif stage == AIM:
            status = aim(plan, memory, search)
        elif stage == STEPPED:
            status = end_steps(plan, memory, state)
        elif pieces <= 0:
            status = UNFINISHED
        else:
            pieces -= 1
            if stage == VALIDATE:
                status = validate(plan, memory, validation, state)
            elif walked(plan, memory, state, evaluate_block(plan, memory, search, data), plan.rows):
                decide(plan, memory, search)
        if status == FINISHED and state[AT_STAGE] == BEGIN:
            status = ended(plan, memory, search)
    return status


@kernel
def evaluate_block(plan, memory, search, data):
    """Loss and gradient of the next rows;  adds to totals and gradient, returns their number."""
    S, F, totals, begin = plan.width, plan.features, memory.totals, np.int64(0)
    row = search.state[AT_ROW]
    count = min(plan.rows - row, plan.block * S)
    panels = panel_count(count, S, memory.activations)
    x, a, all_zero = at(data, search.state[AT_PANEL] * F * S), memory.activations, memory.all_zero
    forward(plan, memory.params, all_zero, all_zero, x, F, begin, panels, begin, row, memory.kept, a)
    output_layer(plan, memory, x, F, begin, panels, totals, begin)
    backward(plan, memory, x, F, count, begin, row)
    totals[WEIGHT] = weight_of(plan, x, F, S, panels, totals[WEIGHT])
    return count


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
        step = step / length if length > 1 or epoch == 0 else step
    figures[POINT_SLOPE], state[EVALUATED] = slope, 0
    figures[LOW], figures[LOW_VALUE], figures[LOW_SLOPE] = 0, figures[POINT_VALUE], slope
    figures[HIGH], figures[SPAN], figures[SPAN_BEFORE] = np.inf, np.inf, np.inf
    figures[TILT] = plan.settings[LBFGS_C1] * slope
    if slope < 0 and not flat(plan, search):
        go(plan, memory, search, step)
        state[AT_STAGE] = TRIAL
    else:  # there is nothing below, or little
        state[AT_STAGE] = STEPPED
    return FINISHED


@kernel
def flat(plan, search):
    """Whether there is a tolerance of the gradient, and no component at the point is larger."""
    tolerance = plan.settings[LBFGS_GRADIENT_TOLERANCE]
    for q in range(plan.parameters):
        if not abs(search.slope[q]) <= tolerance:
            return False
    return tolerance > 0


@kernel
def ended(plan, memory, search):
    """Whether the epoch before was the last one: CONVERGED by a tolerance, EXHAUSTED by the evaluations, else FINISHED.

    That of the loss is for (before - after) / max(|before|, |after|, 1), as in L-BFGS-B.
    """
    figures, settings = search.figures, plan.settings
    before, after = memory.loss[memory.position[EPOCH] - 1], figures[POINT_LOSS] / figures[POINT_WEIGHT]
    least = settings[LBFGS_LOSS_TOLERANCE] * max(abs(before), abs(after), 1.0)
    if flat(plan, search) or before - after <= least > 0:
        return CONVERGED
    return EXHAUSTED if memory.second[0] >= settings[LBFGS_MAX_EVALUATIONS] > 0 else FINISHED


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
        state[EVALUATED] += 1
        memory.second[0] += 1
        if holds(plan, search, value, slope) or state[AT_STAGE] == LAST:
            if step * (slope - figures[POINT_SLOPE]) > 0:  # s'y
                remember(plan, memory, search)
            take(plan, memory, search, value)
            state[AT_STAGE] = STEPPED
        else:
            step, going_on = next_trial(plan, search, value, slope), state[EVALUATED] < plan.settings[LBFGS_EVALUATIONS]
            if going_on and step != figures[LOW]:
                go(plan, memory, search, step)
            elif figures[LOW] > 0 and (going_on or not remembers(plan, memory)):  # the best that was seen
                go(plan, memory, search, figures[LOW])
                state[AT_STAGE] = LAST
            else:  # once more along the gradient, unless that was it
                copy(P, search.point, memory.params)
                state[AT_STAGE] = AIM if remembers(plan, memory) else STEPPED
                forget(plan, memory)
    totals[LOSS], totals[ERROR], totals[WEIGHT] = 0, 0, 0
    for q in range(P):
        gradient[q] = 0


@kernel
def holds(plan, search, value, slope):
    """Whether Wolfe's conditions hold at the trial."""
    figures, settings = search.figures, plan.settings
    least = figures[POINT_VALUE] + settings[LBFGS_C1] * figures[TRIED] * figures[POINT_SLOPE]
    return value <= least and abs(slope) <= -settings[LBFGS_C2] * figures[POINT_SLOPE]


@kernel
def next_trial(plan, search, value, slope):
    """The step to try after one that is not good, or the best one if there is none left;  writes the interval.

    More and Thuente 1994, section 4, with the constants of their program: l is the best step yet, u the other end of an
    interval where there is a good one, infinite until it is known, t the trial. Until a trial has descended enough and
    its slope is no longer negative, values are those above the line of enough descent, where that is what t lacks.
    """
    figures = search.figures
    l, u, t, tilt = figures[LOW], figures[HIGH], figures[TRIED], figures[TILT]
    least = figures[POINT_VALUE] + plan.settings[LBFGS_C1] * t * figures[POINT_SLOPE]
    if value <= least and slope >= 0:
        figures[TILT] = 0
    if value <= least or not value <= figures[LOW_VALUE]:
        tilt = 0.0
    f_l, g_l = figures[LOW_VALUE] - l * tilt, figures[LOW_SLOPE] - tilt
    f_u, g_u = figures[HIGH_VALUE] - u * tilt, figures[HIGH_SLOPE] - tilt
    f_t, g_t = value - t * tilt, slope - tilt
    within = u < np.inf
    far = u if within else t + MOST_GROWTH * (t - l)
    cubic, secant = lowest(t, f_t, g_t, l, f_l, g_l), t + g_t / (g_t - g_l) * (l - t)
    higher, opposite = not f_t <= f_l, g_t * g_l < 0
    if higher:
        cubic = lowest(l, f_l, g_l, t, f_t, g_t)
        square = l + 0.5 * g_l / ((f_l - f_t) / (t - l) + g_l) * (t - l)
        step = cubic if abs(cubic - l) <= abs(square - l) else cubic + 0.5 * (square - cubic)
    elif opposite:
        step = cubic if abs(cubic - t) > abs(secant - t) else secant
    elif abs(g_t) < abs(g_l):
        if not (cubic - t) * (t - l) > 0:
            cubic = far
        if within:
            step = cubic if abs(cubic - t) < abs(secant - t) else secant
            most = t + SHRINKING * (u - t)
            step = min(step, most) if t > l else max(step, most)
        else:
            step = cubic if abs(cubic - t) > abs(secant - t) else secant
            step = min(max(step, t + LEAST_GROWTH * (t - l) if l > 0 else t), far)
    else:
        step = lowest(t, f_t, g_t, u, f_u, g_u) if within else far
    if higher:
        figures[HIGH], figures[HIGH_VALUE], figures[HIGH_SLOPE] = t, value, slope
    else:
        if opposite:
            figures[HIGH], figures[HIGH_VALUE], figures[HIGH_SLOPE] = l, figures[LOW_VALUE], figures[LOW_SLOPE]
        figures[LOW], figures[LOW_VALUE], figures[LOW_SLOPE] = t, value, slope
    return shortened(figures, step)


@kernel
def lowest(a, f_a, g_a, b, f_b, g_b):
    """Where the cubic with these values and slopes at a and b is lowest; no number where it is not."""
    d = 3 * (f_a - f_b) / (b - a) + g_a + g_b
    root = np.sqrt(d * d - g_a * g_b)
    if b < a:
        root = -root
    return a + (root - g_a + d) / (2 * root - g_a + g_b) * (b - a)


@kernel
def shortened(figures, step):
    """The step, or the middle of an interval that shrinks too slowly, or the best one if that is too short."""
    l, u, span = figures[LOW], figures[HIGH], abs(figures[HIGH] - figures[LOW])
    if u == np.inf:
        return step
    if span >= SHRINKING * figures[SPAN_BEFORE] or step * 0 != 0:
        step = l + 0.5 * (u - l)
    figures[SPAN_BEFORE], figures[SPAN] = figures[SPAN], span
    return step if min(l, u) < step < max(l, u) and span > SHORTEST * max(l, u) else l


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
def remembers(plan, memory):
    """Whether there is a step that the two loops take."""
    P = plan.parameters
    return dot(P, memory.first, at(memory.first, np.int64(plan.settings[LBFGS_HISTORY]) * P)) > 0


@kernel
def forget(plan, memory):
    """first = 0."""
    for q in range(2 * np.int64(plan.settings[LBFGS_HISTORY]) * plan.parameters):
        memory.first[q] = 0
