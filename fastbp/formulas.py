"""The formulas of back-propagation as loops over vectors: activations, losses, optimisers, learning-rate schedules.

Dimensions and the order of panels are those of `kernels.py`. What the lean version does without is called by `if_full`,
and its functions are apart from their callers.
"""

import numpy as np

from fastbp.choices import (
    ABSOLUTE_ERROR,
    ADAM,
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPSILON,
    ADAM_EPSILON_HAT,
    ADAMW,
    ADAMW_WEIGHT_DECAY,
    BINARY_CROSS_ENTROPY,
    COSINE,
    COSINE_EPOCHS,
    COSINE_MINIMUM,
    COSINE_WARMUP,
    CROSS_ENTROPY,
    ELU,
    EXPONENTIAL,
    EXPONENTIAL_DECAY,
    EXPONENTIAL_DECAY_DECAY,
    GAUSSIAN_NLL,
    GELU,
    HUBER,
    INVERSE_SCALING,
    INVERSE_SCALING_PACE,
    INVERSE_SCALING_POWER,
    IRPROP,
    IRPROP_DECREASE,
    IRPROP_INCREASE,
    IRPROP_LARGEST_STEP,
    IRPROP_SMALLEST_STEP,
    LEAK,
    LEAKY_RELU,
    MOMENTUM_SGD,
    OF_LOGITS,
    PLAIN_SGD,
    POISSON,
    QUANTILE,
    REDUCE_ON_PLATEAU,
    RELU,
    RMSPROP,
    RMSPROP_DECAY,
    RMSPROP_EPSILON,
    SGD_MOMENTUM,
    SGD_NESTEROV,
    SIGMOID,
    SILU,
    SOFTMAX,
    SOFTPLUS,
    TANH,
)
from fastbp.jit import inlined, kernel
from fastbp.simd import (
    absolute,
    at,
    erf,
    exp,
    expm1,
    fill,
    if_full,
    lane_sum,
    lanes_of,
    load,
    log,
    log1p,
    multiply_add,
    random_bits,
    sigmoid,
    sqrt,
    store,
    tanh,
    where_less,
    zeros,
)
from fastbp.workspace import (
    CORRECTED_EPSILON,
    CORRECTED_RATE,
    ERROR,
    LOSS,
    POWER1,
    POWER2,
    RATE,
    REST1,
    REST2,
    SCALE,
)

# --- activations ------------------------------------------------------------------------------------------------------


@kernel
def activate(plan, kind, z, n, a):
    """a = f(z) for n elements, whole vectors;  writes a, which may be z."""
    # The branch inside the loop goes the same way each time, so that it is predicted; it takes as long as RELU does.
    for q in range(0, n if kind == RELU else 0, lanes_of(a)):
        store(at(a, q), 0, activation(plan, RELU, load(1, 1, at(z, q), 0)))
    for q in range(0, 0 if kind == RELU else n, lanes_of(a)):
        store(at(a, q), 0, activation(plan, kind, load(1, 1, at(z, q), 0)))


@inlined
def activation(plan, kind, z):
    """a = f(z), lane by lane. NaN passes through."""
    if kind == SIGMOID:
        return sigmoid(z)
    if kind == TANH:
        return tanh(z)
    if kind == RELU:
        return where_less(z, 0.0, 0.0, z)
    if kind == LEAKY_RELU:
        return where_less(z, 0.0, LEAK * z, z)
    if kind > SOFTMAX:
        return if_full(plan, z, further_activation, kind, z)
    return z


@kernel
def further_activation(kind, z):
    """The rest of `activation`: apart, so that what is compiled into every caller is short."""
    if kind == ELU:
        return where_less(z, 0.0, expm1(z), z)
    if kind == GELU:
        return z * normal(z)
    if kind == SILU:
        return z * sigmoid(z)
    if kind == SOFTPLUS:
        return softplus(z)
    if kind == EXPONENTIAL:
        return exp(z)
    return z


@kernel
def normal(z):
    """Phi(z) = (1 + erf(z / sqrt 2)) / 2, the distribution function of the normal distribution, lane by lane."""
    return 0.5 + 0.5 * erf(0.7071067811865476 * z)


