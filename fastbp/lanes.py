"""Many networks at once: back-propagation as in the textbook, where each number is a vector, that of V networks.

Dimensions are those of `kernels.py`, but V lanes are V networks of one shape, a *group*, and every item of an array is
a vector. A panel holds the samples of a block, feature-major: unit o of sample s is at [o S + s V], S = V times the
samples. Nothing is ever summed across lanes, so that no result depends on the neighbours, narrow layers waste nothing,
and all sums have the textbook's order: over inputs, outputs, samples.

The networks of a group walk the same number of rows, batch by batch, and each is in an epoch of its own.
"""

import numpy as np

from fastbp.choices import (
    ADAM,
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPSILON,
    ADAM_EPSILON_HAT,
    ADAMW,
    ADAMW_WEIGHT_DECAY,
    BINARY_CROSS_ENTROPY,
    CONSTANT,
    CROSS_ENTROPY,
    IRPROP_DECREASE,
    IRPROP_INCREASE,
    IRPROP_LARGEST_STEP,
    IRPROP_SMALLEST_STEP,
    MOMENTUM_SGD,
    PLAIN_SGD,
    REDUCE_ON_PLATEAU,
    REDUCE_ON_PLATEAU_FACTOR,
    REDUCE_ON_PLATEAU_MIN_DELTA,
    REDUCE_ON_PLATEAU_MINIMUM,
    REDUCE_ON_PLATEAU_PATIENCE,
    REDUCE_ON_PLATEAU_STOP,
    RMSPROP,
    RMSPROP_DECAY,
    RMSPROP_EPSILON,
    SGD_MOMENTUM,
    SGD_NESTEROV,
)
from fastbp.formulas import (
    activate,
    activation,
    adam_of,
    elementwise,
    irprop_of,
    loss_and_delta,
    misfit,
    momentum_sgd_of,
    of_logits,
    plain_sgd_of,
    random_stream,
    rate_factor,
    rmsprop_of,
    slope,
    times_slope,
)
from fastbp.jit import entry, inlined, kernel
from fastbp.kernels import gather
from fastbp.simd import (
    MATRIX_COLUMNS,
    MATRIX_ROWS,
    absolute,
    add_outer_vectors,
    add_products,
    add_rows,
    add_to_totals,
    at,
    bundle,
    fill,
    flush_subnormals,
    if_full,
    keep_loops,
    lane_sum,
    lanes_of,
    load,
    load_matrix,
    multiply_add,
    put_back,
    random_bits,
    sqrt,
    store,
    store_matrix,
    uniform_of,
    where_less,
    zeros,
)
from fastbp.workspace import (
    BATCH,
    BEST,
    BEST_RATE,
    BETTER,
    CORRECTED_EPSILON,
    CORRECTED_RATE,
    FACTOR,
    FIGURE,
    GROUP_EPOCH,
    GROUP_LAID,
    GROUP_RATE,
    GROUP_ROW,
    GROUP_UNTIL,
    LOSS,
    MISFIT,
    PENALTY,
    POWER1,
    POWER2,
    RATE,
    REST1,
    REST2,
    SCALE,
    SUM,
    TINY_SAMPLES,
    VALIDATION_MISFIT,
    WEIGHT,
    Group,
    Plan,
    words_of,
)

RUNNING, DIVERGED, PATIENT, PLATEAU, IDLE = range(5)  # Group.status


# --- training ---------------------------------------------------------------------------------------------------------


def bind(plan, group, data, held_data):
    """`run` as a function of the blocks alone."""
    words = group.numbers.dtype.type(), None if plan.lean else True, words_of(plan), words_of(group)

    def bound(blocks, arrays=(plan, group)):  # which must outlive the words, their addresses
        return run_words(*words, data, held_data, blocks)

    return bound


@entry
def run_words(precision, version, plan, group, data, held_data, blocks):
    """`run` with the words of plan and group, and any number of the working precision."""
    before = flush_subnormals()
    ended = run(
        bundle(Plan, precision, version, plan), bundle(Group, precision, version, group), at(data, 0),
        at(held_data, 0), blocks,
    )  # fmt: skip
    put_back(before)
    return ended


