"""Back-propagation in compiled loops, in the order in which it runs.

Dimensions
    n  rows of the data set          I  inputs of a layer        V  lanes: elements of one vector
    B  rows of a batch               O  outputs of a layer       S  samples of a panel: V or 2 V
    P  parameters                    F  I + O + 1 of the network, a row of data: x, y and its weight

A *panel* holds S samples, feature-major: `panel[feature * S + sample]`, so that one vector is one feature of V samples
and a sum over features never crosses lanes. A *block* is a few panels, one after the other, that are walked together
layer by layer. The last panel of a batch may be padded: its spare samples have weight 0.

Parameters are flat: for each layer W (I, O) in C order, then b (O,) if there are biases. Everything is handed in and
written in place; nothing is allocated and nothing is raised. `workspace.py` says what a plan and a memory hold; inside
the kernels their arrays are bare pointers, because the references to an array are counted at every call: XOR took 198
ns an epoch with arrays, 132 with pointers.
"""

import numpy as np

from fastbp.choices import (
    ADAM,
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    LEAK,
    LEAKY_RELU,
    MOMENTUM_SGD,
    PLAIN_SGD,
    RELU,
    SIGMOID,
    SOFTMAX,
    TANH,
    TINY_FLOAT32,
    TINY_FLOAT64,
)
from fastbp.jit import entry, inlined, kernel
from fastbp.simd import (
    PAIRED,
    TILE_ROWS,
    absolute,
    add_lane_sums,
    add_outer,
    at,
    exp,
    fill,
    flush,
    lane_sum,
    lanes_of,
    load,
    load_rows,
    log,
    log1p,
    multiply_add,
    sigmoid,
    store,
    tanh,
    transpose,
    where_less,
    zeros,
)
from fastbp.workspace import Memory, Plan

FINISHED, DIVERGED = range(2)
PANELS = True  # how `run` takes rows that are not shuffled


# --- matrix product -------------------------------------------------------------------------------------------------


@kernel
def product_tile(rows, vectors, w, row_stride, column_stride, n, bias, x, S, out):
    """`product` for a few rows and one or two vectors, whose sums stay in registers;  writes out (rows, vectors V)."""
    sums = fill(rows, vectors, bias)
    for k in range(n):
        sums = add_outer(sums, at(w, k * column_stride), row_stride, at(x, k * S))
    store(out, S, sums)


@kernel
def product_rows(rows, w, row_stride, column_stride, n, bias, x, S, out):
    """`product` for a few rows;  writes out (rows, S)."""
    V = lanes_of(x)
    if PAIRED and S == 2 * V:
        product_tile(rows, 2, w, row_stride, column_stride, n, bias, x, S, out)
    else:
        for v in range(0, S, V):
            product_tile(rows, 1, w, row_stride, column_stride, n, bias, at(x, v), S, at(out, v))


@kernel
def product(w, row_stride, column_stride, rows, n, bias, x, S, out):
    """out[r, :] = bias[r] + sum_k w[r, k] x[k, :], each sum in the order of k.

    w (rows, n) with these strides, bias (rows,), x (n, S);  writes out (rows, S).
    """
    r = 0
    while r < rows:
        # If at least half a tile of rows is left over, they share a tile with rows already done, which are computed
        # again: row by row, each addition would wait for the last.
        if r + TILE_ROWS > rows >= TILE_ROWS and rows - r >= TILE_ROWS // 2:
            r = rows - TILE_ROWS
        w_r, bias_r, out_r = at(w, r * row_stride), at(bias, r), at(out, r * S)
        if r + TILE_ROWS <= rows:
            product_rows(TILE_ROWS, w_r, row_stride, column_stride, n, bias_r, x, S, out_r)
            r += TILE_ROWS
        else:
            product_rows(1, w_r, row_stride, column_stride, n, bias_r, x, S, out_r)
            r += 1


