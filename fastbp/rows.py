"""A batch of few samples, which would leave most lanes of a panel idle: features in the lanes.

Dimensions are those of `kernels.py`. Samples are rows here, one after the other: feature f of sample s of a layer is at
[s * D + f], D its units in whole vectors, whose spare lanes hold anything. Forward and backward each row of W is read
as it lies in memory; the gradient of a row, or its update by plain gradient descent, follows while it is in the cache.
"""

import numpy as np

from fastbp.choices import PLAIN_SGD
from fastbp.formulas import activate, of_logits, output, random_stream, slope, step
from fastbp.jit import kernel
from fastbp.simd import (
    TILE_ROWS,
    add_outer,
    add_products,
    at,
    fill,
    if_full,
    lane_sum,
    lanes_of,
    load,
    load_first,
    multiply_add,
    store,
    store_first,
    store_lane_sums,
    uniform,
    where_less,
    zeros,
)
from fastbp.workspace import RATE, SCALE, WEIGHT

HALF = TILE_ROWS // 2  # inputs of a tile for two samples


@kernel
def few_rows(plan, memory, data, epoch, row, panel, rows):
    """Forward and backward pass of a batch of these few rows, and its update;  writes as `step`.

    The rows from `row` on, which lie at this panel of the data if other batches are panels, or are drawn by the order.
    """
    I, O, F, S, totals = plan.sizes[0], plan.sizes[plan.layers], plan.features, plan.width, memory.totals
    x = at(data, row * F if plan.batch_size <= plan.few else panel * F * S)
    if plan.shuffled:
        x = memory.data
        for s in range(rows):
            scaled(F, at(data, memory.order[row + s] * F), 1.0, at(x, s * F))
    weight = np.float64(rows)
    if plan.weighted:
        weight = np.float64(0)
        for s in range(rows):
            weight += if_full(plan, x[s * F + F - 1], mean_of_row, at(x, s * F + I + O), F - I - O)
    totals[WEIGHT] += weight
    scale = 1.0 / weight if plan.mean and weight > 0 else 1.0
    forward_rows(plan, memory, x, F, rows, epoch, row)
    output_rows(plan, memory, at(x, I), F, rows)
    if weight > 0:  # a batch without weight is as if it were not there
        # -= rate g follows each sum at once, unless g is changed before.
        update = plan.optimizer == PLAIN_SGD and not (plan.l2 > 0 or plan.clip_norm > 0)
        backward_rows(plan, memory, x, F, rows, epoch, row, update, scale)
        if not update:
            step(plan, memory, scale)


@kernel
def mean_of_row(weights, n):
    """Mean of n weights, which is 1 if all are."""
    total = weights[0]
    for o in range(1, n):
        total += weights[o]
    return total / n


@kernel
def whole(n, V):
    """n in whole vectors."""
    return (n + V - 1) // V * V


@kernel
def forward_rows(plan, memory, x, F, rows, epoch, first):
    """`forward` of samples that are rows: x (rows, F);  writes activations and kept."""
    layers, block, V = plan.layers, plan.block * plan.width, lanes_of(x)
    a, stride = x, F
    for layer in range(layers):
        I, O, top = plan.sizes[layer], plan.sizes[layer + 1], plan.tops[layer] * block
        D, w, out = whole(O, V), at(memory.params, plan.starts[layer]), at(memory.activations, top)
        z = at(memory.kept, top) if plan.keeps[layer] else out
        bias = at(w, I * O) if plan.biases else memory.all_zero
        if O == 1:
            outputs_of_column(w, I, bias, a, stride, D, rows, z)
        else:
            outputs_of_rows(w, I, O, bias, a, stride, D, rows, z)
        if layer + 1 < layers:
            f_z = out if of_logits(plan.kinds[layer]) else z
            activate(plan, plan.kinds[layer], z, rows * D, f_z)
            if plan.dropout[layer] > 0:
                key, rate = random_stream(plan.seed, epoch, layer + 1), plan.dropout[layer]
                if_full(plan, None, dropout_rows, rate, key, plan.rows, first, f_z, O, D, rows, out)
        a, stride = out, D