@kernel
def run(plan, group, data, held_data, blocks):
    """Train for so many blocks, or to the end of an epoch in which a network ends;  returns whether one has.

    data, held_data: the rows (n, F) to train on and those for validation.
    """
    keep_loops()  # of `tiny_batch`: XOR takes 7 % longer without
    position, n, rows = group.position, plan.rows, plan.rows + plan.validation_rows
    row, ended = position[GROUP_ROW], False
    for _ in range(blocks):
        if row == 0 and (group.drawn_anew or position[GROUP_LAID] == 0):
            begin_epoch(plan, group)
        if row < n:
            row += train_block(plan, group, data, row)
        else:
            row += if_full(plan, 0, validate_block, plan, group, held_data, row - n)
        if row == n:
            end_training(plan, group)
        if row == rows:
            row, ended = 0, end_epoch(plan, group)
            if ended:
                break
    position[GROUP_ROW] = row
    return ended


@kernel
def begin_epoch(plan, group):
    """Order of the rows, learning rate and streams of dropout in the epoch that each network is in."""
    V, numbers, totals = lanes_of(group.params), group.numbers, group.totals
    for v in range(V):
        epoch, seed, factor = group.position[GROUP_EPOCH] - group.begun[v], group.seeds[v], 1.0
        if plan.shuffled:
            shuffle(plan.rows, V, seed, epoch, at(group.order, v))
        if plan.schedule != CONSTANT:
            reached, settings = totals[FACTOR * V + v], plan.schedule_settings
            factor = if_full(plan, 1.0, rate_factor, plan.schedule, settings, epoch, reached, group.vector)
        numbers[RATE * V + v] = factor * totals[GROUP_RATE * V + v]
        numbers[SCALE * V + v] = 1.0 / TINY_SAMPLES if plan.mean else 1.0  # `step` has its own
        for layer in range(plan.layers - 1):
            if plan.dropout[layer] > 0:
                group.keys[layer * V + v] = np.int64(random_stream(seed, epoch, layer + 1))


@inlined
def train_block(plan, group, data, row):
    """Forward and backward pass of the next rows of a batch, and the update after its last;  returns their number."""
    n, x, position = plan.rows, group.x, group.position
    F = plan.sizes[0] + plan.sizes[plan.layers] + 1
    batch = row - row % plan.batch_size if row > 0 else row
    batch_rows = min(plan.batch_size, n - batch)
    count = min(batch + batch_rows - row, plan.block)
    if position[GROUP_LAID] == 0:
        lay_out(plan, group, data, row, count, F)
        position[GROUP_LAID] = n <= plan.block and not plan.shuffled  # the next epoch finds them there
    if plan.tiny:
        tiny_batch(plan, group, x)
        return count
    S = count * lanes_of(x)
    forward(plan, group, x, S, row, True)
    output(plan, group, x, S)
    backward(plan, group, x, S, row)
    if row + count == batch + batch_rows:
        step(plan, group, np.float64(batch_rows))
    return count


@kernel
def validate_block(plan, group, held_data, row):
    """Loss and misfit of the next rows for validation;  adds to totals, returns their number."""
    V, I, O, x, totals = lanes_of(group.params), plan.sizes[0], plan.sizes[plan.layers], group.x, group.totals
    F, count = I + O + 1, min(plan.validation_rows - row, plan.block)
    group.position[GROUP_LAID] = 0
    S = count * V
    gather(held_data, at(group.held, row * V), S, F, S, np.int64(1), group.all_zero, x)
    weigh(plan, at(group.held_weights, row * V), F, S, x)
    forward(plan, group, x, S, row, False)
    output(plan, group, x, S)
    p, y = at(group.activations, plan.tops[plan.layers - 1] * plan.block * V), at(x, I * S)
    weight = at(y, O * S)
    if plan.loss in (CROSS_ENTROPY, BINARY_CROSS_ENTROPY):
        total = misfit(plan, p, y, weight, plan.spread, O, S)
    else:
        total = squares(p, y, weight, group.spread, O, S)
    add_to_totals(at(totals, MISFIT * V), total)
    add_to_totals(at(totals, WEIGHT * V), samples_sum(weight, S))
    return count


@kernel
def squares(p, y, weight, spread, O, S):
    """`misfit`, the squared residuals, with spreads (O, V) of each network's own.  p, y (O, S), weight (S,)."""
    V = lanes_of(p)
    total = zeros(1, 1, p)
    for v in range(0, S, V):
        square = zeros(1, 1, p)
        for o in range(O):
            q = o * S + v
            residual = load(1, 1, at(spread, o * V), 0) * (load(1, 1, at(p, q), 0) - load(1, 1, at(y, q), 0))
            square = multiply_add(residual, residual, square)
        total = multiply_add(square, load(1, 1, at(weight, v), 0), total)
    return total


