"""Products of matrices and sums over samples, by tiles whose sums stay in registers.

Dimensions and the order of panels are those of `kernels.py`.
"""

import numpy as np

from fastbp.jit import inlined, kernel
from fastbp.simd import (
    PAIRED,
    TILE_ROWS,
    add_lane_sums,
    add_outer,
    at,
    fill,
    lanes_of,
    load,
    load_rows,
    multiply_add,
    store,
    transpose,
    zeros,
)

# --- products and sums, by tiles that stay in registers ---------------------------------------------------------------


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
def product_tile(rows, vectors, w, row_stride, column_stride, n, bias, x, S, out):
    """`product` for a few rows and one or two vectors, whose sums stay in registers;  writes out (rows, vectors V)."""
    sums = fill(rows, vectors, bias)
    for k in range(n):
        sums = add_outer(sums, at(w, k * column_stride), row_stride, at(x, k * S))
    store(out, S, sums)


# What of W a slab holds at most: 192 columns, so that the features of a panel that they meet, 24 KB, stay in a
# first-level cache of 32 KB while all its rows are walked, and 128 KB, so that it stays in the second level while all
# panels of a block are. Simulated at 448 to 1,024 units, a step of a tile fetches 1.3 lines from the second level
# instead of 3, and 0.1 from the third instead of 0.5, with 48 KB and 2 MB; with 32 KB and 1 MB 1.7 and 0.3 instead of 3
# and 0.8, which arithmetic at half the pace hides there.
SLAB_COLUMNS, SLAB_VECTORS = 192, 2**11


@inlined
def is_wide(rows, n, V):
    """Whether `product_in_slabs` pays."""
    return n > SLAB_COLUMNS or rows * n > SLAB_VECTORS * V