@kernel
def softplus(z):
    """log(1 + exp(z)), lane by lane, without overflow."""
    return where_less(z, 0.0, 0.0, z) + log1p(exp(0.0 - absolute(z)))


@kernel
def slope(plan, kind, delta, kept, n):
    """delta *= f'(z) for n elements, whole vectors, kept as in `times_slope`;  writes delta."""
    for q in range(0, n if kind == RELU else 0, lanes_of(kept)):  # for the reason in `activate`
        store(at(delta, q), 0, times_slope(plan, RELU, load(1, 1, at(delta, q), 0), load(1, 1, at(kept, q), 0)))
    for q in range(0, 0 if kind == RELU else n, lanes_of(kept)):
        store(at(delta, q), 0, times_slope(plan, kind, load(1, 1, at(delta, q), 0), load(1, 1, at(kept, q), 0)))


@inlined
def times_slope(plan, kind, delta, kept):
    """delta * f'(z), lane by lane, the slope written with a = f(z), or for gelu and silu with z."""
    a = kept
    if kind == SIGMOID:  # a = 1 / (1 + exp(-z))
        return delta * (a * (1.0 - a))
    if kind == TANH:  # a = tanh(z)
        return delta * (1.0 - a * a)
    if kind == RELU:  # a = max(z, 0); 0 a is NaN where a is
        return where_less(0.0, a, delta, 0.0 * a)
    if kind == LEAKY_RELU:  # a = z if z > 0 else LEAK z
        return where_less(0.0, a, delta, LEAK * delta)
    if kind > SOFTMAX:
        return if_full(plan, delta, further_slope, kind, delta, kept)
    return delta


@kernel
def further_slope(kind, delta, kept):
    """The rest of `times_slope`, for the same reason."""
    a = z = kept
    if kind == ELU:  # a = z if z > 0 else exp(z) - 1
        return where_less(0.0, a, delta, delta * (1.0 + a))
    if kind == GELU:  # a = z Phi(z), and dPhi(z) / dz = exp(-z^2 / 2) / sqrt(2 pi)
        return delta * (normal(z) + z * exp(-0.5 * z * z) * 0.3989422804014327)
    if kind == SILU:  # a = z sigmoid(z)
        s = sigmoid(z)
        return delta * (s * (1.0 + z * (1.0 - s)))
    if kind == SOFTPLUS:  # a = log(1 + exp(z)), exp(-a) = 1 / (1 + exp(z))
        return delta * (0.0 - expm1(0.0 - a))
    if kind == EXPONENTIAL:  # a = exp(z)
        return delta * a
    return delta


@kernel
def of_logits(kind):
    """Whether the slope is written with z."""
    return kind in OF_LOGITS


# --- losses: prediction, delta and loss of a panel --------------------------------------------------------------------


@inlined
def output(plan, a, y, weight, O, S, delta, totals):
    """Prediction, delta and loss of a panel as `loss_and_delta`;  adds loss and |p - y| to totals."""
    loss, error = loss_and_delta(plan, a, y, weight, O, S, delta)
    totals[LOSS] += lane_sum(loss)
    totals[ERROR] += lane_sum(error)


@inlined
def loss_and_delta(plan, a, y, weight, O, S, delta):
    """Prediction, delta and loss of a panel from the logits in a (O, S);  writes and returns as the two below."""
    if plan.loss == CROSS_ENTROPY:
        return cross_entropy(a, y, weight, O, S, delta)
    if plan.loss >= QUANTILE:
        nothing = zeros(1, 1, a)
        return if_full(plan, (nothing, nothing), further_loss, plan, a, y, weight, O, S, delta)
    return elementwise(1, plan, a, y, weight, O, S, delta)


@kernel
def further_loss(plan, a, y, weight, O, S, delta):
    """The rest of `loss_and_delta`: apart, so that what is compiled into every caller is short."""
    if plan.loss == QUANTILE:
        return quantile(plan, a, y, weight, O, S, delta)
    return gaussian_nll(plan, a, y, weight, O, S, delta)