@inlined
def samples_sum(x, S):
    """sum_s x[s] for each network.  x (S,);  returns one vector."""
    total = zeros(1, 1, x)
    for v in range(0, S, lanes_of(x)):
        total = total + load(1, 1, at(x, v), 0)
    return total


@inlined
def end_training(plan, group):
    """Mean loss of the rows of an epoch, and who has diverged;  writes loss, status and totals."""
    V, w, optimizer = lanes_of(group.params), group.params, plan.optimizer
    bad = record(plan, group, LOSS, group.loss, plan.weighted, np.float64(plan.rows))
    rest = zeros(1, 1, w)
    for q in range(0, plan.parameters * V, V):
        rest = multiply_add(load(1, 1, at(w, q), 0), 0.0, rest)
        if optimizer != PLAIN_SGD:
            rest = multiply_add(load(1, 1, at(group.first, q), 0), 0.0, rest)
            rest = multiply_add(load(1, 1, at(group.second, q), 0), 0.0, rest)
    if bad + lane_sum(rest) != 0:
        store(at(group.numbers, SUM * V), 0, rest)
        for v in range(V):
            if group.numbers[SUM * V + v] + 0 * group.totals[FIGURE * V + v] != 0:
                end(group, v, DIVERGED)
    if plan.weighted:
        forget(V, at(group.totals, WEIGHT * V))


@inlined
def record(plan, group, place, history, weighted, rows):
    """history = a total over the weight of the rows, for each network;  writes the figure, and zero into the total.

    Returns 0, or NaN if a figure is not finite.
    """
    V, totals, epoch = lanes_of(group.params), group.totals, group.position[GROUP_EPOCH]
    rest = zeros(1, 1, totals)
    for v in range(0, V, lanes_of(totals)):
        total, figure = at(totals, place * V + v), at(totals, FIGURE * V + v)
        weight = zeros(1, 1, totals) + rows
        if weighted:
            weight = load(1, 1, at(totals, WEIGHT * V + v), 0)
        mean = load(1, 1, total, 0) / weight
        store(figure, 0, mean)
        store(total, 0, zeros(1, 1, totals))
        rest = multiply_add(mean, 0.0, rest)
    for v in range(V):
        if group.status[v] == RUNNING:
            history[group.histories[v] + epoch] = totals[FIGURE * V + v]
    return lane_sum(rest)


@kernel
def forget(V, total):
    """total = 0 for each network."""
    for v in range(V):
        total[v] = 0


@kernel
def end(group, v, status):
    """Say why a network ends, unless it has ended;  writes status and position."""
    if group.status[v] == RUNNING:
        group.status[v] = status
        group.position[GROUP_UNTIL] = group.position[GROUP_EPOCH] + 1


@inlined
def end_epoch(plan, group):
    """Validation, early stopping and the next epoch;  returns whether a network has ended."""
    position = group.position
    if_full(plan, None, end_validation, plan, group)
    if plan.patience >= 0 or plan.schedule == REDUCE_ON_PLATEAU:
        judge(plan, group)
    position[GROUP_EPOCH] += 1
    return position[GROUP_EPOCH] == position[GROUP_UNTIL]


@kernel
def end_validation(plan, group):
    """Mean loss and misfit of the rows for validation;  writes them and totals."""
    if plan.validation_rows > 0:
        # What is watched comes last: `judge` finds it where `record` leaves the figures.
        if plan.watched == VALIDATION_MISFIT:
            record(plan, group, LOSS, group.validation_loss, True, 1.0)
            record(plan, group, MISFIT, group.validation_misfit, True, 1.0)
        else:
            record(plan, group, MISFIT, group.validation_misfit, True, 1.0)
            record(plan, group, LOSS, group.validation_loss, True, 1.0)
        forget(lanes_of(group.params), at(group.totals, WEIGHT * lanes_of(group.params)))


# --- early stopping ---------------------------------------------------------------------------------------------------