@kernel
def output_rows(plan, memory, y, F, rows):
    """Deltas and loss by `output`, for which the few outputs are laid out as a panel.

    y, with its weights, is a row every F numbers;  writes scratch and deltas of the last layer, adds to totals.
    """
    V, O, S = lanes_of(y), plan.sizes[plan.layers], whole(rows, lanes_of(y))
    top, D = plan.tops[plan.layers - 1] * plan.block * plan.width, whole(O, V)
    z, delta, panel = at(memory.activations, top), at(memory.deltas, top), memory.scratch
    columns = F - plan.sizes[0]  # targets and weights
    y_panel, delta_panel = at(panel, O * S), at(panel, (O + columns) * S)
    if rows == 1:  # a vector read right after one of its lanes was written would wait for the store
        for o in range(O):
            store(at(panel, o * S), 0, fill(1, 1, at(z, o)))
            store(at(y_panel, o * S), 0, fill(1, 1, at(y, o)))
        for o in range(O, columns):
            store(at(y_panel, o * S), 0, load_first(1, 1, at(y, o), 0, 1))
    else:
        for q in range(0, (O + columns) * S, V):
            store(at(panel, q), 0, zeros(1, 1, z))
        for s in range(rows):
            for o in range(O):
                panel[o * S + s] = z[s * D + o]
            for o in range(columns):
                y_panel[o * S + s] = y[s * F + o]
    output(plan, panel, y_panel, at(y_panel, O * S), O, S, delta_panel, memory.totals)
    for s in range(rows):
        for o in range(O):
            delta[s * D + o] = delta_panel[o * S + s]


@kernel
def backward_rows(plan, memory, x, F, rows, epoch, first, update, scale):
    """`backward` of samples that are rows, given the deltas of the last layer;  writes scratch and deltas.

    Adds to the gradient, or where `update` says so at once to the weights, as `plain_sgd` would. A bias is one more row
    of W, whose input is 1.
    """
    block, V, cast, target = plan.block * plan.width, lanes_of(x), memory.scalars, memory.gradient
    cast[SCALE] = scale if update else 1.0
    factor, inputs = cast[SCALE], memory.scratch
    if update:
        factor, target = -(cast[RATE] * factor), memory.params
    delta = at(memory.deltas, plan.tops[plan.layers - 1] * block)
    for layer in range(plan.layers - 1, -1, -1):
        I, O, start = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer]
        D, w, g = whole(O, V), at(memory.params, start), at(target, start)
        a, stride, below, kept = x, F, delta, delta
        if layer > 0:
            top = plan.tops[layer - 1] * block
            a, stride, below = at(memory.activations, top), whole(I, V), at(memory.deltas, top)
            kept = at(memory.kept, top) if plan.keeps[layer - 1] else a
        C, n = whole(I + 1, V), I + plan.biases
        for s in range(rows):
            scaled(I, at(a, s * stride), factor, at(inputs, s * C))
            inputs[s * C + I] = factor
        if O == 1:
            if layer > 0:
                deltas_of_column(w, I, delta, D, rows, stride, below)
            add_to_column(g, n, inputs, C, delta, D, rows)
        elif layer > 0:
            backward_layer(w, g, update, I, O, inputs, C, delta, D, rows, stride, below)
            add_to_rows(at(g, I * O), n - I, O, at(inputs, I), C, delta, D, rows)
        else:
            add_to_rows(g, n, O, inputs, C, delta, D, rows)
        if layer > 0:
            slope(plan, plan.kinds[layer - 1], below, kept, rows * stride)
            if plan.dropout[layer - 1] > 0:
                key, rate = random_stream(plan.seed, epoch, layer), plan.dropout[layer - 1]
                if_full(plan, None, dropout_rows, rate, key, plan.rows, first, below, I, stride, rows, below)
        delta = below


@kernel
def scaled(n, x, factor, out):
    """out = factor x (n,)."""
    V = lanes_of(x)
    for q in range(0, n, V):
        if q + V <= n:
            store(at(out, q), 0, load(1, 1, at(x, q), 0) * factor)
        else:
            store_first(at(out, q), 0, load_first(1, 1, at(x, q), 0, n - q) * factor, n - q)