@kernel
def weight_stride(output_weights, S):
    """From the weight of an output to that of the next: 0 if a sample has one for all."""
    return S if output_weights else 0


@inlined
def elementwise(rows, plan, a, y, weight, O, S, delta):
    """loss = sum_o loss_of(p_o, y_o), delta_o = loss_slope(p_o, y_o) f'(z_o), p = f(z), so many vectors at a time.

    a (O, S) holds z, y (O, S), weight (S,), or (O, S) if outputs have their own;  writes p into a, and delta (O, S),
    returns loss and |p - y| lane by lane.
    """
    V, loss, d, kind = lanes_of(a), plan.loss, plan.huber_delta, plan.kinds[plan.layers - 1]
    stride = if_full(plan, np.int64(0), weight_stride, plan.output_weights, S)
    total, error = zeros(rows, 1, a), zeros(rows, 1, a)
    for v in range(0, S, rows * V):
        for o in range(O):  # not range(v, O * S, S), whose length takes a division: XOR 1 % of its time
            q, share = o * S + v, load(rows, 1, at(weight, o * stride + v), V)
            z, target = load(rows, 1, at(a, q), V), load(rows, 1, at(y, q), V)
            p = activation(plan, kind, z)
            residual = p - target
            total = multiply_add(loss_of(plan, loss, z, target, residual, d), share, total)
            error = multiply_add(absolute(residual), share, error)
            store(at(a, q), V, p)
            delta_q = residual * share  # for the natural partners, whose slopes cancel
            if loss not in (BINARY_CROSS_ENTROPY, POISSON):
                delta_q = times_slope(plan, kind, loss_slope(loss, residual, d) * share, z if of_logits(kind) else p)
            store(at(delta, q), V, delta_q)
    return total, error


@inlined
def loss_of(plan, loss, z, y, residual, d):
    """Loss of a residual r = p - y, lane by lane: r^2 / 2, |r|, Huber's of both, or what is written with the logit z.

    Huber's meet at |r| = d.
    """
    if loss == BINARY_CROSS_ENTROPY:  # log p and log(1 - p) would lose all digits where p nears 0 or 1
        return where_less(z, 0.0, 0.0, z) - z * y + log1p(exp(0.0 - absolute(z)))
    if loss == POISSON:
        return if_full(plan, z, poisson, z, y, residual)
    if loss == ABSOLUTE_ERROR:
        return absolute(residual)
    square = 0.5 * residual * residual
    if loss == HUBER:
        size = absolute(residual)
        return where_less(size, d, square, d * (size - 0.5 * d))
    return square


@kernel
def poisson(z, y, residual):
    """p - y + y (log y - z), p = exp(z), lane by lane; 0 log 0 counts as 0."""
    return residual + where_less(0.0, y, y * (log(y) - z), 0.0)


@inlined
def loss_slope(loss, residual, d):
    """Derivative of `loss_of` by r, lane by lane: r, its sign, or r cut off at -d and d. NaN passes through."""
    if loss == ABSOLUTE_ERROR:
        return where_less(residual, 0.0, -1.0, where_less(0.0, residual, 1.0, residual))
    if loss == HUBER:
        return where_less(residual, -d, -d, where_less(d, residual, d, residual))
    return residual