@kernel
def judge(plan, group):
    """Early stopping and REDUCE_ON_PLATEAU at the end of an epoch, as `kernels.judge`, by the figure watched."""
    V, totals, settings, improved = lanes_of(group.params), group.totals, plan.schedule_settings, False
    for v in range(V):
        figure, stale, stale_rate = totals[FIGURE * V + v], at(group.stale, v), at(group.stale, V + v)
        best, best_rate, factor = at(totals, BEST * V + v), at(totals, BEST_RATE * V + v), at(totals, FACTOR * V + v)
        stale[0] = 0 if figure < best[0] - plan.min_delta else stale[0] + 1
        group.numbers[BETTER * V + v] = figure < best[0]
        improved = improved or figure < best[0]
        best[0] = min(best[0], figure) if figure == figure else best[0]
        if stale[0] > plan.patience >= 0:
            end(group, v, PATIENT)
        if plan.schedule == REDUCE_ON_PLATEAU:
            stale_rate[0] = 0 if figure < best_rate[0] - settings[REDUCE_ON_PLATEAU_MIN_DELTA] else stale_rate[0] + 1
            best_rate[0] = min(best_rate[0], figure) if figure == figure else best_rate[0]
            if stale_rate[0] > settings[REDUCE_ON_PLATEAU_PATIENCE]:
                stale_rate[0] = 0
                if factor[0] > settings[REDUCE_ON_PLATEAU_MINIMUM]:
                    factor[0] *= settings[REDUCE_ON_PLATEAU_FACTOR]
                elif settings[REDUCE_ON_PLATEAU_STOP] > 0:
                    end(group, v, PLATEAU)
    if plan.keep_best and improved:
        better = load(1, 1, at(group.numbers, BETTER * V), 0)
        for q in range(0, plan.parameters * V, V):
            w, kept = load(1, 1, at(group.params, q), 0), load(1, 1, at(group.best, q), 0)
            store(at(group.best, q), 0, where_less(0.0, better, w, kept))


# --- one batch: forward pass, loss, backward pass, update -------------------------------------------------------------


@inlined
def product(a, a_row, a_step, n, b, b_column, b_step, first, first_row, first_column, rows, columns, out, row, column):
    """out[r, c] = first[r, c] + sum_k a[r, k] b[k, c], each sum in the order of k; strides in numbers.

    a (rows, n), b (n, columns), first (rows, columns), which may be out;  writes out (rows, columns).
    """
    r = 0
    while r < rows:
        a_r, first_r, out_r = at(a, r * a_row), at(first, r * first_row), at(out, r * row)
        if r + MATRIX_ROWS <= rows:
            product_row(
                MATRIX_ROWS, a_r, a_row, a_step, n, b, b_column, b_step, first_r, first_row, first_column, columns,
                out_r, row, column,
            )  # fmt: skip
            r += MATRIX_ROWS
        else:
            product_row(
                1, a_r, a_row, a_step, n, b, b_column, b_step, first_r, first_row, first_column, columns, out_r, row,
                column,
            )  # fmt: skip
            r += 1


@inlined
def product_row(
    rows, a, a_row, a_step, n, b, b_column, b_step, first, first_row, first_column, columns, out, row, column
):
    """`product` for the rows of a tile."""
    c = 0
    while c < columns:
        b_c, first_c, out_c = at(b, c * b_column), at(first, c * first_column), at(out, c * column)
        if c + MATRIX_COLUMNS <= columns:
            product_tile(
                rows, MATRIX_COLUMNS, a, a_row, a_step, n, b_c, b_column, b_step, first_c, first_row, first_column,
                out_c, row, column,
            )  # fmt: skip
            c += MATRIX_COLUMNS
        else:
            product_tile(
                rows,
                1,
                a,
                a_row,
                a_step,
                n,
                b_c,
                b_column,
                b_step,
                first_c,
                first_row,
                first_column,
                out_c,
                row,
                column,
            )
            c += 1


@inlined
def product_tile(
    rows, columns, a, a_row, a_step, n, b, b_column, b_step, first, first_row, first_column, out, row, column
):
    """`product` for a tile, whose sums stay in registers."""
    sums = load_matrix(rows, columns, first, first_row, first_column)
    for k in range(n):
        sums = add_outer_vectors(sums, rows, at(a, k * a_step), a_row, at(b, k * b_step), b_column)
    store_matrix(rows, out, row, column, sums)