@kernel
def dropout_rows(rate, key, n, first, a, O, D, rows, out):
    """`dropout` of samples that are rows, by the same random numbers.  a (rows, D);  writes out, which may be a."""
    V, scale = lanes_of(a), 1.0 / (1.0 - rate)
    for s in range(rows):
        for o in range(0, O, V):
            q = s * D + o
            random = uniform(a, key + np.uint64(o * n + first + s), np.uint64(n))
            store(at(out, q), 0, where_less(random, rate, 0.0, scale * load(1, 1, at(a, q), 0)))


# --- forward: a few rows of W at a time, and all outputs of one or two samples ----------------------------------------


@kernel
def outputs_of_rows(w, I, O, bias, a, stride, D, rows, out):
    """out[s, o] = bias[o] + sum_i a[s, i] w[i, o], each sum in the order of i.

    w (I, O), bias (O,), a (rows, stride);  writes out (rows, D).
    """
    V = lanes_of(a)
    for s in range(0, rows, 2):
        a_s, out_s, two = at(a, s * stride), at(out, s * D), s + 1 < rows
        for o in range(0, O, V):
            bias_o = load_first(1, 1, at(bias, o), 0, O - o)
            store(at(out_s, o), 0, bias_o)
            if two:
                store(at(out_s, D + o), 0, bias_o)
        i = 0
        while i < I:
            w_i, a_i = at(w, i * O), at(a_s, i)
            if i + TILE_ROWS <= I:
                if two:
                    two_outputs_tile(TILE_ROWS, w_i, O, a_i, stride, D, out_s)
                else:
                    outputs_tile(TILE_ROWS, w_i, O, a_i, out_s)
                i += TILE_ROWS
            else:
                if two:
                    two_outputs_tile(1, w_i, O, a_i, stride, D, out_s)
                else:
                    outputs_tile(1, w_i, O, a_i, out_s)
                i += 1


@kernel
def outputs_tile(inputs, w, O, a, out):
    """out[o] += sum_i a[i] w[i, o] for a few inputs."""
    V, a_i = lanes_of(a), fill(inputs, 1, a)
    o = 0
    while o + V <= O:
        store(at(out, o), 0, add_products(load(1, 1, at(out, o), 0), a_i, load(inputs, 1, at(w, o), O)))
        o += V
    if o < O:
        store(at(out, o), 0, add_products(load(1, 1, at(out, o), 0), a_i, load_first(inputs, 1, at(w, o), O, O - o)))


@kernel
def two_outputs_tile(inputs, w, O, a, stride, D, out):
    """`outputs_tile` for two samples."""
    V, a_i, b_i = lanes_of(a), fill(inputs, 1, a), fill(inputs, 1, at(a, stride))
    o = 0
    while o + V <= O:
        w_o = load(inputs, 1, at(w, o), O)
        store(at(out, o), 0, add_products(load(1, 1, at(out, o), 0), a_i, w_o))
        store(at(out, D + o), 0, add_products(load(1, 1, at(out, D + o), 0), b_i, w_o))
        o += V
    if o < O:
        w_o = load_first(inputs, 1, at(w, o), O, O - o)
        store(at(out, o), 0, add_products(load(1, 1, at(out, o), 0), a_i, w_o))
        store(at(out, D + o), 0, add_products(load(1, 1, at(out, D + o), 0), b_i, w_o))


@kernel
def outputs_of_column(w, I, bias, a, stride, D, rows, out):
    """`outputs_of_rows` for a single output: inputs are in the lanes, whose sums are summed at the end."""
    V = lanes_of(a)
    for s in range(rows):
        a_s, sums = at(a, s * stride), zeros(1, 1, a)
        i = 0
        while i + V <= I:
            sums = multiply_add(load(1, 1, at(w, i), 0), load(1, 1, at(a_s, i), 0), sums)
            i += V
        if i < I:
            n = I - i
            sums = multiply_add(load_first(1, 1, at(w, i), 0, n), load_first(1, 1, at(a_s, i), 0, n), sums)
        out[s * D] = bias[0] + lane_sum(sums)


# --- backward: the deltas of the layer below, and the gradient or the update, while rows of W are in the cache --------