@kernel
def quantile(plan, a, y, weight, O, S, delta):
    """loss = sum_o max(-q_o r_o, (1 - q_o) r_o) + c sum_o max(p_o - p_{o+1}, 0), r = p - y, p = f(z).

    Of two neighbours the smaller weight is that of their crossing.  Takes, writes and returns what `elementwise` does.
    """
    V, kind, c = lanes_of(a), plan.kinds[plan.layers - 1], plan.crossing_penalty
    stride = weight_stride(plan.output_weights, S)
    total, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        last_p, last_kept, last_share = zeros(1, 1, a), zeros(1, 1, a), zeros(1, 1, a)
        for o in range(O):
            q, share = o * S + v, load(1, 1, at(weight, o * stride + v), 0)
            z = load(1, 1, at(a, q), 0)
            p = activation(plan, kind, z)
            kept = z if of_logits(kind) else p
            residual = p - load(1, 1, at(y, q), 0)
            slope_q = pinball_slope(residual, plan.quantiles[o])
            total = multiply_add(slope_q * residual, share, total)
            error = multiply_add(absolute(residual), share, error)
            slope_q = slope_q * share
            if c > 0 and o > 0:
                push = c * where_less(last_share, share, last_share, share)
                above = last_p - p
                push = where_less(0.0, above, push, 0.0)
                total = multiply_add(push, above, total)
                slope_q = slope_q - push
                last_delta = load(1, 1, at(delta, q - S), 0) + times_slope(plan, kind, push, last_kept)
                store(at(delta, q - S), 0, last_delta)
            store(at(a, q), 0, p)
            store(at(delta, q), 0, times_slope(plan, kind, slope_q, kept))
            last_p, last_kept, last_share = p, kept, share
    return total, error


@inlined
def pinball_slope(residual, level):
    """Derivative of max(-q r, (1 - q) r) by r, q the level, lane by lane: -q, 0 or 1 - q. NaN passes through."""
    return where_less(residual, 0.0, -level, where_less(0.0, residual, 1.0 - level, residual))


@kernel
def gaussian_nll(plan, a, y, weight, O, S, delta):
    """loss = sum_t 1/2 (s_t + r_t^2 exp(-s_t)), r = m - y, for T = O / 2 targets, whose means are m and variances e^s.

    a (O, S) holds m and then s, y (O, S) the targets and T that are not read, weight (S,) or (O, S) likewise;  writes
    delta (O, S), returns loss and 2 |r| lane by lane: the mean over the outputs is then that of the targets.
    """
    V, T, stride = lanes_of(a), O // 2, weight_stride(plan.output_weights, S)
    total, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        for t in range(T):
            q, share = t * S + v, load(1, 1, at(weight, t * stride + v), 0)
            log_variance = load(1, 1, at(a, T * S + q), 0)
            residual = load(1, 1, at(a, q), 0) - load(1, 1, at(y, q), 0)
            # Half the exponent has twice the range: what overflows is the loss, long before exp ends.
            inverse = exp(-0.5 * log_variance)
            standard = residual * inverse
            square = standard * standard
            total = multiply_add(0.5 * (log_variance + square), share, total)
            error = multiply_add(2.0 * absolute(residual), share, error)
            store(at(delta, q), 0, standard * inverse * share)
            store(at(delta, T * S + q), 0, (0.5 - 0.5 * square) * share)
    return total, error


