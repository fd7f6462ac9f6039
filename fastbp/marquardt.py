"""The optimiser of Levenberg and Marquardt: a damped step a batch, of whose work threads take parts.

The loss of an epoch is that before its steps. Dimensions are those of `kernels.py`; D is P in whole vectors of float64.
Rows and columns of J'J beyond P are zero, and only damped. Passes are computed in the precision of the network, J'J and
its factor in float64.
"""

from typing import Any

import numpy as np

from fastbp.choices import (
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    HUBER,
    LEARNING_RATE,
    LEVENBERG_MARQUARDT_ATTEMPTS,
    LEVENBERG_MARQUARDT_DECREASE,
    LEVENBERG_MARQUARDT_INCREASE,
    LEVENBERG_MARQUARDT_LARGEST,
    LEVENBERG_MARQUARDT_SMALLEST,
    SQUARED_ERROR,
)
from fastbp.formulas import add_scaled, finite, of_logits, penalty, slope, sum_of_squares, times_slope, weight_stride
from fastbp.jit import entry, inlined, kernel
from fastbp.kernels import copy, forward, gather, output_layer, panel_count, shuffle, weight_of
from fastbp.products import product
from fastbp.second_order import (
    ASSEMBLE,
    BEGIN,
    FACTORISE,
    STEPPED,
    TRIAL,
    VALIDATE,
    dot,
    end_steps,
    in_calls,
    pieces_of_call,
    validate,
)
from fastbp.simd import (
    PAIRED,
    TILE_ROWS,
    absolute,
    add_lane_sums,
    add_outer,
    at,
    bundle,
    flush_subnormals,
    if_full,
    lanes_of,
    load,
    load_rows,
    multiply_add,
    put_back,
    sqrt,
    store,
    transpose,
    where_less,
    zeros,
)
from fastbp.teams import CHUNK_WORK, begin_call, help_out, offer
from fastbp.threads import Work
from fastbp.workspace import (
    AT_PANEL,
    AT_ROW,
    AT_STAGE,
    BATCH_PANEL,
    BATCH_ROW,
    BATCH_VALUE,
    DIVERGED,
    EPOCH,
    ERROR,
    FIGURES_PLACES,
    FINISHED,
    LOSS,
    MOST_PARTS,
    REFUSED_STEPS,
    STAGE,
    STAGE_LAYER,
    UNFINISHED,
    WEIGHT,
    Memory,
    Plan,
    Squares,
    second_order_memory,
)

LEAST_CURVATURE = 2.0**-64  # of a probability that is 0 or 1 but for rounding: the loss may still have a slope there
EDGE = 8  # rows that are factorised together, and a vector of float64