# --- activations ----------------------------------------------------------------------------------------------------


@kernel
def activation(kind, z):
    """a = f(z), lane by lane. NaN passes through."""
    if kind == SIGMOID:
        return sigmoid(z)
    if kind == TANH:
        return tanh(z)
    if kind == RELU:
        return where_less(z, 0.0, 0.0, z)
    if kind == LEAKY_RELU:
        return where_less(z, 0.0, LEAK * z, z)
    return z


@kernel
def times_slope(kind, delta, a):
    """delta * f'(z), lane by lane, the slope written with a = f(z)."""
    if kind == SIGMOID:  # a = 1 / (1 + exp(-z))
        return delta * (a * (1.0 - a))
    if kind == TANH:  # a = tanh(z)
        return delta * (1.0 - a * a)
    if kind == RELU:  # a = max(z, 0); 0 a is NaN where a is
        return where_less(0.0, a, delta, 0.0 * a)
    if kind == LEAKY_RELU:  # a = z if z > 0 else LEAK z
        return where_less(0.0, a, delta, LEAK * delta)
    return delta


@kernel
def tiny_of(pointer):
    """Size below which a delta or a momentum counts as 0, for the pointer's type."""
    return TINY_FLOAT32 if lanes_of(pointer) == 16 else TINY_FLOAT64


@kernel
def activate(kind, a, n):
    """a = f(z) for n elements, whole vectors;  writes a, which holds z."""
    # The branch inside the loop goes the same way each time, so that it is predicted.
    for q in range(0, n, lanes_of(a)):
        store(at(a, q), 0, activation(kind, load(1, 1, at(a, q), 0)))


@kernel
def slope(kind, delta, a, n):
    """delta *= f'(z) for n elements, whole vectors, flushed;  writes delta."""
    for q in range(0, n, lanes_of(a)):
        product = times_slope(kind, load(1, 1, at(delta, q), 0), load(1, 1, at(a, q), 0))
        store(at(delta, q), 0, flush(product, tiny_of(a)))


# --- losses: prediction, delta and loss of a panel ------------------------------------------------------------------


@kernel
def squared_error(kind, a, y, weight, O, S, delta, totals):
    """loss = 1/2 sum_o (p_o - y_o)^2, delta_o = (p_o - y_o) f'(z_o), p = f(z).

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V = lanes_of(a)
    loss, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        for q in range(v, O * S, S):
            p = activation(kind, load(1, 1, at(a, q), 0))
            difference = p - load(1, 1, at(y, q), 0)
            weighted = difference * share
            loss = multiply_add(weighted, difference, loss)
            error = error + absolute(weighted)
            store(at(a, q), 0, p)
            store(at(delta, q), 0, flush(times_slope(kind, weighted, p), tiny_of(a)))
    totals[0] += 0.5 * lane_sum(loss)
    totals[1] += lane_sum(error)


@kernel
def binary_cross_entropy(a, y, weight, O, S, delta, totals):
    """loss = sum_o max(z, 0) - z y + log(1 + exp(-|z|)), delta_o = p_o - y_o, p = sigmoid(z).

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V = lanes_of(a)
    loss, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        for q in range(v, O * S, S):
            z, target = load(1, 1, at(a, q), 0), load(1, 1, at(y, q), 0)
            p = sigmoid(z)
            # log p and log(1 - p) would lose all digits where p nears 0 or 1
            sample = where_less(z, 0.0, 0.0, z) - z * target + log1p(exp(0.0 - absolute(z)))
            weighted = (p - target) * share
            loss = multiply_add(sample, share, loss)
            error = error + absolute(weighted)
            store(at(a, q), 0, p)
            store(at(delta, q), 0, flush(weighted, tiny_of(a)))
    totals[0] += lane_sum(loss)
    totals[1] += lane_sum(error)