@kernel
def cross_entropy(a, y, weight, O, S, delta):
    """loss = sum_o y_o (log sum_k exp(z_k) - z_o), delta_o = p_o - y_o, p = softmax(z); the y of a sample sum to 1.

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, and delta (O, S), returns loss and |p - y| lane by lane.
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
            store(at(delta, q), 0, weighted)
    return loss, error


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
        e = exp(load(1, 1, at(z, q), 0) - top)
        total = total + e
        store(at(z, q), 0, e)
    for q in range(0, O * S, S):
        store(at(z, q), 0, load(1, 1, at(z, q), 0) / total)
    return total


@kernel
def misfit(plan, p, y, weight, spread, O, S):
    """What of a panel is not predicted: samples of which a class is wrong, or squared residuals.

    Wrong is a likeliest class that is not the sample's, and any of several binary outputs. The residuals of each output
    are multiplied by its spread.  p, y (O, S), weight (S,), spread (O,);  returns them lane by lane.
    """
    V, loss = lanes_of(p), plan.loss
    if loss >= QUANTILE or plan.output_weights:
        return if_full(plan, zeros(1, 1, p), misfit_of_outputs, plan, p, y, weight, spread, O, S)
    total = zeros(1, 1, p)
    for v in range(0, S, V):
        wrong = zeros(1, 1, p)
        if loss == CROSS_ENTROPY:
            likeliest, there, most = load(1, 1, at(p, v), 0), load(1, 1, at(y, v), 0), load(1, 1, at(y, v), 0)
            for q in range(v + S, O * S, S):
                p_o, y_o = load(1, 1, at(p, q), 0), load(1, 1, at(y, q), 0)
                there = where_less(likeliest, p_o, y_o, there)
                likeliest = where_less(likeliest, p_o, p_o, likeliest)
                most = where_less(most, y_o, y_o, most)
            wrong = where_less(there, most, 1.0, wrong)
        else:
            for o in range(O):
                p_o, y_o = load(1, 1, at(p, o * S + v), 0), load(1, 1, at(y, o * S + v), 0)
                if loss == BINARY_CROSS_ENTROPY:
                    chosen = where_less(0.5, p_o, 1.0, zeros(1, 1, p))
                    wrong = where_less(absolute(chosen - y_o), 0.5, wrong, 1.0)
                else:
                    residual = spread[o] * (p_o - y_o)
                    wrong = multiply_add(residual, residual, wrong)
        total = multiply_add(wrong, load(1, 1, at(weight, v), 0), total)
    return total


@kernel
def misfit_of_outputs(plan, p, y, weight, spread, O, S):
    """`misfit` where outputs have weights of their own, and of the two losses whose outputs are no predictions of y.

    Of "quantile" it is the pinball loss of each output times its spread, of "gaussian_nll" that of the means alone. Of
    several binary outputs those without weight cannot be wrong, and the sample has the mean of all weights.
    """
    V, loss, T = lanes_of(p), plan.loss, O // 2 if plan.loss == GAUSSIAN_NLL else O
    total, stride = zeros(1, 1, p), weight_stride(plan.output_weights, S)
    for v in range(0, S, V):
        wrong, shares = zeros(1, 1, p), zeros(1, 1, p)
        for o in range(T):
            q, share = o * S + v, load(1, 1, at(weight, o * stride + v), 0)
            p_o, y_o = load(1, 1, at(p, q), 0), load(1, 1, at(y, q), 0)
            residual = p_o - y_o
            if loss == BINARY_CROSS_ENTROPY:
                chosen = where_less(0.5, p_o, 1.0, zeros(1, 1, p))
                differs = where_less(absolute(chosen - y_o), 0.5, wrong, 1.0)
                wrong, shares = where_less(0.0, share, differs, wrong), shares + share
            elif loss == QUANTILE:
                pinball = pinball_slope(residual, plan.quantiles[o]) * residual
                total = multiply_add(spread[o] * pinball, share, total)
            else:
                residual = spread[o] * residual
                total = multiply_add(residual * residual, share, total)
        if loss == BINARY_CROSS_ENTROPY:
            total = multiply_add(wrong, shares / O, total)
    return total


# --- optimisers -------------------------------------------------------------------------------------------------------


@kernel
def step(plan, memory, scale):
    """Update the weights with the gradient of a batch, times scale;  writes params, gradient, momenta and totals."""
    begin_step(plan, memory, scale)
    update(plan, memory, np.int64(0), plan.parameters)


@inlined
def begin_step(plan, memory, scale):
    """What of a step looks at all parameters, and the numbers of `update`;  writes params, gradient and totals."""
    w, g, settings, totals = memory.params, memory.gradient, plan.settings, memory.totals
    cast = memory.scalars  # float64 numbers stored here and read back have the working precision
    if plan.l2 > 0:
        totals[LOSS] += penalty(plan, w, g)
    if plan.clip_norm > 0:
        if_full(plan, None, clip, plan, g, scale)
    cast[SCALE] = scale
    if plan.optimizer in (ADAM, ADAMW):
        beta1, beta2, epsilon = settings[ADAM_BETA1], settings[ADAM_BETA2], settings[ADAM_EPSILON]
        totals[POWER1] *= beta1  # beta1^t
        totals[POWER2] *= beta2  # beta2^t
        # first / (1 - beta1^t) over sqrt(second / (1 - beta2^t)) + epsilon: taken out of the loop, the corrections
        # spare it two divisions.
        root = np.sqrt(1 - totals[POWER2])
        cast[CORRECTED_RATE], cast[CORRECTED_EPSILON] = cast[RATE] * root / (1 - totals[POWER1]), epsilon * root
        cast[REST1], cast[REST2] = 1 - beta1, 1 - beta2
        if plan.optimizer == ADAMW:
            if_full(plan, None, decay, plan, w, cast[RATE] * settings[ADAMW_WEIGHT_DECAY])
        elif settings[ADAM_EPSILON_HAT] != 0:
            cast[CORRECTED_EPSILON] = epsilon
    elif plan.optimizer == RMSPROP:
        cast[REST1] = 1 - settings[RMSPROP_DECAY]


@inlined
def update(plan, memory, first, n):
    """The rest of a step for n parameters from the first on, each by itself;  writes params, gradient and momenta."""
    settings, cast = plan.settings, memory.scalars
    w, g = at(memory.params, first), at(memory.gradient, first)
    mean, square = at(memory.first, first), at(memory.second, first)
    if plan.optimizer == PLAIN_SGD:
        plain_sgd(n, w, g, cast[SCALE], cast[RATE])
    elif plan.optimizer == MOMENTUM_SGD:
        momentum_sgd(n, w, g, mean, cast[SCALE], cast[RATE], settings[SGD_MOMENTUM], settings[SGD_NESTEROV] != 0)
    elif plan.optimizer in (ADAM, ADAMW):
        adam(
            n, w, g, mean, square, cast[SCALE], cast[CORRECTED_RATE], settings[ADAM_BETA1], settings[ADAM_BETA2],
            cast[REST1], cast[REST2], cast[CORRECTED_EPSILON],
        )  # fmt: skip
    elif plan.optimizer == RMSPROP:
        beta, epsilon = settings[RMSPROP_DECAY], settings[RMSPROP_EPSILON]
        if_full(plan, None, rmsprop, n, w, g, square, cast[SCALE], cast[RATE], beta, cast[REST1], epsilon)
    elif plan.optimizer == IRPROP:
        increase, decrease = settings[IRPROP_INCREASE], settings[IRPROP_DECREASE]
        smallest, largest = settings[IRPROP_SMALLEST_STEP], settings[IRPROP_LARGEST_STEP]
        if_full(plan, None, irprop, n, w, g, mean, square, increase, decrease, smallest, largest)


@kernel
def plain_sgd(P, w, g, scale, rate):
    """`plain_sgd_of` for each parameter;  writes w, and zeros into g. All (P,)."""
    for q in range(P):
        w[q] = plain_sgd_of(w[q], g[q], scale, rate)
        g[q] = 0


@inlined
def plain_sgd_of(w, g, scale, rate):
    """w -= rate g, g scaled; numbers or tiles, as in the other formulas;  returns w."""
    return w - rate * (scale * g)


@kernel
def momentum_sgd(P, w, g, velocity, scale, rate, momentum, nesterov):
    """`momentum_sgd_of` for each parameter;  writes w, velocity, and zeros into g. All (P,)."""
    for q in range(P):
        w[q], velocity[q] = momentum_sgd_of(w[q], g[q], velocity[q], scale, rate, momentum, nesterov)
        g[q] = 0


@inlined
def momentum_sgd_of(w, g, velocity, scale, rate, momentum, nesterov):
    """velocity = momentum velocity + rate g; w -= velocity, or rate g + momentum velocity with Nesterov.

    Sutskever et al. 2013, equations 1 to 4.  Returns w and velocity.
    """
    step = rate * (scale * g)
    velocity = momentum * velocity + step
    return w - (step + momentum * velocity if nesterov else velocity), velocity


@kernel
def adam(P, w, g, first, second, scale, rate, beta1, beta2, rest1, rest2, epsilon):
    """`adam_of` for each parameter;  writes w, first, second, and zeros into g. All (P,)."""
    for q in range(P):
        w[q], first[q], second[q] = adam_of(
            w[q], g[q], first[q], second[q], scale, rate, beta1, beta2, rest1, rest2, epsilon
        )
        g[q] = 0


@inlined
def adam_of(w, g, first, second, scale, rate, beta1, beta2, rest1, rest2, epsilon):
    """w -= rate first / (sqrt(second) + epsilon), with rate and epsilon as `begin_step` corrects them.

    first = beta1 first + (1 - beta1) g and second = beta2 second + (1 - beta2) g^2: Kingma and Ba 2015, section 2.
    rest1 and rest2 are 1 - beta1 and 1 - beta2.  Returns w, first and second.
    """
    g = scale * g
    first = beta1 * first + rest1 * g
    second = beta2 * second + rest2 * (g * g)
    return w - rate * first / (sqrt(second) + epsilon), first, second


@kernel
def rmsprop(P, w, g, second, scale, rate, beta, rest, epsilon):
    """`rmsprop_of` for each parameter;  writes w, second, and zeros into g. All (P,)."""
    for q in range(P):
        w[q], second[q] = rmsprop_of(w[q], g[q], second[q], scale, rate, beta, rest, epsilon)
        g[q] = 0


@inlined
def rmsprop_of(w, g, second, scale, rate, beta, rest, epsilon):
    """second = beta second + (1 - beta) g^2; w -= rate g / (sqrt(second) + epsilon): Tieleman and Hinton 2012.

    rest is 1 - beta.  Returns w and second.
    """
    g = scale * g
    second = beta * second + rest * (g * g)
    return w - rate * g / (sqrt(second) + epsilon), second


@kernel
def irprop(P, w, g, last, steps, increase, decrease, smallest, largest):
    """`irprop_of` for each parameter;  writes w, last (the g before), steps, and zeros into g. All (P,)."""
    for q in range(P):
        w[q], last[q], steps[q] = irprop_of(w[q], g[q], last[q], steps[q], increase, decrease, smallest, largest)
        g[q] = 0


@inlined
def irprop_of(w, g, last, step, increase, decrease, smallest, largest):
    """w -= sign(g) step, where the step has grown if g kept its sign, and shrunk if not, and then g counts as 0.

    iRprop-: Igel and Huesken 2003, section 2.2.  Returns w, g and step.
    """
    turn = sign(g) * sign(last)
    longer, shorter = step * increase, step * decrease
    longer, shorter = where_less(longer, largest, longer, largest), where_less(smallest, shorter, shorter, smallest)
    step = where_less(0.0, turn, longer, where_less(turn, 0.0, shorter, step))
    g = where_less(turn, 0.0, g * 0.0, g)
    return w - sign(g) * step, g, step


@inlined
def sign(x):
    """1 above 0, -1 below, else 0."""
    return where_less(0.0, x, 1.0, where_less(x, 0.0, -1.0, 0.0))


@kernel
def penalty(plan, w, g):
    """g += l2 w for the weights, not for the biases;  writes g (P,), returns l2 / 2 sum w^2."""
    total = 0.0
    for layer in range(plan.layers):
        n, start = plan.sizes[layer] * plan.sizes[layer + 1], plan.starts[layer]
        add_scaled(n, at(w, start), plan.l2, at(g, start))
        total += sum_of_squares(n, at(w, start), 1.0)
    return 0.5 * plan.l2 * total


@kernel
def decay(plan, w, share):
    """w -= share w for the weights, not for the biases: Loshchilov and Hutter 2019, algorithm 2.  Writes w (P,)."""
    for layer in range(plan.layers):
        w_layer = at(w, plan.starts[layer])
        add_scaled(plan.sizes[layer] * plan.sizes[layer + 1], w_layer, -share, w_layer)


@kernel
def clip(plan, g, scale):
    """Scale gradients down to `clip_norm` where their norm times scale is above: Pascanu et al. 2013, algorithm 1."""
    length = scale * norm(plan.parameters, g)
    if length > plan.clip_norm:
        shrink(plan.parameters, np.sqrt(plan.clip_norm) / np.sqrt(length), g)


@kernel
def norm(n, x):
    """sqrt(sum_q x_q^2), x (n,); where squares might overflow or vanish, all are divided by the largest first."""
    total = sum_of_squares(n, x, 1.0)
    if 1e-30 < total < 1e30:
        return np.sqrt(total)
    largest = 0.0
    for q in range(n):
        largest = max(largest, np.float64(abs(x[q])))
    return largest * np.sqrt(sum_of_squares(n, x, 1.0 / np.sqrt(largest))) if largest > 0 else total


@kernel
def shrink(n, root, x):
    """x *= root^2, which may be below all normal numbers;  writes x (n,)."""
    for q in range(n):
        x[q] = x[q] * root * root


@kernel
def sum_of_squares(n, x, root):
    """sum_q (root^2 x_q)^2, x (n,)."""
    V = lanes_of(x)
    sums = zeros(4, 1, x)  # four sums at once: one alone would wait for each addition
    q = 0
    while q + 4 * V <= n:
        part = load(4, 1, at(x, q), V) * root * root
        sums = multiply_add(part, part, sums)
        q += 4 * V
    total = np.float64(lane_sum(sums))
    while q < n:
        part_q = x[q] * root * root
        total += part_q * part_q
        q += 1
    return total


@kernel
def add_scaled(n, x, factor, y):
    """y += factor x;  writes y. All (n,), and x may be y."""
    V = lanes_of(x)
    q = 0
    while q + V <= n:
        store(at(y, q), 0, multiply_add(load(1, 1, at(x, q), 0), factor, load(1, 1, at(y, q), 0)))
        q += V
    while q < n:
        y[q] += factor * x[q]
        q += 1


@kernel
def finite(P, w):
    """Whether all numbers of w (P,) are finite: 0 w is 0 for those, and NaN for others."""
    V, rest, q = lanes_of(w), w[0] * 0, 0
    if P >= 4 * V:
        sums = zeros(4, 1, w)  # four sums at once: one alone would wait for each addition
        while q + 4 * V <= P:
            sums = multiply_add(load(4, 1, at(w, q), V), 0.0, sums)
            q += 4 * V
        rest += lane_sum(sums)
    while q < P:
        rest += w[q] * 0
        q += 1
    return rest == 0


# --- random numbers ---------------------------------------------------------------------------------------------------


@kernel
def random_stream(seed, epoch, layer):
    """Key of the random numbers for the dropout of a layer, counted from 1, in an epoch; 0 is for its order of rows."""
    return random_bits(random_bits(np.uint64(seed)) + np.uint64(epoch) + (np.uint64(layer) << np.uint64(32)))


# --- learning-rate schedules ------------------------------------------------------------------------------------------


@kernel
def rate_factor(schedule, settings, epoch, reached, vector):
    """Factor of the learning rate in an epoch, counted from 0; `reached` is that of REDUCE_ON_PLATEAU."""
    if schedule == EXPONENTIAL_DECAY:
        return power(settings[EXPONENTIAL_DECAY_DECAY], np.float64(epoch), vector)
    if schedule == INVERSE_SCALING:
        return power(1.0 + settings[INVERSE_SCALING_PACE] * epoch, -settings[INVERSE_SCALING_POWER], vector)
    if schedule == COSINE:
        epochs, warmup, minimum = settings[COSINE_EPOCHS], settings[COSINE_WARMUP], settings[COSINE_MINIMUM]
        if epoch < warmup:
            return (epoch + 1.0) / (warmup + 1.0)
        share = (epoch - warmup) / (epochs - warmup)
        return minimum + (1.0 - minimum) * 0.5 * (1.0 + cosine(share if share < 1.0 else 1.0))
    if schedule == REDUCE_ON_PLATEAU:
        return reached
    return 1.0


@kernel
def power(base, exponent, vector):
    """base^exponent, base > 0, by our own exp and log: the C library's differ between machines.  Writes vector (V,)."""
    vector[0] = base
    store(vector, 0, exp(exponent * log(fill(1, 1, vector))))
    return vector[0]


@kernel
def cosine(x):
    """cos(pi x) for 0 <= x <= 1 by its series, for the same reason."""
    sign = 1.0 if x <= 0.5 else -1.0
    angle = np.pi * (x if x <= 0.5 else 1.0 - x)
    term = total = 1.0
    for k in range(2, 24, 2):
        term *= -angle * angle / (k * (k - 1))
        total += term
    return sign * total