@kernel
def backward_layer(w, g, update, I, O, a, C, delta, D, rows, stride, below):
    """`deltas_of_rows` and `add_to_rows`, where g is w if this is an update."""
    i = 0
    while i < I:
        w_i, g_i, a_i, below_i = at(w, i * O), at(g, i * O), at(a, i), at(below, i)
        if rows == 1 and i + TILE_ROWS <= I:
            fused_tile(TILE_ROWS, w_i, g_i, update, O, a_i, delta, below_i)
            i += TILE_ROWS
        elif rows == 1:
            fused_tile(1, w_i, g_i, update, O, a_i, delta, below_i)
            i += 1
        elif rows == 2 and i + HALF <= I:
            two_fused_tile(HALF, w_i, g_i, update, O, a_i, C, delta, D, stride, below_i)
            i += HALF
        elif rows == 2:
            two_fused_tile(1, w_i, g_i, update, O, a_i, C, delta, D, stride, below_i)
            i += 1
        else:
            # The last rows of W are more than a tile, so that those which are left over share one with others.
            n = I - i
            if n >= 2 * TILE_ROWS:
                n = TILE_ROWS
            deltas_of_rows(w_i, n, O, delta, D, rows, stride, below_i)
            add_to_rows(g_i, n, O, a_i, C, delta, D, rows)
            i += n


@kernel
def fused_tile(inputs, w, g, update, O, a, delta, below):
    """below[i] = sum_o w[i, o] delta[o] and g[i, o] += a[i] delta[o] for a few inputs."""
    V, sums, a_i = lanes_of(w), zeros(inputs, 1, w), fill(inputs, 1, a)
    o = 0
    while o + V <= O:
        delta_o, w_o = load(1, 1, at(delta, o), 0), load(inputs, 1, at(w, o), O)
        sums = multiply_add(w_o, delta_o, sums)
        # Not read again: rows of 4,096 bytes push each other out of the first cache, and 512 x 512 took 1.25 times as
        # long.
        g_o = w_o
        if not update:
            g_o = load(inputs, 1, at(g, o), O)
        store(at(g, o), O, multiply_add(a_i, delta_o, g_o))
        o += V
    if o < O:
        n = O - o
        delta_o = load_first(1, 1, at(delta, o), 0, n)
        sums = multiply_add(load_first(inputs, 1, at(w, o), O, n), delta_o, sums)
        store_first(at(g, o), O, multiply_add(a_i, delta_o, load_first(inputs, 1, at(g, o), O, n)), n)
    store_lane_sums(below, sums)


@kernel
def two_fused_tile(inputs, w, g, update, O, a, C, delta, D, stride, below):
    """`fused_tile` for two samples."""
    V, sums, others = lanes_of(w), zeros(inputs, 1, w), zeros(inputs, 1, w)
    a_i, b_i = fill(inputs, 1, a), fill(inputs, 1, at(a, C))
    o = 0
    while o + V <= O:
        delta_o, others_o = load(1, 1, at(delta, o), 0), load(1, 1, at(delta, D + o), 0)
        w_o = load(inputs, 1, at(w, o), O)
        sums, others = multiply_add(w_o, delta_o, sums), multiply_add(w_o, others_o, others)
        g_o = w_o
        if not update:
            g_o = load(inputs, 1, at(g, o), O)
        store(at(g, o), O, multiply_add(b_i, others_o, multiply_add(a_i, delta_o, g_o)))
        o += V
    if o < O:
        n = O - o
        delta_o, others_o = load_first(1, 1, at(delta, o), 0, n), load_first(1, 1, at(delta, D + o), 0, n)
        w_o, g_o = load_first(inputs, 1, at(w, o), O, n), load_first(inputs, 1, at(g, o), O, n)
        sums, others = multiply_add(w_o, delta_o, sums), multiply_add(w_o, others_o, others)
        store_first(at(g, o), O, multiply_add(b_i, others_o, multiply_add(a_i, delta_o, g_o)), n)
    store_lane_sums(below, sums)
    store_lane_sums(at(below, stride), others)