@kernel
def highest(z, O, S):
    """max_o z_o for V samples;  returns one vector."""
    top = load(1, 1, z, 0)
    for q in range(S, O * S, S):
        next_z = load(1, 1, at(z, q), 0)
        top = where_less(top, next_z, next_z, top)
    return top


@kernel
def softmax(top, z, O, S):
    """p_o = exp(z_o - top) / sum_o exp(z_o - top) for V samples;  writes p into z, returns the sum."""
    total = zeros(1, 1, z)
    for q in range(0, O * S, S):
        power = exp(load(1, 1, at(z, q), 0) - top)
        total = total + power
        store(at(z, q), 0, power)
    for q in range(0, O * S, S):
        store(at(z, q), 0, load(1, 1, at(z, q), 0) / total)
    return total


@kernel
def cross_entropy(a, y, weight, O, S, delta, totals):
    """loss = sum_o y_o (log sum_k exp(z_k) - z_o), delta_o = p_o - y_o, p = softmax(z); the y of a sample sum to 1.

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V = lanes_of(a)
    loss, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        top = highest(at(a, v), O, S)
        below = zeros(1, 1, a)  # sum_o y_o (top - z_o): differences of logits, so that nothing large cancels
        for q in range(v, O * S, S):
            below = multiply_add(load(1, 1, at(y, q), 0), top - load(1, 1, at(a, q), 0), below)
        total = softmax(top, at(a, v), O, S)
        loss = multiply_add(below + log(total), share, loss)
        for q in range(v, O * S, S):
            weighted = (load(1, 1, at(a, q), 0) - load(1, 1, at(y, q), 0)) * share
            error = error + absolute(weighted)
            store(at(delta, q), 0, flush(weighted, tiny_of(a)))
    totals[0] += lane_sum(loss)
    totals[1] += lane_sum(error)


@kernel
def output(loss, kind, a, y, weight, O, S, delta, totals):
    """Prediction, delta and loss of a panel from the logits in a (O, S);  writes as the three above."""
    if loss == CROSS_ENTROPY:
        cross_entropy(a, y, weight, O, S, delta, totals)
    elif loss == BINARY_CROSS_ENTROPY:
        binary_cross_entropy(a, y, weight, O, S, delta, totals)
    else:
        squared_error(kind, a, y, weight, O, S, delta, totals)


# --- gradients ------------------------------------------------------------------------------------------------------


@kernel
def transposed(delta, O, panels, S, counting, none, out):
    """out[p, s, o] = delta[p, o, s], filled up with zeros to C outputs, whole vectors.

    delta (panels, O, S), counting (V,) 0, 1, ..., none (V,) zeros;  writes out (panels, S, C).
    """
    V = lanes_of(delta)
    C = (O + V - 1) // V * V
    for p in range(panels):
        for o in range(0, C, V):
            for v in range(0, S, V):
                rows = load_rows(at(delta, (p * O + o) * S + v), counting, S, O - o, none)
                store(at(out, (p * S + v) * C + o), C, transpose(rows))


@kernel
def wide_tile(rows, vectors, a, a_stride, delta, C, samples, S, gradient, O):
    """`weight_gradient` for a few inputs and one or two vectors of outputs, whose sums stay in registers."""
    sums = load(rows, vectors, gradient, O)
    while samples > 0:
        for s in range(min(S, samples)):
            sums = add_outer(sums, at(a, s), S, at(delta, s * C))
        a, delta, samples = at(a, a_stride * S), at(delta, S * C), samples - S
    store(gradient, O, sums)


@kernel
def wide_rows(rows, a, a_stride, delta, C, samples, S, gradient, O):
    """`weight_gradient` for a few inputs and all outputs."""
    V = lanes_of(a)
    o = 0
    while o < C:
        if PAIRED and o + 2 * V <= C:
            wide_tile(rows, 2, a, a_stride, at(delta, o), C, samples, S, at(gradient, o), O)
            o += 2 * V
        else:
            wide_tile(rows, 1, a, a_stride, at(delta, o), C, samples, S, at(gradient, o), O)
            o += V


@kernel
def narrow_tile(rows, a, a_stride, delta, O, panels, S, gradient):
    """`weight_gradient` for a few inputs and one output: each sum is a vector, whose lanes are summed at the end."""
    sums = zeros(rows, 1, a)
    for p in range(panels):
        for v in range(0, S, lanes_of(a)):
            delta_o = load(1, 1, at(delta, p * O * S + v), 0)
            sums = multiply_add(load(rows, 1, at(a, p * a_stride * S + v), S), delta_o, sums)
    add_lane_sums(sums, gradient, O)


@kernel
def weight_gradient(a, a_stride, I, delta, O, samples, S, counting, none, scratch, gradient):
    """gradient[i, o] += sum_s a[i, s] delta[o, s], over all samples of a block.

    a (panels, a_stride, S) of which I features are used, delta (panels, O, S), counting and none as in `transposed`;
    writes scratch (panels, S, C), adds to gradient (I, O). Up to V numbers after gradient are written as they were.
    """
    # forward: z[o, s] = b[o] + sum_i w[i, o] a[i, s], so dz[o, s] / dw[i, o] = a[i, s]
    V = lanes_of(a)
    panels = (samples + S - 1) // S
    if 2 * O >= V:
        # The product again, with outputs in the lanes. The lanes beyond O belong to the next row: they have delta 0,
        # and rows are stored in order, so that each is last written by its own.
        transposed(delta, O, panels, S, counting, none, scratch)
        C = (O + V - 1) // V * V
        i = 0
        while i < I:
            a_i, g = at(a, i * S), at(gradient, i * O)
            if i + TILE_ROWS <= I:
                wide_rows(TILE_ROWS, a_i, a_stride, scratch, C, samples, S, g, O)
                i += TILE_ROWS
            else:
                wide_rows(1, a_i, a_stride, scratch, C, samples, S, g, O)
                i += 1
    else:
        for o in range(O):
            delta_o = at(delta, o * S)
            i = 0
            while i < I:
                a_i, g = at(a, i * S), at(gradient, i * O + o)
                if i + 4 <= I:
                    narrow_tile(4, a_i, a_stride, delta_o, O, panels, S, g)
                    i += 4
                else:
                    narrow_tile(1, a_i, a_stride, delta_o, O, panels, S, g)
                    i += 1


@kernel
def bias_tile(rows, delta, O, panels, S, gradient):
    """`bias_gradient` for a few outputs."""
    sums = zeros(rows, 1, delta)
    for p in range(panels):
        for v in range(0, S, lanes_of(delta)):
            sums = sums + load(rows, 1, at(delta, p * O * S + v), S)
    add_lane_sums(sums, gradient, 1)


@kernel
def bias_gradient(delta, O, panels, S, gradient):
    """gradient[o] += sum_s delta[o, s], over all samples of a block.

    delta (panels, O, S);  adds to gradient (O,).
    """
    o = 0
    while o < O:
        if o + 4 <= O:
            bias_tile(4, at(delta, o * S), O, panels, S, at(gradient, o))
            o += 4
        else:
            bias_tile(1, at(delta, o * S), O, panels, S, at(gradient, o))
            o += 1


# --- forward and backward -------------------------------------------------------------------------------------------


@kernel
def top_layer(plan):
    """Where the last layer begins in activations and deltas."""
    top = 0
    for layer in range(plan.layers - 1):
        top += plan.block * plan.sizes[layer + 1] * plan.width
    return top


@kernel
def forward(plan, params, none, x, F, panels, activations):
    """a_l = f_l(W_l^T a_{l-1} + b_l) for every layer of a block; the last layer is left as logits.

    params (P,), none (widest layer,) zeros, x (panels, F, S);  writes activations, layer after layer, each
    (panels, O, S).
    """
    layers, S = plan.layers, plan.width
    a, a_stride = x, F
    w, top = 0, 0
    unit = np.int64(1)  # a literal would compile `product` once more
    for layer in range(layers):
        I, O = plan.sizes[layer], plan.sizes[layer + 1]
        weights, out = at(params, w), at(activations, top)
        bias = at(params, w + I * O) if plan.biases else none
        for p in range(panels):
            z = at(out, p * O * S)
            # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
            product(weights, unit, O, O, I, bias, at(a, p * a_stride * S), S, z)
            if layer + 1 < layers:
                activate(plan.kinds[layer], z, O * S)
        a, a_stride = out, O
        w += I * O + (O if plan.biases else 0)
        top += plan.block * O * S


@kernel
def output_layer(plan, memory, x, F, panels):
    """Predictions, deltas and loss of a block;  writes activations and deltas of the last layer, adds to totals."""
    S, I, O = plan.width, plan.sizes[0], plan.sizes[plan.layers]
    top = top_layer(plan)
    for p in range(panels):
        y = at(x, (p * F + I) * S)
        a, delta = at(memory.activations, top + p * O * S), at(memory.deltas, top + p * O * S)
        output(plan.loss, plan.kinds[plan.layers - 1], a, y, at(y, O * S), O, S, delta, memory.totals)


@kernel
def backward(plan, memory, x, F, samples):
    """Gradients of every layer of a block, given the deltas of the last;  writes deltas, adds to gradient.

    x (panels, F, S), activations and deltas as `forward` lays them out.
    """
    layers, S = plan.layers, plan.width
    w, top, panels = plan.parameters, top_layer(plan), (samples + S - 1) // S
    unit, counting, none = np.int64(1), memory.counting, memory.none
    for layer in range(layers - 1, -1, -1):
        I, O = plan.sizes[layer], plan.sizes[layer + 1]
        delta = at(memory.deltas, top)
        w -= I * O + (O if plan.biases else 0)
        gradient = at(memory.gradient, w)
        if plan.biases:
            bias_gradient(delta, O, panels, S, at(gradient, I * O))
        if layer == 0:
            weight_gradient(x, F, I, delta, O, samples, S, counting, none, memory.scratch, gradient)
        else:
            top -= plan.block * I * S
            a, below = at(memory.activations, top), at(memory.deltas, top)
            weight_gradient(a, I, I, delta, O, samples, S, counting, none, memory.scratch, gradient)
            for p in range(panels):
                # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s]
                delta_p, below_p = at(delta, p * O * S), at(below, p * I * S)
                product(at(memory.params, w), O, unit, I, O, none, delta_p, S, below_p)
                slope(plan.kinds[layer - 1], below_p, at(a, p * I * S), I * S)


# --- optimisers -----------------------------------------------------------------------------------------------------


@kernel
def plain_sgd(P, w, g, scale, rate):
    """w -= rate g, g scaled;  writes w, and zeros into g. All (P,)."""
    for q in range(P):
        w[q] -= rate * (scale * g[q])
        g[q] = 0


@kernel
def momentum_sgd(P, w, g, velocity, scale, rate, momentum, nesterov, tiny):
    """velocity = momentum velocity + g; w -= rate velocity, or rate (g + momentum velocity) with Nesterov.

    Sutskever et al. 2013, equations 1 to 4.  Writes w, velocity, and zeros into g. All (P,).
    """
    for q in range(P):
        g_q = scale * g[q]
        v_q = momentum * velocity[q] + g_q
        if abs(v_q) < tiny:
            v_q = v_q * 0
        velocity[q] = v_q
        w[q] -= rate * (g_q + momentum * v_q if nesterov else v_q)
        g[q] = 0


@kernel
def adam(P, w, g, first, second, scale, rate, beta1, beta2, epsilon, correction1, correction2, tiny, root):
    """w -= rate (first / correction1) / (sqrt(second / correction2) + epsilon), correction = 1 - beta^t.

    first = beta1 first + (1 - beta1) g and second = beta2 second + (1 - beta2) g^2: Kingma and Ba 2015, algorithm 1.
    A g below root, the root of tiny, counts as 0 in g^2.  Writes w, first, second, and zeros into g. All (P,).
    """
    one = epsilon / epsilon
    for q in range(P):
        g_q = scale * g[q]
        m_q = beta1 * first[q] + (one - beta1) * g_q
        if abs(g_q) < root:
            g_q = g_q * 0
        v_q = beta2 * second[q] + (one - beta2) * (g_q * g_q)
        if abs(m_q) < tiny:
            m_q = m_q * 0
        if v_q < tiny:
            v_q = v_q * 0
        first[q] = m_q
        second[q] = v_q
        w[q] -= rate * (m_q / correction1) / (np.sqrt(v_q / correction2) + epsilon)
        g[q] = 0


@kernel
def step(plan, memory, scale):
    """Update the weights with the gradient of a batch, times scale;  writes params, gradient, momenta and totals."""
    P, w, g, settings = plan.parameters, memory.params, memory.gradient, plan.settings
    cast = memory.scalars  # float64 numbers stored here and read back have the working precision
    cast[0], cast[1], cast[4] = scale, tiny_of(w), np.sqrt(tiny_of(w))
    if plan.optimizer == PLAIN_SGD:
        plain_sgd(P, w, g, cast[0], settings[0])
    elif plan.optimizer == MOMENTUM_SGD:
        momentum_sgd(P, w, g, memory.first, cast[0], settings[0], settings[1], settings[2] != 0, cast[1])
    elif plan.optimizer == ADAM:
        memory.totals[2] *= settings[1]  # beta1^t
        memory.totals[3] *= settings[2]  # beta2^t
        cast[2], cast[3] = 1 - memory.totals[2], 1 - memory.totals[3]
        adam(
            P, w, g, memory.first, memory.second, cast[0], settings[0], settings[1], settings[2], settings[3],
            cast[2], cast[3], cast[1], cast[4],
        )  # fmt: skip


# --- one vector of samples ------------------------------------------------------------------------------------------


@inlined
def tiny_batch(plan, memory, x, scale):
    """Forward, backward and update of a batch that is one vector of samples of a small network, such as XOR.

    Here loops cost more than arithmetic, and each sum is used where it is still in a register: gradients written as
    scalars and read back as vectors would wait for the store. Over panels XOR takes 2.1 times as long.
    x (F, S), S = V;  writes activations, deltas, totals and params, or for optimisers with momenta the gradient.
    """
    layers, S = plan.layers, plan.width
    params, gradient = memory.params, memory.gradient
    memory.scalars[0] = scale
    rate = memory.scalars[0] * plan.settings[0]
    fused = plan.optimizer == PLAIN_SGD
    a, w, top = x, 0, 0
    for layer in range(layers):
        I, O = plan.sizes[layer], plan.sizes[layer + 1]
        out = at(memory.activations, top)
        for o in range(O):
            # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
            z = fill(1, 1, at(params, w + I * O + o) if plan.biases else memory.none)
            for i in range(I):
                z = add_outer(z, at(params, w + i * O + o), 0, at(a, i * S))
            store(at(out, o * S), 0, activation(plan.kinds[layer], z) if layer + 1 < layers else z)
        a = out
        w += I * O + (O if plan.biases else 0)
        top += O * S

    O = plan.sizes[layers]
    top -= O * S
    y, delta = at(x, plan.sizes[0] * S), at(memory.deltas, top)
    output(plan.loss, plan.kinds[layers - 1], a, y, at(y, O * S), O, S, delta, memory.totals)

    for layer in range(layers - 1, -1, -1):
        I, O = plan.sizes[layer], plan.sizes[layer + 1]
        w -= I * O + (O if plan.biases else 0)
        a, below = x, delta
        if layer > 0:
            top -= I * S
            a, below = at(memory.activations, top), at(memory.deltas, top)
            for i in range(I):
                # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s], with w from before its update
                sums = zeros(1, 1, a)
                for o in range(O):
                    sums = add_outer(sums, at(params, w + i * O + o), 0, at(delta, o * S))
                sums = times_slope(plan.kinds[layer - 1], sums, load(1, 1, at(a, i * S), 0))
                store(at(below, i * S), 0, flush(sums, tiny_of(a)))
        for o in range(O):
            delta_o = load(1, 1, at(delta, o * S), 0)
            for i in range(I):
                # gradient[i, o] = sum_s a[i, s] delta[o, s]
                total = lane_sum(load(1, 1, at(a, i * S), 0) * delta_o)
                if fused:
                    params[w + i * O + o] -= rate * total
                else:
                    gradient[w + i * O + o] = total
            if plan.biases:
                # gradient[o] = sum_s delta[o, s]
                if fused:
                    params[w + I * O + o] -= rate * lane_sum(delta_o)
                else:
                    gradient[w + I * O + o] = lane_sum(delta_o)
        delta = below
    if not fused:
        step(plan, memory, scale)


# --- the loop -------------------------------------------------------------------------------------------------------


@kernel
def random_bits(counter):
    """64 random bits from a counter: splitmix64 of Steele, Lea and Flood, OOPSLA 2014, figure 17."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def shuffle(n, seed, epoch, order):
    """The order of the rows in an epoch: Fisher and Yates, from n - 1 down;  writes order (n,).

    NumPy draws one in 8 ns a row, a fifth of the time of the training at 16-32-1; this and `gather` take 6.
    """
    key = random_bits(random_bits(np.uint64(seed)) + np.uint64(epoch))
    for i in range(n):
        order[i] = i
    for i in range(n - 1, 0, -1):
        uniform = np.int64(random_bits(key + np.uint64(i)) >> np.uint64(11)) * 2.0**-53
        j = np.int64(uniform * (i + 1))
        order[i], order[j] = order[j], order[i]