@kernel
def product_in_slabs(w, row_stride, column_stride, rows, n, bias, x, x_stride, panels, S, out, out_stride):
    """`product` for all panels of a block, one slab of W after the other, with the same bits.

    x (panels, x_stride, S) of which n features are used;  writes out (panels, out_stride, S), of it rows.
    """
    V, whole = lanes_of(x), rows // TILE_ROWS * TILE_ROWS
    slabs = (n + SLAB_COLUMNS - 1) // SLAB_COLUMNS
    columns = (n + slabs - 1) // slabs
    height = max(1, SLAB_VECTORS * V // (columns * TILE_ROWS)) * TILE_ROWS
    for first in range(0, whole, height):
        for k in range(0, n, columns):
            count = min(columns, n - k)
            for p in range(panels):
                x_k, out_p = at(x, (p * x_stride + k) * S), at(out, p * out_stride * S)
                for r in range(first, min(first + height, whole), TILE_ROWS):
                    w_r, out_r = at(w, r * row_stride + k * column_stride), at(out_p, r * S)
                    if PAIRED and S == 2 * V:
                        slab_tile(2, w_r, row_stride, column_stride, count, k > 0, at(bias, r), x_k, S, out_r)
                    else:
                        for v in range(0, S, V):
                            x_v, out_v = at(x_k, v), at(out_r, v)
                            slab_tile(1, w_r, row_stride, column_stride, count, k > 0, at(bias, r), x_v, S, out_v)
    if rows > whole:
        rest = rows - whole
        # A whole tile, some of whose rows are done, for the reason in `product`.
        if rest >= TILE_ROWS // 2 and whole > 0:
            rest = TILE_ROWS
        r = rows - rest
        for p in range(panels):
            x_p, out_r = at(x, p * x_stride * S), at(out, (p * out_stride + r) * S)
            product(at(w, r * row_stride), row_stride, column_stride, rest, n, at(bias, r), x_p, S, out_r)


@kernel
def slab_tile(vectors, w, row_stride, column_stride, n, begun, bias, x, S, out):
    """`product_tile` for a slab: where sums have begun with the columns before, they go on from what is in out."""
    sums = load(TILE_ROWS, vectors, out, S) if begun else fill(TILE_ROWS, vectors, bias)
    for k in range(n):
        sums = add_outer(sums, at(w, k * column_stride), row_stride, at(x, k * S))
    store(out, S, sums)


@kernel
def weight_gradient(a, a_stride, I, delta, O, samples, S, counting, all_zero, scratch, gradient):
    """gradient[i, o] += sum_s a[i, s] delta[o, s], over all samples of a block.

    a (panels, a_stride, S) of which I features are used, delta (panels, O, S), counting and all_zero as in
    `transposed`;  writes scratch (C panels S,), adds to gradient (I, O). Up to V numbers after gradient are written as
    they were.
    """
    # forward: z[o, s] = b[o] + sum_i w[i, o] a[i, s], so dz[o, s] / dw[i, o] = a[i, s]
    panels, begin = (samples + S - 1) // S, np.int64(0)
    transposed(delta, O, begin, panels, S, counting, all_zero, begin, columns(O, lanes_of(a)), panels * S, scratch)
    gradient_rows(a, a_stride, I, delta, O, samples, S, scratch, gradient)


@inlined
def columns(O, V):
    """Outputs that have lanes of their own in `weight_gradient`, whole vectors.

    Fewer outputs than fill half a vector have samples in the lanes: 64 x 100 took 8 % longer without.
    """
    return (O + V // 2) // V * V


@inlined
def gradient_rows(a, a_stride, I, delta, O, samples, S, scratch, gradient):
    """`weight_gradient` for I inputs, once scratch holds the deltas as `transposed` writes them."""
    # The product again, with outputs in the lanes. The lanes beyond O belong to the next row: they have delta 0, and
    # rows are stored in order, so that each is last written by its own.
    panels, C = (samples + S - 1) // S, columns(O, lanes_of(a))
    i = 0
    while i < I and C > 0:
        a_i, g = at(a, i * S), at(gradient, i * O)
        if i + TILE_ROWS <= I:
            wide_rows(TILE_ROWS, a_i, a_stride, scratch, C, samples, S, g, O)
            i += TILE_ROWS
        else:
            wide_rows(1, a_i, a_stride, scratch, C, samples, S, g, O)
            i += 1
    for o in range(C, O):
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
def transposed(delta, O, place, panels, S, counting, all_zero, begin, end, samples, out):
    """out[t, place + p, s, o] = delta[p, o, s] for the outputs from begin to end, whole vectors, and zeros beyond O.

    A tile t has as many outputs as `wide_rows` takes at once, so that it reads one number after the other: lying 4 KB
    apart, at 512 outputs in float64, all would share one set of a first-level cache, and the gradient took 1.13 times
    as long.
    delta (panels, O, S), counting (V,) 0, 1, ..., all_zero (V,) zeros;  writes of out (C samples,), C as `columns`
    says, what belongs to these panels and outputs.
    """
    V = lanes_of(delta)
    C = columns(O, V)
    for o in range(begin, end, V):
        first = o // (2 * V) * 2 * V if PAIRED else o
        width = 2 * V if PAIRED and first + 2 * V <= C else V
        tile = at(out, first * samples + o - first)
        for p in range(panels):
            for v in range(0, S, V):
                rows = load_rows(at(delta, (p * O + o) * S + v), counting, S, O - o, all_zero)
                store(at(tile, ((place + p) * S + v) * width), width, transpose(rows))


@kernel
def wide_rows(rows, a, a_stride, delta, C, samples, S, gradient, O):
    """`weight_gradient` for a few inputs and all outputs."""
    V = lanes_of(a)
    padded = (samples + S - 1) // S * S
    o = 0
    while o < C:
        if PAIRED and o + 2 * V <= C:
            wide_tile(rows, 2, a, a_stride, at(delta, o * padded), samples, S, at(gradient, o), O)
            o += 2 * V
        else:
            wide_tile(rows, 1, a, a_stride, at(delta, o * padded), samples, S, at(gradient, o), O)
            o += V


@kernel
def wide_tile(rows, vectors, a, a_stride, delta, samples, S, gradient, O):
    """`weight_gradient` for a few inputs and one or two vectors of outputs, whose sums stay in registers."""
    width = vectors * lanes_of(a)
    sums = load(rows, vectors, gradient, O)
    while samples > 0:
        for s in range(min(S, samples)):
            sums = add_outer(sums, at(a, s), S, at(delta, s * width))
        a, delta, samples = at(a, a_stride * S), at(delta, S * width), samples - S
    store(gradient, O, sums)


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
def bias_gradient(delta, stride, O, panels, S, gradient):
    """gradient[o] += sum_s delta[o, s], over all samples of a block.

    delta (panels, stride, S) of which O outputs are summed;  adds to gradient (O,).
    """
    o = 0
    while o < O:
        if o + 4 <= O:
            bias_tile(4, at(delta, o * S), stride, panels, S, at(gradient, o))
            o += 4
        else:
            bias_tile(1, at(delta, o * S), stride, panels, S, at(gradient, o))
            o += 1


@kernel
def bias_tile(rows, delta, stride, panels, S, gradient):
    """`bias_gradient` for a few outputs."""
    sums = zeros(rows, 1, delta)
    for p in range(panels):
        for v in range(0, S, lanes_of(delta)):
            sums = sums + load(rows, 1, at(delta, p * stride * S + v), S)
    add_lane_sums(sums, gradient, 1)