@kernel
def forward(plan, group, x, S, first, training):
    """a_l = f_l(W_l^T a_{l-1} + b_l) for every layer and the samples of a panel, from this one on; logits at the last.

    x (F, S);  writes activations, layer after layer, each (O, S), and kept likewise, in the layers that keep it.
    """
    V, block, nothing = lanes_of(x), plan.block * lanes_of(x), np.int64(0)
    samples, a = S // V, x
    for layer in range(plan.layers):
        I, O, top, w = plan.sizes[layer], plan.sizes[layer + 1], plan.tops[layer] * block, plan.starts[layer] * V
        out, w_layer = at(group.activations, top), at(group.params, w)
        z = at(group.kept, top) if plan.keeps[layer] else out
        # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
        bias, b_row = (at(w_layer, I * O * V), V) if plan.biases else (group.all_zero, nothing)
        product(w_layer, V, O * V, I, a, V, S, bias, b_row, nothing, O, samples, z, S, V)
        if layer + 1 < plan.layers:
            f_z = out if of_logits(plan.kinds[layer]) else z
            activate(plan, plan.kinds[layer], z, O * S, f_z)
            if plan.dropout[layer] > 0:
                if_full(plan, None, dropout, plan, group, layer, training, first, f_z, O, S, out)
        a = out


@inlined
def output(plan, group, x, S):
    """Predictions, deltas and loss of the samples;  writes activations and deltas of the last layer, adds to totals."""
    V, O, y = lanes_of(x), plan.sizes[plan.layers], at(x, plan.sizes[0] * S)
    top = plan.tops[plan.layers - 1] * plan.block * V
    a, delta = at(group.activations, top), at(group.deltas, top)
    loss, _ = loss_and_delta(plan, a, y, at(y, O * S), O, S, delta)
    add_to_totals(at(group.totals, LOSS * V), loss)


@kernel
def backward(plan, group, x, S, first):
    """Gradients of every layer, given the deltas of the last;  writes deltas, adds to gradient.

    x (F, S), samples from `first` on; activations, kept and deltas as `forward` lays them out.
    """
    V, block, nothing = lanes_of(x), plan.block * lanes_of(x), np.int64(0)
    samples = S // V
    for layer in range(plan.layers - 1, -1, -1):
        I, O, w = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer] * V
        delta, gradient, w_layer = (
            at(group.deltas, plan.tops[layer] * block),
            at(group.gradient, w),
            at(group.params, w),
        )
        top = plan.tops[layer - 1] * block if layer > 0 else nothing
        a = at(group.activations, top) if layer > 0 else x
        # gradient[i, o] += sum_s a[i, s] delta[o, s]
        product(a, S, V, samples, delta, S, V, gradient, O * V, V, I, O, gradient, O * V, V)
        if plan.biases:
            bias_gradient(delta, O, S, at(gradient, I * O * V))
        if layer > 0:
            # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s], and what dropout did to a[i, s]
            below, kept = at(group.deltas, top), at(group.kept, top) if plan.keeps[layer - 1] else a
            product(w_layer, O * V, V, O, delta, V, S, group.all_zero, nothing, nothing, I, samples, below, S, V)
            slope(plan, plan.kinds[layer - 1], below, kept, I * S)
            if plan.dropout[layer - 1] > 0:
                if_full(plan, None, dropout, plan, group, layer - 1, True, first, below, I, S, below)


@kernel
def bias_gradient(delta, O, S, gradient):
    """gradient[o] += sum_s delta[o, s], four outputs at once, since each addition waits for the last.  Adds to (O,)."""
    V, o = lanes_of(delta), 0
    while o + 4 <= O:
        sums = load(4, 1, at(gradient, o * V), V)
        for v in range(0, S, V):
            sums = sums + load(4, 1, at(delta, o * S + v), S)
        store(at(gradient, o * V), V, sums)
        o += 4
    while o < O:
        store(at(gradient, o * V), 0, load(1, 1, at(gradient, o * V), 0) + samples_sum(at(delta, o * S), S))
        o += 1