@kernel
def gather(data, order, count, F, S, panels, none, out):
    """out[p, f, s] = data[order[p S + s], f], samples from `count` on zero, weight and all.

    data (n, F), order (count,), none (V,) zeros;  writes out (panels, F, S).
    """
    V = lanes_of(data)
    for first in range(0, panels * S, V):
        panel = at(out, first // S * F * S + first % S)
        here = at(order, min(first, count - 1))
        whole = F // V * V
        for f in range(0, whole, V):
            store(at(panel, f * S), S, transpose(load_rows(at(data, f), here, F, count - first, none)))
        for s in range(V):
            row = at(data, order[min(first + s, count - 1)] * F)
            for f in range(whole, F):
                panel[f * S + s] = row[f] if first + s < count else 0


@kernel
def finite(P, w):
    """Whether all numbers of w (P,) are finite: 0 w is 0 for those, and NaN for others."""
    V = lanes_of(w)
    sums = zeros(4, 1, w)  # four sums at once: one alone would wait for each addition
    q = 0
    while q + 4 * V <= P:
        sums = multiply_add(load(4, 1, at(w, q), V), 0.0, sums)
        q += 4 * V
    rest = w[0] * 0
    while q < P:
        rest += w[q] * 0
        q += 1
    return rest + lane_sum(sums) == 0


@kernel
def bare_plan(plan):
    """The plan with pointers in place of arrays."""
    return Plan(
        at(plan.sizes, 0), at(plan.kinds, 0), plan.layers, plan.parameters, plan.loss, plan.biases, plan.optimizer,
        at(plan.settings, 0), plan.batch_size, plan.mean, plan.shuffled, plan.seed, plan.rows, plan.width, plan.block,
        plan.tiny,
    )  # fmt: skip


@kernel
def bare_memory(memory):
    """The memory with pointers in place of arrays."""
    return Memory(
        at(memory.params, 0), at(memory.gradient, 0), at(memory.first, 0), at(memory.second, 0), at(memory.none, 0),
        at(memory.counting, 0), at(memory.order, 0), at(memory.scalars, 0), at(memory.data, 0),
        at(memory.activations, 0), at(memory.deltas, 0), at(memory.scratch, 0),
        at(memory.position, 0), at(memory.totals, 0), at(memory.loss, 0), at(memory.error, 0),
    )  # fmt: skip


@entry
def run(plan, memory, data, blocks):
    """Train for this many blocks, from memory.position on;  returns FINISHED, or DIVERGED at the end of an epoch.

    data: the rows (n, F), or where they are not shuffled all panels laid out, batch after batch.
    """
    plan, memory = bare_plan(plan), bare_memory(memory)
    n, S, I, O = plan.rows, plan.width, plan.sizes[0], plan.sizes[plan.layers]
    F = I + O + 1
    epoch, row, panel = memory.position[0], memory.position[1], memory.position[2]
    status = FINISHED
    for _ in range(blocks):
        batch = row // plan.batch_size * plan.batch_size  # its first row
        batch_rows = min(plan.batch_size, n - batch)
        count = min(batch + batch_rows - row, plan.block * S)
        panels = (count + S - 1) // S
        scale = 1.0 / batch_rows if plan.mean else 1.0
        x = at(data, panel * F * S)
        if plan.shuffled:
            if row == 0:
                shuffle(n, plan.seed, epoch, memory.order)
            x = memory.data
            gather(at(data, 0), at(memory.order, row), count, F, S, panels, memory.none, x)
        row += count
        panel += panels
        if plan.tiny:
            tiny_batch(plan, memory, x, scale)
        else:
            forward(plan, memory.params, memory.none, x, F, panels, memory.activations)
            output_layer(plan, memory, x, F, panels)
            backward(plan, memory, x, F, count)
            if row == batch + batch_rows:
                step(plan, memory, scale)
        if row == n:
            loss, error = memory.totals[0], memory.totals[1]
            memory.loss[epoch], memory.error[epoch] = loss / n, error / (n * O)
            memory.totals[0], memory.totals[1] = 0, 0
            epoch += 1
            row, panel = 0, 0
            if not (loss * 0 == 0 and finite(plan.parameters, memory.params)):
                status = DIVERGED
                break
    memory.position[0], memory.position[1], memory.position[2] = epoch, row, panel
    return status


@entry
def predict(plan, params, data, order, none, gathered, activations, predictions):
    """Predictions for all rows, a block at a time.

    params (P,), data (n, I), order (n,), none (widest layer, at least V) zeros;  writes gathered (block, I, S),
    activations as `forward` and predictions (n, O). All arrays are flat.
    """
    plan, x = bare_plan(plan), at(gathered, 0)
    n, S, I, O = plan.rows, plan.width, plan.sizes[0], plan.sizes[plan.layers]
    kind, top = plan.kinds[plan.layers - 1], top_layer(plan)
    for first in range(0, n, plan.block * S):
        count = min(n - first, plan.block * S)
        panels = (count + S - 1) // S
        gather(at(data, 0), at(order, first), count, I, S, panels, at(none, 0), x)
        forward(plan, at(params, 0), at(none, 0), x, I, panels, at(activations, 0))
        for p in range(panels):
            a = at(activations, top + p * O * S)
            if kind == SOFTMAX:
                for v in range(0, S, lanes_of(a)):
                    softmax(highest(at(a, v), O, S), at(a, v), O, S)
            else:
                activate(kind, a, O * S)
            out = at(predictions, (first + p * S) * O)
            for s in range(min(S, count - p * S)):
                for o in range(O):
                    out[s * O + o] = a[o * S + s]
    return FINISHED