@kernel
def deltas_of_rows(w, n, O, delta, D, rows, stride, below):
    """below[s, i] = sum_o w[i, o] delta[s, o] for n rows of w: a sum is a vector, whose lanes are summed at the end."""
    for s in range(0, rows, 2):
        delta_s, below_s = at(delta, s * D), at(below, s * stride)
        tile = HALF if s + 2 <= rows else TILE_ROWS
        i = 0
        while i < n:
            if i + tile > n >= tile:
                i = n - tile
            w_i, below_i = at(w, i * O), at(below_s, i)
            if s + 2 <= rows:
                if i + tile <= n:
                    two_deltas_tile(HALF, w_i, O, delta_s, D, stride, below_i)
                    i += HALF
                else:
                    two_deltas_tile(1, w_i, O, delta_s, D, stride, below_i)
                    i += 1
            elif i + tile <= n:
                deltas_tile(TILE_ROWS, w_i, O, delta_s, below_i)
                i += TILE_ROWS
            else:
                deltas_tile(1, w_i, O, delta_s, below_i)
                i += 1


@kernel
def deltas_tile(inputs, w, O, delta, below):
    """`deltas_of_rows` for a few rows of w and one sample, whose sums stay in registers."""
    V, sums = lanes_of(w), zeros(inputs, 1, w)
    o = 0
    while o + V <= O:
        sums = multiply_add(load(inputs, 1, at(w, o), O), load(1, 1, at(delta, o), 0), sums)
        o += V
    if o < O:
        n = O - o
        sums = multiply_add(load_first(inputs, 1, at(w, o), O, n), load_first(1, 1, at(delta, o), 0, n), sums)
    store_lane_sums(below, sums)


@kernel
def two_deltas_tile(inputs, w, O, delta, D, stride, below):
    """`deltas_tile` for two samples."""
    V, sums, others = lanes_of(w), zeros(inputs, 1, w), zeros(inputs, 1, w)
    o = 0
    while o + V <= O:
        w_o = load(inputs, 1, at(w, o), O)
        sums = multiply_add(w_o, load(1, 1, at(delta, o), 0), sums)
        others = multiply_add(w_o, load(1, 1, at(delta, D + o), 0), others)
        o += V
    if o < O:
        n = O - o
        w_o = load_first(inputs, 1, at(w, o), O, n)
        sums = multiply_add(w_o, load_first(1, 1, at(delta, o), 0, n), sums)
        others = multiply_add(w_o, load_first(1, 1, at(delta, D + o), 0, n), others)
    store_lane_sums(below, sums)
    store_lane_sums(at(below, stride), others)


@kernel
def add_to_rows(g, n, O, a, C, delta, D, rows):
    """g[i, o] += sum_s a[s, i] delta[s, o], n rows of g."""
    i = 0
    while i < n:
        if i + TILE_ROWS <= n:
            add_tiles(TILE_ROWS, at(g, i * O), O, at(a, i), C, delta, D, rows)
            i += TILE_ROWS
        else:
            add_tiles(1, at(g, i * O), O, at(a, i), C, delta, D, rows)
            i += 1


@kernel
def add_tiles(inputs, g, O, a, C, delta, D, rows):
    """`add_to_rows` for a few rows of g, whose sums stay in registers."""
    V = lanes_of(g)
    o = 0
    while o < O:
        if o + 2 * V <= O:
            sums = load(inputs, 2, at(g, o), O)
            for s in range(rows):
                sums = add_outer(sums, at(a, s * C), 1, at(delta, s * D + o))
            store(at(g, o), O, sums)
            o += 2 * V
        else:
            n = O - o
            last = load_first(inputs, 1, at(g, o), O, n)
            for s in range(rows):
                last = add_outer(last, at(a, s * C), 1, at(delta, s * D + o))
            store_first(at(g, o), O, last, n)
            o += V


@kernel
def deltas_of_column(w, I, delta, D, rows, stride, below):
    """`deltas_of_rows` for a single output, inputs in the lanes."""
    V = lanes_of(w)
    for s in range(rows):
        for i in range(0, I, V):
            store(at(below, s * stride + i), 0, load_first(1, 1, at(w, i), 0, I - i) * delta[s * D])


@kernel
def add_to_column(g, n, a, C, delta, D, rows):
    """`add_to_rows` for a single output, inputs in the lanes."""
    V = lanes_of(g)
    for i in range(0, n, V):
        sums = load_first(1, 1, at(g, i), 0, n - i)
        for s in range(rows):
            sums = multiply_add(load(1, 1, at(a, s * C + i), 0), delta[s * D], sums)
        store_first(at(g, i), 0, sums, n - i)