@kernel
def dropout(plan, group, layer, training, first, a, O, S, out):
    """out = 0 with the probability of each network, else a / (1 - rate), as `kernels.dropout`.

    a (O, S), samples from `first` on;  writes out (O, S), which may be a.
    """
    V = lanes_of(a)
    keys, rate = at(group.keys, layer * V), load(1, 1, group.all_zero, 0)
    if training:
        rate = load(1, 1, at(group.dropout, layer * V), 0)
    scale = 1.0 / (1.0 - rate)
    for o in range(O):
        for s in range(S // V):
            q = o * S + s * V
            random = uniform_of(a, keys, np.uint64(o * plan.rows + first + s))
            store(at(out, q), 0, where_less(random, rate, 0.0, scale * load(1, 1, at(a, q), 0)))


@inlined
def tiny_batch(plan, group, x):
    """Forward, backward and update of a batch of four samples of a small network, such as XOR, with the same bits.

    Here loops cost more than arithmetic: a tile holds a unit of all samples, and each sum is used while it is in a
    register.  x (F, S);  writes activations, deltas, totals and params, or for optimisers with momenta the gradient.
    """
    V, layers, params, numbers = lanes_of(x), plan.layers, group.params, group.numbers
    block, S, a = plan.block * V, TINY_SAMPLES * V, x
    for layer in range(layers):
        I, O, w, out = (
            plan.sizes[layer],
            plan.sizes[layer + 1],
            plan.starts[layer],
            at(group.activations, plan.tops[layer] * block),
        )
        for o in range(O):
            # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
            bias = at(params, (w + I * O + o) * V) if plan.biases else group.all_zero
            z = load(TINY_SAMPLES, 1, bias, 0)
            for i in range(I):
                a_i = load(TINY_SAMPLES, 1, at(a, i * S), V)
                z = multiply_add(a_i, load(1, 1, at(params, (w + i * O + o) * V), 0), z)
            store(at(out, o * S), V, activation(plan, plan.kinds[layer], z) if layer + 1 < layers else z)
        a = out
    O = plan.sizes[layers]
    y, delta = at(x, plan.sizes[0] * S), at(group.deltas, plan.tops[layers - 1] * block)
    loss, _ = elementwise(TINY_SAMPLES, plan, a, y, at(y, O * S), O, S, delta)
    add_to_totals(at(group.totals, LOSS * V), add_rows(zeros(1, 1, x), loss))
    scale, rate = load(1, 1, at(numbers, SCALE * V), 0), load(1, 1, at(numbers, RATE * V), 0)
    for layer in range(layers - 1, -1, -1):
        I, O, w, a, below = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer], x, delta
        if layer > 0:
            top = plan.tops[layer - 1] * block
            a, below = at(group.activations, top), at(group.deltas, top)
            for i in range(I):
                # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s], with w from before its update
                sums = zeros(TINY_SAMPLES, 1, a)
                for o in range(O):
                    delta_o = load(TINY_SAMPLES, 1, at(delta, o * S), V)
                    sums = multiply_add(delta_o, load(1, 1, at(params, (w + i * O + o) * V), 0), sums)
                a_i = load(TINY_SAMPLES, 1, at(a, i * S), V)
                store(at(below, i * S), V, times_slope(plan, plan.kinds[layer - 1], sums, a_i))
        for o in range(O):
            # gradient[i, o] = sum_s a[i, s] delta[o, s], and gradient[o] = sum_s delta[o, s]
            delta_o = load(TINY_SAMPLES, 1, at(delta, o * S), V)
            for i in range(I):
                total = add_products(zeros(1, 1, a), load(TINY_SAMPLES, 1, at(a, i * S), V), delta_o)
                tiny_update(plan, group, (w + i * O + o) * V, total, scale, rate)
            if plan.biases:
                tiny_update(plan, group, (w + I * O + o) * V, add_rows(zeros(1, 1, a), delta_o), scale, rate)
        delta = below
    if plan.optimizer != PLAIN_SGD:
        step(plan, group, np.float64(TINY_SAMPLES))


@inlined
def tiny_update(plan, group, q, total, scale, rate):
    """A weight from a gradient that was just summed, or else the gradient;  writes params or gradient."""
    if plan.optimizer == PLAIN_SGD:
        w = at(group.params, q)
        store(w, 0, plain_sgd_of(load(1, 1, w, 0), total, scale, rate))
    else:
        store(at(group.gradient, q), 0, total)


@kernel
def step(plan, group, rows):
    """Update the weights with the gradient of a batch of so many rows;  writes params, gradient, momenta and totals."""
    V, numbers, totals = lanes_of(group.params), group.numbers, group.totals
    weight = zeros(1, 1, numbers) + rows
    if plan.weighted:
        weight = load(1, 1, at(numbers, BATCH * V), 0)
        add_to_totals(at(totals, WEIGHT * V), weight)
    scale = zeros(1, 1, numbers) + 1.0
    if plan.mean:
        scale = where_less(0.0, weight, 1.0 / weight, scale)
    store(at(numbers, SCALE * V), 0, scale)
    if plan.l2 > 0:
        penalty(plan, group)
    if plan.clip_norm > 0:
        if_full(plan, None, clip, plan, group)
    if plan.optimizer in (ADAM, ADAMW):
        correct(plan, group, plan.weighted)
    if plan.optimizer == ADAMW:
        if_full(plan, None, decay, plan, group)
    if plan.optimizer == PLAIN_SGD and not plan.weighted:
        rate = load(1, 1, at(numbers, RATE * V), 0)
        for q in range(0, plan.parameters * V, V):
            w, g = at(group.params, q), at(group.gradient, q)
            store(w, 0, plain_sgd_of(load(1, 1, w, 0), load(1, 1, g, 0), scale, rate))
            store(g, 0, zeros(1, 1, g))
    else:
        for q in range(0, plan.parameters * V, V):
            update(plan, group, q, weight)
    if plan.weighted:
        store(at(numbers, BATCH * V), 0, zeros(1, 1, numbers))