def bind(plan, memory, data, validation, team=None):
    """`run` for Levenberg and Marquardt's, as a function of the blocks alone, each an epoch.

    By a team, if there is one: plan and memory then have the blocks of all its threads.
    """
    threads = team.threads if team else 1
    squares: Any = second_order_memory(plan, memory.params.dtype, threads)
    pieces = pieces_of_call(plan, plan.sizes.item(-1) * plan.parameters**2 // 2, threads)
    task = Work(marquardt_words, plan, memory, squares, data, validation, pieces)

    def run(last):
        blocks = last - memory.position.item(EPOCH)
        return team.run(task, blocks) if team else task.run(*task.words, blocks, 0)

    return in_calls(plan, memory, squares, run)


@entry
def marquardt_words(precision, version, plan, memory, squares, data, validation, pieces, blocks, helper):
    """`marquardt` with the words of plan, memory and squares, as the leader of a team for helper 0, or as a helper."""
    before = flush_subnormals()
    plan, memory = bundle(Plan, precision, version, plan), bundle(Memory, precision, version, memory)
    squares, data, validation = bundle(Squares, precision, version, squares), at(data, 0), at(validation, 0)
    status = FINISHED
    if helper > 0:
        help_out(do_chunk, plan, memory, squares, data, validation, helper)
    else:
        status = marquardt(plan, memory, squares, data, validation, memory.position[EPOCH] + blocks, pieces)
    put_back(before)
    return status


@kernel
def marquardt(plan, memory, squares, data, validation, last, pieces):
    """Train up to this epoch, but walk or factorise no more than so many blocks.

    data: the rows (n, F), or where they are not shuffled panels, batch after batch; validation: panels.  Returns the
    status of `run`, or UNFINISHED.
    """
    state, status = squares.state, FINISHED
    begin_call(squares.control)
    while status == FINISHED and memory.position[EPOCH] < last:
        stage = state[AT_STAGE]
        if stage == BEGIN:
            begin_batch(plan, memory, squares)
        elif stage == STEPPED:
            status = end_batches(plan, memory, squares)
        elif pieces <= 0:
            status = UNFINISHED
        elif stage == VALIDATE:
            pieces -= 1
            status = validate(plan, memory, validation, state)
        elif stage == FACTORISE:
            pieces -= 1
            factorise(plan, memory, squares, data, validation)
        else:
            pieces -= walk_batch(plan, memory, squares, data, validation, pieces)
            if state[AT_PANEL] == 0:
                if stage == ASSEMBLE:
                    end_assembly(plan, memory, squares)
                else:
                    compare(plan, memory, squares)
    return status


@kernel
def begin_batch(plan, memory, squares):
    """Draw the order of an epoch, and clear what is summed over a batch;  writes point and figures."""
    state = squares.state
    if plan.shuffled and state[BATCH_ROW] == 0:
        shuffle(plan.rows, plan.seed, memory.position[EPOCH], memory.order)
    copy(plan.parameters, memory.params, squares.point)
    for q in range(BATCH_VALUE):
        squares.figures[q] = 0
    state[AT_STAGE], state[REFUSED_STEPS] = ASSEMBLE, 0


# --- parts of a batch -------------------------------------------------------------------------------------------------
# Their sums are added in their order, and each is walked in blocks of `cut` panels: the bits are the same for any
# number of threads. Each thread has panels of its own in the block of the plan.


@inlined
def parts_of_batch(plan, squares, most):
    """Parts of this batch, no more than so many; panels of a part, the same for all batches; panels of this batch."""
    S, cut = plan.width, squares.cut
    blocks = (plan.batch_size + S * cut - 1) // (S * cut)
    each = max(2, (blocks + most - 1) // most) * cut
    panels = panel_count(batch_rows(plan, squares), S, squares.roots)
    return (panels + each - 1) // each, each, panels


@inlined
def batch_rows(plan, squares):
    """Rows of this batch."""
    return min(plan.batch_size, plan.rows - squares.state[BATCH_ROW])


@kernel
def walk_batch(plan, memory, squares, data, validation, pieces):
    """Have the next blocks of all parts walked, some so many;  returns how many, and is at panel 0 after the last."""
    state, cut, most, bands = squares.state, squares.cut, np.int64(MOST_PARTS), np.int64(1)
    if state[AT_STAGE] == ASSEMBLE:
        most, bands = squares.parts, squares.bands
    parts, each, panels = parts_of_batch(plan, squares, most)
    steps = min(max(1, pieces // parts), each // cut)
    offer(do_chunk, plan, memory, squares, data, validation, state[AT_STAGE], steps, parts * bands)
    state[AT_PANEL] += steps * cut
    if state[AT_PANEL] >= min(each, panels):
        state[AT_PANEL] = 0
    return parts * steps


@kernel
def do_chunk(plan, memory, squares, data, validation, chunk, helper):
    """Do one chunk of the stage."""
    control, D = squares.control, in_vectors(plan.parameters)
    if control[STAGE] == FACTORISE:
        i, each = squares.state[AT_ROW], columns_of_chunk(squares.state[AT_ROW])
        begin = i + chunk * each
        scale = 1.0 / squares.figures[WEIGHT] if plan.mean else 1.0
        rest_rows(squares.normal, D, scale, i, begin, min(begin + each, D), squares.factor)
    else:
        walk_part(plan, memory, squares, data, chunk, helper)


@kernel
def walk_part(plan, memory, squares, data, chunk, helper):
    """The next blocks of a part, of whose J'J a band is summed, or of the trial;  writes sums, slope and normal."""
    control, F, S, cut = squares.control, plan.features, plan.width, squares.cut
    assembles, steps, most, bands = control[STAGE] == ASSEMBLE, control[STAGE_LAYER], np.int64(MOST_PARTS), np.int64(1)
    if assembles:
        most, bands = squares.parts, squares.bands
    _, each, panels = parts_of_batch(plan, squares, most)
    sums = at(squares.sums, chunk * FIGURES_PLACES)
    begin = chunk // bands * each
    first = begin + squares.state[AT_PANEL]
    end = min(min(first + steps * cut, begin + each), panels)
    if first == begin:
        clear(plan, squares, chunk, assembles)
    for panel in range(first, end, cut):
        count = min(cut, end - panel)
        # Where the block begins, less what lies before the panels of this thread.
        x = at(data, (squares.state[BATCH_PANEL] + panel - helper * cut) * F * S)
        if plan.shuffled:
            x = at(squares.batch, (panel - helper * cut) * F * S)
        if assembles:
            assemble_block(plan, memory, squares, data, x, panel, count, chunk, panel > begin, helper)
        else:
            try_block(plan, memory, squares, x, panel, count, sums, helper)


@kernel
def clear(plan, squares, chunk, assembles):
    """What a chunk begins with;  writes sums and slope."""
    D = in_vectors(plan.parameters)
    for q in range(FIGURES_PLACES):
        squares.sums[chunk * FIGURES_PLACES + q] = 0
    for q in range(D if assembles else 0):
        squares.slope[chunk * D + q] = 0


@inlined
def in_vectors(P):
    """P in whole vectors of float64."""
    return (P + EDGE - 1) // EDGE * EDGE


@kernel
def assemble_block(plan, memory, squares, data, x, panel, panels, chunk, begun, helper):
    """Loss, gradient and J'J of some panels of the batch, from this one on;  adds to what the chunk sums.

    x (panels, F, S);  writes it, if rows are shuffled, activations and deltas.
    """
    S, I, O, F, none = plan.width, plan.sizes[0], plan.sizes[plan.layers], plan.features, np.int64(0)
    D, row, begin, bands = in_vectors(plan.parameters), panel * plan.width, helper * squares.cut, squares.bands
    a, all_zero, top = memory.activations, memory.all_zero, plan.tops[plan.layers - 1] * plan.block * S
    end = begin + panels
    sums, slope, own = at(squares.sums, chunk * FIGURES_PLACES), at(squares.slope, chunk * D), at(x, begin * F * S)
    if plan.shuffled:  # whoever sums another band of the part writes the same
        count = min(batch_rows(plan, squares) - row, panels * S)
        gather(data, at(memory.order, squares.state[BATCH_ROW] + row), count, F, S, panels, all_zero, own)
    forward(plan, memory.params, all_zero, all_zero, x, F, begin, end, none, row, memory.kept, a)
    # The logits, which `output_layer` writes over.
    copy(panels * O * S, at(a, top + begin * O * S), at(squares.roots, begin * O * S))
    output_layer(plan, memory, x, F, begin, end, sums, none)
    for p in range(begin, end):
        y, place = at(x, (p * F + I) * S), top + p * O * S
        curvature(plan, at(a, place), y, at(y, O * S), O, S, at(memory.deltas, place), at(squares.roots, p * O * S))
        lay_activations(plan, memory, at(x, p * F * S), p, at(squares.units, p * units_of(plan) * S))
    rows, normal = at(squares.jacobian, begin * D * S), at(squares.normal, chunk // bands * D * D)
    for o in range(O):
        for p in range(begin, end):
            lay_deltas(plan, memory, p, o, at(squares.roots, p * O * S), at(squares.units, p * units_of(plan) * S))
        jacobian(plan, squares, D, begin, panels, o, rows, slope)
        add_squares(rows, D, panels * S, chunk % bands, bands, begun or o > 0, normal)
    sums[WEIGHT] = weight_of(plan, own, F, S, panels, sums[WEIGHT])


@kernel
def curvature(plan, p, y, weight, O, S, delta, roots):
    """The root of the curvature of the loss by each logit, of "cross_entropy" that of p; and of the weight.

    Squared error: f'(z)^2; Huber: the same, beyond d times d / |r|; binary cross-entropy: p (1 - p); Poisson: p.
    p, y (O, S), weight (S,), or (O, S) if outputs have their own;  writes roots (O, S), which holds the logits, and
    divides delta (O, S) by them: J' times that is the gradient.
    """
    V, loss, kind, d = lanes_of(p), plan.loss, plan.kinds[plan.layers - 1], plan.huber_delta
    stride = if_full(plan, np.int64(0), weight_stride, plan.output_weights, S)
    for v in range(0, S, V):
        for o in range(O):
            q, share = o * S + v, load(1, 1, at(weight, o * stride + v), 0)
            p_q = load(1, 1, at(p, q), 0)
            curved = p_q * (1.0 - p_q) if loss == BINARY_CROSS_ENTROPY else p_q
            curved = where_less(curved, LEAST_CURVATURE, LEAST_CURVATURE, curved)
            if loss in (SQUARED_ERROR, HUBER):
                kept = load(1, 1, at(roots, q), 0) if of_logits(kind) else p_q
                root = times_slope(plan, kind, zeros(1, 1, p) + 1.0, kept)
                curved = root * root
                if loss == HUBER:
                    size = absolute(p_q - load(1, 1, at(y, q), 0))
                    curved = where_less(size, d, curved, curved * (d / size))
            root = sqrt(curved * share)
            store(at(roots, q), 0, root)
            store(at(delta, q), 0, where_less(0.0, root, load(1, 1, at(delta, q), 0) / root, 0.0))


@inlined
def units_of(plan):
    """Rows of `units` (U, S): zeros, ones, inputs, hidden units, residuals, and the deltas of all layers."""
    return 2 + plan.sizes[0] + 2 * (plan.tops[plan.layers - 1] + plan.sizes[plan.layers])


@inlined
def widen(n, x, out):
    """out = x (n,), whole vectors, in float64."""
    if lanes_of(x) == lanes_of(out):
        for q in range(0, n, lanes_of(x)):
            store(at(out, q), 0, load(1, 1, at(x, q), 0))
    else:
        for q in range(n):
            out[q] = x[q]


@kernel
def lay_activations(plan, memory, x, p, units):
    """What comes into each layer, and the residuals, for a panel.  x (F, S);  writes of units all but the deltas."""
    S, I, row = plan.width, plan.sizes[0], 2 + plan.sizes[0]
    for s in range(S):
        units[s], units[S + s] = 0, 1
    widen(I * S, x, at(units, 2 * S))
    for layer in range(plan.layers):
        O = plan.sizes[layer + 1]
        rows = memory.activations if layer + 1 < plan.layers else memory.deltas
        widen(O * S, at(rows, (plan.tops[layer] * plan.block + p * O) * S), at(units, row * S))
        row += O


@kernel
def lay_deltas(plan, memory, p, o, roots, units):
    """Gradients of the logit of output o, times the root of its curvature, by the logits of all layers, for a panel.

    Of "cross_entropy", whose curvature is diag(p) - p p', they are those of root p_o (z_o - sum_k p_k z_k): the sum of
    their squares over o is that.  roots (O, S);  writes deltas, and those of units.
    """
    S, O, all_zero, unit = plan.width, plan.sizes[plan.layers], memory.all_zero, np.int64(1)
    V, place = lanes_of(roots), plan.tops[plan.layers - 1] * plan.block * S + p * O * S
    delta = at(memory.deltas, place)
    for v in range(0, S, V):
        root = load(1, 1, at(roots, o * S + v), 0)
        for k in range(O):
            delta_k = zeros(1, 1, roots)
            if k == o:
                delta_k = root
            if plan.loss == CROSS_ENTROPY:
                delta_k = delta_k - root * load(1, 1, at(memory.activations, place + k * S + v), 0)
            store(at(delta, k * S + v), 0, delta_k)
    row = units_of(plan) - O
    widen(O * S, delta, at(units, row * S))
    for layer in range(plan.layers - 1, 0, -1):
        I, O = plan.sizes[layer], plan.sizes[layer + 1]
        place = plan.tops[layer - 1] * plan.block * S + p * I * S
        below, row = at(memory.deltas, place), row - I
        product(at(memory.params, plan.starts[layer]), O, unit, I, O, all_zero, delta, S, below)
        kept = at(memory.kept, place) if plan.keeps[layer - 1] else at(memory.activations, place)
        slope(plan, plan.kinds[layer - 1], below, kept, I * S)
        widen(I * S, below, at(units, row * S))
        delta = below


@kernel
def jacobian(plan, squares, D, begin, panels, o, out, slope):
    """Rows of J of output o, a sample each: dz[k, s] / dw[i, k] = a[i, s], by the bias 1, times the delta of k.

    Of so many panels, from this one of `units` on.  Writes out, as many columns at once as `squares_tile` takes,
    (D / width, panels S, width), and adds J' times the residuals to slope (D,).
    """
    S, U, units, one = plan.width, units_of(plan), squares.units, np.int64(1)
    residuals = 2 + plan.sizes[0] + plan.tops[plan.layers - 1] + o
    V = lanes_of(units)
    for q in range(0, D, V):
        first, width = tile_of(q, D, V)
        tile, sums = at(out, first * panels * S + q - first), zeros(8, 1, units)
        for p in range(panels):
            for v in range(0, S, V):
                place = at(units, (begin + p) * U * S + v)
                a = load_rows(place, at(squares.factors, q), one, V, units)
                rows = a * load_rows(place, at(squares.factors, D + q), one, V, units)
                sums = multiply_add(rows, load(1, 1, at(place, residuals * S), 0), sums)
                store(at(tile, (p * S + v) * width), width, transpose(rows))
        add_lane_sums(sums, at(slope, q), 1)


@inlined
def tile_of(q, D, V):
    """First column and columns of the tile of rows of J that holds column q."""
    first = q // (2 * V) * (2 * V) if PAIRED else q // V * V
    return first, 2 * V if PAIRED and first + 2 * V <= D else V


@kernel
def add_squares(rows, D, samples, band, bands, begun, normal):
    """normal[i, j] += sum_s rows[s, i] rows[s, j], from the tile of the diagonal on; = if nothing is begun.

    rows as `jacobian` writes them;  adds to normal (D, D), of the tiles of rows every so many-th from band on, each sum
    in the order of the samples.
    """
    V = lanes_of(rows)
    for i in range(band * TILE_ROWS, D, bands * TILE_ROWS):
        first, stride = tile_of(i, D, V)
        a, j = at(rows, first * samples + i - first), i // V * V
        while j < D:
            first, width = tile_of(j, D, V)
            columns, sums = at(rows, first * samples + j - first), at(normal, i * D + j)
            if PAIRED and j == first and width == 2 * V:
                squares_tile(TILE_ROWS, 2, a, stride, columns, width, samples, D, begun, sums)
                j += 2 * V
            else:
                squares_tile(TILE_ROWS, 1, a, stride, columns, width, samples, D, begun, sums)
                j += V


@kernel
def squares_tile(rows, vectors, a, stride, columns, width, samples, D, begun, out):
    """`add_squares` for a few rows and one or two vectors of columns, of samples that lie so far apart."""
    sums = load(rows, vectors, out, D) if begun else zeros(rows, vectors, out)
    for s in range(samples):
        sums = add_outer(sums, at(a, s * stride), 1, at(columns, s * width))
    store(out, D, sums)


@kernel
def end_assembly(plan, memory, squares):
    """The equations of the batch are complete, and its loss counts;  writes slope and totals, and clears gradient."""
    state, figures, totals, P = squares.state, squares.figures, memory.totals, plan.parameters
    D = in_vectors(plan.parameters)
    add_parts(plan, squares, D)
    weight = figures[WEIGHT]
    if plan.l2 > 0:
        figures[LOSS] += penalty(plan, memory.params, memory.gradient)
        for layer in range(plan.layers):
            for q in range(plan.starts[layer], plan.starts[layer] + plan.sizes[layer] * plan.sizes[layer + 1]):
                squares.normal[q * D + q] += plan.l2
    scale = 1.0 / weight if plan.mean else 1.0
    for q in range(P):
        squares.slope[q] = scale * (squares.slope[q] + memory.gradient[q])
        memory.gradient[q] = 0
    figures[BATCH_VALUE] = scale * figures[LOSS]
    state[AT_STAGE] = FACTORISE
    if weight > 0:
        totals[LOSS] += figures[LOSS]
        totals[ERROR] += figures[ERROR]
        totals[WEIGHT] += weight
    if not (weight > 0 and figures[LOSS] * 0 == 0):  # a batch without weight is as if it were not there
        end_batch(plan, memory, squares)


@kernel
def add_parts(plan, squares, D):
    """Add up what the parts of a batch have summed;  writes figures, and normal and slope of the first."""
    V, bands, normal = lanes_of(squares.normal), squares.bands, squares.normal
    parts, _, _ = parts_of_batch(plan, squares, squares.parts)
    for part in range(parts):
        sums = at(squares.sums, part * bands * FIGURES_PLACES)
        for q in range(FIGURES_PLACES):
            squares.figures[q] += sums[q]
        for q in range(D if part > 0 else 0):
            squares.slope[q] += squares.slope[part * bands * D + q]
    for i in range(D if parts > 1 else 0):
        for j in range(i * D + i // V * V, (i + 1) * D, V):
            total = load(1, 1, at(normal, j), 0)
            for part in range(1, parts):
                total = total + load(1, 1, at(normal, part * D * D + j), 0)
            store(at(normal, j), 0, total)


@kernel
def factorise(plan, memory, squares, data, validation):
    """The next rows of the Cholesky factor, and after the last the step;  writes factor, solution and params."""
    state, D, P, i = squares.state, in_vectors(plan.parameters), plan.parameters, squares.state[AT_ROW]
    each = columns_of_chunk(i)
    offer(do_chunk, plan, memory, squares, data, validation, state[AT_STAGE], np.int64(0), (D - i + each - 1) // each)
    if not factor_rows(D, np.float64(memory.second[0]), i, squares.factor):
        state[AT_ROW] = 0
        refuse(plan, memory, squares)
        return
    state[AT_ROW] += EDGE
    if state[AT_ROW] == D:
        state[AT_ROW] = 0
        solve(squares.factor, D, squares.slope, squares.solution)
        for q in range(P):
            memory.params[q] = squares.point[q] - plan.settings[LEARNING_RATE] * squares.solution[q]
        state[AT_STAGE] = TRIAL


# Rows i to i + EDGE of the upper factor: factor' factor = scale normal + damping I. That is
#     factor[i, j] = (normal[i, j] - sum_k<i factor[k, i] factor[k, j]) / factor[i, i],
# where the sum over k is the product by tiles again, and only what the EDGE rows have of each other is computed row by
# row. With `solve` it takes 6 us at 61 parameters, 0.9 ms at 500 and 59 ms at 2,000, one thread; LAPACK's dpotrf and
# dpotrs, called by Python, 15 us, 1.7 and 85.


@inlined
def columns_of_chunk(i):
    """Columns whose sums over i rows above them are a chunk: whole tiles."""
    return max(1, CHUNK_WORK // (2 * EDGE * (i + 1))) * 2 * EDGE


@kernel
def rest_rows(normal, D, scale, i, begin, end, factor):
    """scale normal - the sums over the rows before i, for the rows from there on and the columns from begin to end.

    normal (D, D), whose upper half counts;  writes factor (D, D), given the rows before.
    """
    V = lanes_of(normal)
    for r in range(i, i + EDGE, TILE_ROWS):
        j = begin
        while j < end:
            w, x = at(factor, r), at(factor, j)
            if PAIRED and j + 2 * V <= end:
                rest_tile(TILE_ROWS, 2, w, x, D, i, scale, at(normal, r * D + j), at(factor, r * D + j))
                j += 2 * V
            else:
                rest_tile(TILE_ROWS, 1, w, x, D, i, scale, at(normal, r * D + j), at(factor, r * D + j))
                j += V


@kernel
def factor_rows(D, damping, i, factor):
    """The rows, given what `rest_rows` left of them;  writes factor.  Returns whether all pivots were above zero."""
    V = lanes_of(factor)
    for k in range(i, i + EDGE):
        factor[k * D + k] += damping
        pivot = factor[k * D + k]
        if not (pivot > 0 and pivot * 0 == 0):
            return False
        root = np.sqrt(pivot)
        inverse, row = 1.0 / root, at(factor, k * D)
        for j in range(i, D, V):  # whole vectors: nothing below the diagonal counts
            store(at(row, j), 0, load(1, 1, at(row, j), 0) * inverse)
        row[k] = root
        for r in range(k + 1, i + EDGE):
            add_scaled(D - i, at(row, i), -row[r], at(factor, r * D + i))
    return True


@kernel
def rest_tile(rows, vectors, w, x, D, n, scale, normal, out):
    """out = scale normal - sum_k<n w[k D + r] x[k D : ], a tile of `rest_rows`."""
    sums = zeros(rows, vectors, x)
    for k in range(n):
        sums = add_outer(sums, at(w, k * D), 1, at(x, k * D))
    store(out, D, load(rows, vectors, normal, D) * scale - sums)


@kernel
def solve(factor, D, slope, out):
    """out = x where factor' factor x = slope.  factor (D, D), upper;  writes out (D,)."""
    # EDGE unknowns at once, so that all but the triangles on the diagonal are whole vectors.
    V = lanes_of(factor)
    for k in range(D):
        out[k] = slope[k]
    for first in range(0, D, EDGE):  # factor' y = slope
        end = first + EDGE
        for k in range(first, end):
            out[k] = out[k] / factor[k * D + k]
            for r in range(k + 1, end):
                out[r] -= factor[k * D + r] * out[k]
        for k in range(first, end):
            add_scaled(D - end, at(factor, k * D + end), -out[k], at(out, end))
    for first in range(D - EDGE, -1, -EDGE):  # factor x = y
        end, sums = first + EDGE, zeros(EDGE, 1, out)
        for j in range(end, D, V):
            sums = multiply_add(load(EDGE, 1, at(factor, first * D + j), D), 0.0 - load(1, 1, at(out, j), 0), sums)
        add_lane_sums(sums, at(out, first), 1)
        for k in range(end - 1, first - 1, -1):
            for r in range(k + 1, end):
                out[k] -= factor[k * D + r] * out[r]
            out[k] = out[k] / factor[k * D + k]


@kernel
def try_block(plan, memory, squares, x, panel, panels, sums, helper):
    """Loss of some panels of the batch at the trial, from this one on;  adds to sums, writes activations and deltas."""
    F, none, a, all_zero, begin = plan.features, np.int64(0), memory.activations, memory.all_zero, helper * squares.cut
    end, row = begin + panels, panel * plan.width
    forward(plan, memory.params, all_zero, all_zero, x, F, begin, end, none, row, memory.kept, a)
    output_layer(plan, memory, x, F, begin, end, sums, none)


@kernel
def compare(plan, memory, squares):
    """Keep the step if the loss is lower, and damp less, or refuse it;  writes second."""
    figures, settings, value = squares.figures, plan.settings, 0.0
    parts, _, _ = parts_of_batch(plan, squares, np.int64(MOST_PARTS))
    for part in range(parts):
        value += squares.sums[part * FIGURES_PLACES + LOSS]
    if plan.l2 > 0:
        for layer in range(plan.layers):
            n = plan.sizes[layer] * plan.sizes[layer + 1]
            value += 0.5 * plan.l2 * sum_of_squares(n, at(memory.params, plan.starts[layer]), 1.0)
    if plan.mean:
        value = value * (1.0 / figures[WEIGHT])
    if value < figures[BATCH_VALUE]:
        damping = memory.second[0] * damped_less(plan, squares, memory.second[0], figures[BATCH_VALUE] - value)
        memory.second[0] = min(
            max(damping, settings[LEVENBERG_MARQUARDT_SMALLEST]), settings[LEVENBERG_MARQUARDT_LARGEST]
        )
        end_batch(plan, memory, squares)
    else:
        refuse(plan, memory, squares)


@kernel
def damped_less(plan, squares, damping, gain):
    """Factor of the damping after a step that lowered the loss by this gain: Nielsen 1999, equation 2.5.

    1 - (2 r - 1)^3, r the gain over that of the quadratic model, share slope' s - share^2 / 2 s' H s: from 2, where the
    model promised too much, over 1 to `decrease`, where it promised too little. Rules that knew no more than whether a
    step was refused ended at up to six times the loss after as many epochs.
    """
    D, share, decrease = in_vectors(plan.parameters), plan.settings[LEARNING_RATE], LEVENBERG_MARQUARDT_DECREASE
    along = dot(D, squares.slope, squares.solution)
    curved = along - damping * dot(D, squares.solution, squares.solution)  # s' H s
    ratio = gain / (share * along - 0.5 * share * share * curved)
    factor = 1 - (2 * ratio - 1) * (2 * ratio - 1) * (2 * ratio - 1)
    return factor if factor > plan.settings[decrease] else np.float64(plan.settings[decrease])


@kernel
def refuse(plan, memory, squares):
    """Return to the point, and damp more: once again, unless the attempts are used up;  writes params and second."""
    state, settings = squares.state, plan.settings
    copy(plan.parameters, squares.point, memory.params)
    exhausted = memory.second[0] >= settings[LEVENBERG_MARQUARDT_LARGEST]
    damping = memory.second[0] * settings[LEVENBERG_MARQUARDT_INCREASE] * 2.0 ** state[REFUSED_STEPS]
    memory.second[0] = min(damping, settings[LEVENBERG_MARQUARDT_LARGEST])
    state[AT_STAGE] = FACTORISE
    state[REFUSED_STEPS] += 1
    if exhausted or state[REFUSED_STEPS] >= settings[LEVENBERG_MARQUARDT_ATTEMPTS]:
        end_batch(plan, memory, squares)


@kernel
def end_batch(plan, memory, squares):
    """On to the next batch;  writes state."""
    state = squares.state
    rows = batch_rows(plan, squares)
    state[BATCH_ROW] += rows
    state[BATCH_PANEL] += panel_count(rows, plan.width, memory.activations)
    state[AT_STAGE] = BEGIN
    if state[BATCH_ROW] == plan.rows:
        state[BATCH_ROW], state[BATCH_PANEL], state[AT_STAGE] = 0, 0, STEPPED


@kernel
def end_batches(plan, memory, squares):
    """Mean loss and error of the rows of an epoch;  writes them and totals, returns the status of `run`."""
    totals, state, epoch = memory.totals, squares.state, memory.position[EPOCH]
    loss, weight = totals[LOSS], totals[WEIGHT]
    memory.loss[epoch], memory.error[epoch] = loss / weight, totals[ERROR] / (weight * plan.sizes[plan.layers])
    totals[LOSS], totals[ERROR], totals[WEIGHT] = 0, 0, 0
    if loss * 0 == 0 and finite(plan.parameters, memory.params):
        return end_steps(plan, memory, state)
    memory.position[EPOCH] += 1
    state[AT_STAGE] = BEGIN
    return DIVERGED