@inlined
def update(plan, group, q, weight):
    """New weight, gradient and momenta at one place; a network whose batch has no weight keeps its own."""
    V, settings, numbers, optimizer = lanes_of(group.params), plan.settings, group.numbers, plan.optimizer
    w, g, first, second = at(group.params, q), at(group.gradient, q), at(group.first, q), at(group.second, q)
    w_q, g_q, first_q, second_q = load(1, 1, w, 0), load(1, 1, g, 0), zeros(1, 1, g), zeros(1, 1, g)
    if optimizer != PLAIN_SGD:
        first_q, second_q = load(1, 1, first, 0), load(1, 1, second, 0)
    scale, rate = load(1, 1, at(numbers, SCALE * V), 0), load(1, 1, at(numbers, RATE * V), 0)
    new_w, new_first, new_second = w_q, first_q, second_q
    if optimizer == PLAIN_SGD:
        new_w = plain_sgd_of(w_q, g_q, scale, rate)
    elif optimizer == MOMENTUM_SGD:
        momentum, nesterov = settings[SGD_MOMENTUM], settings[SGD_NESTEROV] != 0
        new_w, new_first = momentum_sgd_of(w_q, g_q, first_q, scale, rate, momentum, nesterov)
    elif optimizer in (ADAM, ADAMW):
        new_w, new_first, new_second = adam_of(
            w_q, g_q, first_q, second_q, scale, load(1, 1, at(numbers, CORRECTED_RATE * V), 0), settings[ADAM_BETA1],
            settings[ADAM_BETA2], numbers[REST1 * V], numbers[REST2 * V],
            load(1, 1, at(numbers, CORRECTED_EPSILON * V), 0),
        )  # fmt: skip
    elif optimizer == RMSPROP:
        beta, epsilon = settings[RMSPROP_DECAY], settings[RMSPROP_EPSILON]
        new_w, new_second = rmsprop_of(w_q, g_q, second_q, scale, rate, beta, 1 - beta, epsilon)
    else:
        new_w, new_first, new_second = irprop_of(
            w_q, g_q, first_q, second_q, settings[IRPROP_INCREASE], settings[IRPROP_DECREASE],
            settings[IRPROP_SMALLEST_STEP], settings[IRPROP_LARGEST_STEP],
        )  # fmt: skip
    if plan.weighted:
        new_w = where_less(0.0, weight, new_w, w_q)
        new_first, new_second = (
            where_less(0.0, weight, new_first, first_q),
            where_less(0.0, weight, new_second, second_q),
        )
    store(w, 0, new_w)
    if optimizer != PLAIN_SGD:
        store(first, 0, new_first)
        store(second, 0, new_second)
    store(g, 0, zeros(1, 1, g))


@kernel
def correct(plan, group, weighted):
    """Rate and epsilon of Adam for how many steps each network has made, as `formulas.begin_step`."""
    V, settings, totals, cast = lanes_of(group.params), plan.settings, group.totals, group.numbers
    beta1, beta2, epsilon = settings[ADAM_BETA1], settings[ADAM_BETA2], settings[ADAM_EPSILON]
    hat = plan.optimizer == ADAM and settings[ADAM_EPSILON_HAT] != 0
    cast[REST1 * V], cast[REST2 * V] = 1 - beta1, 1 - beta2
    for v in range(V):
        if not weighted or cast[BATCH * V + v] > 0:
            totals[POWER1 * V + v] *= beta1  # beta1^t
            totals[POWER2 * V + v] *= beta2  # beta2^t
        root = np.sqrt(1 - totals[POWER2 * V + v])
        cast[CORRECTED_RATE * V + v] = cast[RATE * V + v] * root / (1 - totals[POWER1 * V + v])
        cast[CORRECTED_EPSILON * V + v] = epsilon if hat else epsilon * root


@kernel
def penalty(plan, group):
    """g += l2 w for the weights, not for the biases, and l2 / 2 sum w^2 is added to the loss, for each network's l2."""
    V, total = lanes_of(group.params), zeros(1, 1, group.params)
    l2 = load(1, 1, at(group.numbers, PENALTY * V), 0)
    for layer in range(plan.layers):
        start = plan.starts[layer] * V
        for q in range(start, start + plan.sizes[layer] * plan.sizes[layer + 1] * V, V):
            w, g = load(1, 1, at(group.params, q), 0), at(group.gradient, q)
            store(g, 0, multiply_add(l2, w, load(1, 1, g, 0)))
            total = multiply_add(w, w, total)
    if plan.weighted:
        total = where_less(0.0, load(1, 1, at(group.numbers, BATCH * V), 0), total, 0.0)
    add_to_totals(at(group.totals, LOSS * V), 0.5 * l2 * total)


@kernel
def decay(plan, group):
    """w -= rate weight_decay w for the weights, not for the biases, as `formulas.decay`."""
    V, share = lanes_of(group.params), plan.settings[ADAMW_WEIGHT_DECAY]
    rate = load(1, 1, at(group.numbers, RATE * V), 0)
    if plan.weighted:
        rate = where_less(0.0, load(1, 1, at(group.numbers, BATCH * V), 0), rate, 0.0)
    for layer in range(plan.layers):
        start = plan.starts[layer] * V
        for q in range(start, start + plan.sizes[layer] * plan.sizes[layer + 1] * V, V):
            w = at(group.params, q)
            store(w, 0, multiply_add(0.0 - rate * share, load(1, 1, w, 0), load(1, 1, w, 0)))


@kernel
def clip(plan, group):
    """Scale gradients down to `clip_norm` where their norm times scale is above, as `formulas.clip`.

    All are divided by the largest of their network first, since squares might overflow or vanish.
    """
    V, g = lanes_of(group.params), group.gradient
    scale = load(1, 1, at(group.numbers, SCALE * V), 0)
    largest, total = zeros(1, 1, g), zeros(1, 1, g)
    for q in range(0, plan.parameters * V, V):
        size = absolute(load(1, 1, at(g, q), 0))
        largest = where_less(largest, size, size, largest)
    root = where_less(0.0, largest, 1.0 / sqrt(largest), 0.0)
    for q in range(0, plan.parameters * V, V):
        part = load(1, 1, at(g, q), 0) * root * root
        total = multiply_add(part, part, total)
    length = scale * (largest * sqrt(total))
    factor = where_less(plan.clip_norm, length, np.sqrt(plan.clip_norm) / sqrt(length), 1.0)
    for q in range(0, plan.parameters * V, V):
        store(at(g, q), 0, load(1, 1, at(g, q), 0) * factor * factor)


# --- rows of a batch, and what is drawn at random ---------------------------------------------------------------------


@inlined
def lay_out(plan, group, data, row, count, F):
    """The next rows of each network;  writes x (F, S)."""
    V, x, S = lanes_of(data), group.x, count * lanes_of(data)
    if not group.own_rows:
        for f in range(F):
            for s in range(count):
                store(at(x, f * S + s * V), 0, fill(1, 1, at(data, (row + s) * F + f)))
        return
    for q in range(S):
        place = group.order[row * V + q] if plan.shuffled else row + q // V
        group.drawn[q] = group.rows[place * V + q % V]
        if plan.weighted:
            group.drawn_weights[q] = group.weights[place * V + q % V]
    gather(data, group.drawn, S, F, S, np.int64(1), group.all_zero, x)
    if plan.weighted:
        weigh(plan, group.drawn_weights, F, S, x)
        weight = at(group.numbers, BATCH * V)
        store(weight, 0, load(1, 1, weight, 0) + samples_sum(at(x, (F - 1) * S), S))


@inlined
def weigh(plan, weights, F, S, x):
    """Weights (S,) of the rows in place of those in the data;  writes x (F, S)."""
    if plan.weighted:
        for v in range(0, S, lanes_of(x)):
            store(at(x, (F - 1) * S + v), 0, load(1, 1, at(weights, v), 0))


@kernel
def shuffle(n, V, seed, epoch, order):
    """`kernels.shuffle` for one network;  writes order (n,), of which one number is in every V."""
    key = random_stream(seed, epoch, 0)
    for i in range(n):
        order[i * V] = i
    for i in range(n - 1, 0, -1):
        random = np.int64(random_bits(key + np.uint64(i)) >> np.uint64(11)) * 2.0**-53
        j = np.int64(random * (i + 1))
        order[i * V], order[j * V] = order[j * V], order[i * V]
