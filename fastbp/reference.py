"""The twin of the kernels in NumPy: the same names, written as algebra on whole matrices.

Rows are samples: x is (B, I), a layer's output (B, O). `run` and `predict` take and write what the kernels' do, except
that data is always the rows themselves. It is what the kernels are tested against and what runs for backend="numpy".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    CONSTANT,
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
    KEEP_GRADIENT,
    LBFGS_C1,
    LBFGS_C2,
    LBFGS_EVALUATIONS,
    LBFGS_GRADIENT_TOLERANCE,
    LBFGS_HISTORY,
    LBFGS_LOSS_TOLERANCE,
    LBFGS_MAX_EVALUATIONS,
    LEAK,
    LEAKY_RELU,
    LEARNING_RATE,
    LEVENBERG_MARQUARDT_ATTEMPTS,
    LEVENBERG_MARQUARDT_DECREASE,
    LEVENBERG_MARQUARDT_INCREASE,
    LEVENBERG_MARQUARDT_LARGEST,
    LEVENBERG_MARQUARDT_SMALLEST,
    LIMITED_BFGS,
    MARQUARDT,
    MOMENTUM_SGD,
    OF_LOGITS,
    PLAIN_SGD,
    POISSON,
    QUANTILE,
    REDUCE_ON_PLATEAU,
    REDUCE_ON_PLATEAU_FACTOR,
    REDUCE_ON_PLATEAU_MIN_DELTA,
    REDUCE_ON_PLATEAU_MINIMUM,
    REDUCE_ON_PLATEAU_PATIENCE,
    REDUCE_ON_PLATEAU_STOP,
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
    SQUARED_ERROR,
    TANH,
)
from fastbp.workspace import (
    BATCH_WEIGHT,
    BEST,
    BEST_RATE,
    CONVERGED,
    DIVERGED,
    EPOCH,
    ERROR,
    EXHAUSTED,
    FACTOR,
    FINISHED,
    LOSS,
    MISFIT,
    POWER1,
    POWER2,
    REFUSED,
    ROW,
    STALE,
    STALE_RATE,
    STOPPED,
    SUM_TOLERANCE,
    VALIDATION_LOSS,
    VALIDATION_MISFIT,
    WEIGHT,
    layers_of,
)

Array = NDArray[Any]
PANELS = False  # `run` takes the rows themselves


# --- matrix product -------------------------------------------------------------------------------------------------


def product(w: Array, x: Array, bias: Array | float = 0) -> Array:
    """X w + bias."""
    return x @ w + bias


# --- activations ----------------------------------------------------------------------------------------------------


def activation(kind: int, z: Array) -> Array:
    """a = f(z)."""
    if kind == SIGMOID:
        e = np.exp(np.where(z < 0, z, -z))
        return np.where(z < 0, e, 1) / (1 + e)
    if kind == TANH:
        return np.tanh(z)
    if kind == RELU:
        return np.where(z < 0, z.dtype.type(0), z)
    if kind == LEAKY_RELU:
        return np.where(z < 0, LEAK * z, z)
    if kind == ELU:
        return np.where(z < 0, np.expm1(np.minimum(z, 0)), z)
    if kind == GELU:
        return z * normal(z)
    if kind == SILU:
        return z * activation(SIGMOID, z)
    if kind == SOFTPLUS:
        return softplus(z)
    if kind == EXPONENTIAL:
        return np.exp(z)
    return z


def times_slope(kind: int, delta: Array, kept: Array) -> Array:
    """delta * f'(z), the slope written with a = f(z), or for gelu and silu with z."""
    a = z = kept
    if kind == SIGMOID:
        return delta * (a * (1 - a))
    if kind == TANH:
        return delta * (1 - a * a)
    if kind == RELU:
        return np.where(a > 0, delta, 0 * a)
    if kind == LEAKY_RELU:
        return np.where(a > 0, delta, LEAK * delta)
    if kind == ELU:
        return np.where(a > 0, delta, delta * (1 + a))
    if kind == GELU:
        return delta * (normal(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
    if kind == SILU:
        s = activation(SIGMOID, z)
        return delta * (s * (1 + z * (1 - s)))
    if kind == SOFTPLUS:
        return delta * -np.expm1(-a)
    if kind == EXPONENTIAL:
        return delta * a
    return delta


def normal(z: Array) -> Array:
    """Phi(z) = (1 + erf(z / sqrt 2)) / 2, the distribution function of the normal distribution."""
    erf = np.array([math.erf(x / math.sqrt(2)) for x in z.ravel().tolist()], z.dtype)  # NumPy has none
    return 0.5 + 0.5 * erf.reshape(z.shape)


def softplus(z: Array) -> Array:
    """log(1 + exp(z)), without overflow."""
    return np.where(z < 0, z.dtype.type(0), z) + np.log1p(np.exp(-np.abs(z)))


def of_logits(kind: int) -> bool:
    """Whether the slope is written with z."""
    return kind in OF_LOGITS


def random_stream(seed: int, epoch: int, layer: int) -> Array:
    """Key of the random numbers for the dropout of a layer, counted from 1, in an epoch; 0 is for its order of rows."""
    return random_bits(random_bits(np.array([seed], np.uint64)) + np.uint64(epoch) + np.uint64(layer << 32))


def uniform(dtype: Any, counter: Array) -> Array:
    """Random numbers in [0, 1) from the bits of each counter, as many as the mantissa holds."""
    mantissa = np.finfo(dtype).nmant
    return (random_bits(counter) >> np.uint64(64 - mantissa)).astype(dtype) * dtype.type(2.0**-mantissa)


def dropout(rate: Any, key: Array, n: int, first: int, a: Array) -> Array:
    """0 with probability rate, else a / (1 - rate), for the samples from `first` on of an epoch of n rows."""
    samples, units = np.indices(a.shape).astype(np.uint64)
    random = uniform(a.dtype, key + units * np.uint64(n) + np.uint64(first) + samples)
    return np.where(random < rate, a.dtype.type(0), a.dtype.type(1 / (1 - float(rate))) * a)


# --- losses: prediction, delta and loss of each sample ---------------------------------------------------------------


def loss_of(loss: int, z: Array, y: Array, residual: Array, d: float) -> Array:
    """Loss of a residual r = p - y: r^2 / 2, |r|, Huber's of both, or what is written with the logit z.

    Huber's meet at |r| = d.
    """
    if loss == BINARY_CROSS_ENTROPY:
        return np.where(z < 0, z.dtype.type(0), z) - z * y + np.log1p(np.exp(np.where(z < 0, z, -z)))
    if loss == POISSON:
        return poisson(z, y, residual)
    size, square = np.abs(residual), 0.5 * residual**2
    if loss == ABSOLUTE_ERROR:
        return size
    if loss == HUBER:
        return np.where(size < d, square, d * (size - 0.5 * d))
    return square


def poisson(z: Array, y: Array, residual: Array) -> Array:
    """P - y + y (log y - z), p = exp(z)."""
    logarithm = np.log(y, out=np.zeros_like(y), where=y > 0)  # 0 log 0 counts as 0
    return residual + np.where(y > 0, y * (logarithm - z), 0)


def loss_slope(loss: int, residual: Array, d: float) -> Array:
    """Derivative of `loss_of` by r: r, its sign, or r cut off at -d and d."""
    if loss == ABSOLUTE_ERROR:
        return np.sign(residual)
    if loss == HUBER:
        return np.clip(residual, -d, d)
    return residual


def elementwise(plan: Any, z: Array, y: Array, weight: Any) -> tuple[Array, Array, Array, Array]:
    """loss = sum_o loss_of(p_o, y_o), delta_o = loss_slope(p_o, y_o) f'(z_o), p = f(z)."""
    loss, d, kind = plan.loss, plan.huber_delta, plan.kinds[-1]
    p = activation(kind, z)
    residual = delta = p - y  # the delta of the natural partners, whose slopes cancel
    if loss not in (BINARY_CROSS_ENTROPY, POISSON):
        delta = times_slope(kind, loss_slope(loss, residual, d), z if of_logits(kind) else p)
    total = (loss_of(loss, z, y, residual, d) * weight).sum(axis=1)
    return p, delta * weight, total, np.abs(residual * weight).sum(axis=1)


def quantile(plan: Any, z: Array, y: Array, weight: Any) -> tuple[Array, Array, Array, Array]:
    """loss = sum_o max(-q_o r_o, (1 - q_o) r_o) + c sum_o max(p_o - p_{o+1}, 0), r = p - y, p = f(z).

    Of two neighbours the smaller weight is that of their crossing.
    """
    kind, c = plan.kinds[-1], z.dtype.type(plan.crossing_penalty)
    p = activation(kind, z)
    residual, weight = p - y, np.broadcast_to(weight, z.shape)
    slopes = pinball_slope(residual, plan.quantiles)
    above = p[:, :-1] - p[:, 1:]
    push = np.where(above > 0, c * np.minimum(weight[:, :-1], weight[:, 1:]), z.dtype.type(0))
    loss = (slopes * residual * weight).sum(axis=1) + (push * above).sum(axis=1)
    slopes = slopes * weight
    slopes[:, :-1] += push
    slopes[:, 1:] -= push
    delta = times_slope(kind, slopes, z if of_logits(kind) else p)
    return p, delta, loss, np.abs(residual * weight).sum(axis=1)


def pinball_slope(residual: Array, levels: Array) -> Array:
    """Derivative of max(-q r, (1 - q) r) by r, q the level of each column: -q, 0 or 1 - q."""
    q = levels.astype(residual.dtype)
    return np.where(residual < 0, -q, np.where(residual > 0, 1 - q, residual))


def gaussian_nll(z: Array, y: Array, weight: Any) -> tuple[Array, Array, Array, Array]:
    """loss = sum_t 1/2 (s_t + r_t^2 exp(-s_t)), r = m - y, z the means m of the targets and then s, log variances."""
    (m, s), weight = np.split(z, 2, axis=1), np.broadcast_to(weight, z.shape)[:, : z.shape[1] // 2]
    residual, inverse = m - y[:, : m.shape[1]], np.exp(-0.5 * s)
    standard = residual * inverse
    delta = np.hstack([standard * inverse * weight, (0.5 - 0.5 * standard**2) * weight])
    loss = (0.5 * (s + standard**2) * weight).sum(axis=1)
    return z, delta, loss, 2 * np.abs(residual * weight).sum(axis=1)


def softmax(z: Array) -> Array:
    """p_o = exp(z_o) / sum_o exp(z_o)."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z: Array, y: Array, weight: Any = 1) -> tuple[Array, Array, Array, Array]:
    """loss = sum_o y_o (log sum_k exp(z_k) - z_o), delta_o = p_o - y_o, p = softmax(z)."""
    below = z.max(axis=1, keepdims=True) - z
    loss = (y * below).sum(axis=1, keepdims=True) + np.log(np.exp(-below).sum(axis=1, keepdims=True))
    p = softmax(z)
    delta = (p - y) * weight
    return p, delta, (loss * weight)[:, 0], np.abs(delta).sum(axis=1)


def output(plan: Any, z: Array, y: Array, weight: Any = 1) -> tuple[Array, Array, Array, Array]:
    """Prediction and delta (B, O), loss and |p - y| (B,) from the logits z (B, O), all but the first weighted.

    weight (B, 1), or (B, O) if outputs have their own.
    """
    if plan.loss == CROSS_ENTROPY:
        return cross_entropy(z, y, weight)
    if plan.loss == QUANTILE:
        return quantile(plan, z, y, weight)
    if plan.loss == GAUSSIAN_NLL:
        return gaussian_nll(z, y, weight)
    return elementwise(plan, z, y, weight)


def misfit(plan: Any, p: Array, y: Array, weight: Array) -> Array:
    """What of each sample is not predicted: a wrong class, any wrong binary output, or squares of the residuals.

    Of "quantile" it is the pinball loss in place of the squares, of "gaussian_nll" they are those of the means.
    weight (B, 1), or (B, O) if outputs have their own: then outputs without weight cannot be wrong.
    """
    loss, spread = plan.loss, plan.spread
    if loss == CROSS_ENTROPY:
        wrong = np.take_along_axis(y, p.argmax(axis=1)[:, None], axis=1)[:, 0] < y.max(axis=1)
        return wrong * weight[:, 0]
    if loss == BINARY_CROSS_ENTROPY:
        return (((p > 0.5) != (y > 0.5)) & (weight > 0)).any(axis=1) * weight.mean(axis=1)
    means = slice(p.shape[1] // 2 if loss == GAUSSIAN_NLL else None)
    residual, weight = p[:, means] - y[:, means], np.broadcast_to(weight, p.shape)[:, means]
    spread = spread[means]
    if loss == QUANTILE:
        return (spread * pinball_slope(residual, plan.quantiles) * residual * weight).sum(axis=1)
    return ((spread * residual) ** 2 * weight).sum(axis=1)


# --- gradients ------------------------------------------------------------------------------------------------------


def weight_gradient(a: Array, delta: Array) -> Array:
    """a^T delta."""
    return a.T @ delta


def bias_gradient(delta: Array) -> Array:
    """Sum of delta over the samples."""
    return delta.sum(axis=0)


# --- forward and backward -------------------------------------------------------------------------------------------


def forward(
    plan: Any, params: Array, rates: Array, x: Array, epoch: int, first: int
) -> tuple[list[Array], list[Array]]:
    """X and a_l = f_l(a_{l-1} W_l + b_l) for every layer; the last is left as logits. And what slopes are written with.

    rates (layers,) of dropout; the samples are those from `first` on.
    """
    activations, kept = [x], [x]
    layers = layers_of(params, plan.sizes, plan.starts)
    for layer, (w, b) in enumerate(layers):
        a = z = product(w, activations[-1], b if b.size else 0)
        if layer + 1 < len(layers):
            a = activation(plan.kinds[layer], z)
        kept.append(z if of_logits(plan.kinds[layer]) else a)
        if layer + 1 < len(layers) and rates[layer] > 0:
            a = dropout(rates[layer], random_stream(plan.seed, epoch, layer + 1), plan.rows, first, a)
        activations.append(a)
    return activations, kept


def backward(
    plan: Any, params: Array, activations: list[Array], kept: list[Array], delta: Array, gradient: Array, epoch: int,
    first: int,
) -> None:  # fmt: skip
    """Gradients of every layer, given the deltas of the last;  adds to gradient (P,)."""
    layers, gradients = layers_of(params, plan.sizes, plan.starts), layers_of(gradient, plan.sizes, plan.starts)
    for layer in range(len(layers) - 1, -1, -1):
        w_gradient, b_gradient = gradients[layer]
        w_gradient += weight_gradient(activations[layer], delta)
        if b_gradient.size:
            b_gradient += bias_gradient(delta)
        if layer > 0:
            below = product(layers[layer][0].T, delta)
            delta = times_slope(plan.kinds[layer - 1], below, kept[layer])
            if plan.dropout[layer - 1] > 0:
                key = random_stream(plan.seed, epoch, layer)
                delta = dropout(plan.dropout[layer - 1], key, plan.rows, first, delta)


# --- optimisers -----------------------------------------------------------------------------------------------------


def plain_sgd(w: Array, g: Array, rate: Any) -> None:
    """W -= rate g."""
    w -= rate * g


def momentum_sgd(w: Array, g: Array, velocity: Array, rate: Any, momentum: Any, nesterov: bool) -> None:
    """Velocity = momentum velocity + rate g; w -= velocity, or rate g + momentum velocity with Nesterov."""
    velocity[:] = momentum * velocity + rate * g
    w -= rate * g + momentum * velocity if nesterov else velocity


def adam(w: Array, g: Array, first: Array, second: Array, rate: Any, beta1: Any, beta2: Any, epsilon: Any) -> None:
    """W -= rate first / (sqrt(second) + epsilon), with rate and epsilon as `step` corrects them."""
    first[:] = beta1 * first + (1 - beta1) * g
    second[:] = beta2 * second + (1 - beta2) * g**2
    w -= rate * first / (np.sqrt(second) + epsilon)


def rmsprop(w: Array, g: Array, second: Array, rate: Any, decay: Any, epsilon: Any) -> None:
    """Second = decay second + (1 - decay) g^2; w -= rate g / (sqrt(second) + epsilon)."""
    second[:] = decay * second + (1 - decay) * g**2
    w -= rate * g / (np.sqrt(second) + epsilon)


def irprop(
    w: Array, g: Array, last: Array, steps: Array, increase: Any, decrease: Any, smallest: Any, largest: Any
) -> None:
    """W -= sign(g) step, where the step has grown if g kept its sign, and shrunk if not, and then g counts as 0."""
    agreement = np.sign(g) * np.sign(last)
    grown, shrunk = np.minimum(steps * increase, largest), np.maximum(steps * decrease, smallest)
    steps[:] = np.where(agreement > 0, grown, np.where(agreement < 0, shrunk, steps))
    last[:] = np.where(agreement < 0, g.dtype.type(0), g)
    w -= np.sign(last) * steps


def sum_of_squares(x: Array, root: float = 1.0) -> float:
    """Sum of (root^2 x)^2."""
    return float(((x.astype(np.float64) * root * root) ** 2).sum())


def clip(plan: Any, g: Array, scale: float) -> None:
    """Scale gradients down to `clip_norm` where their norm times scale is above."""
    length = scale * norm(g)
    if length > plan.clip_norm:
        shrink(math.sqrt(plan.clip_norm) / math.sqrt(length), g)


def norm(x: Array) -> float:
    """Root of the sum of x^2, all divided by the largest, since squares overflow or vanish where numbers do not."""
    largest = float(np.abs(x).max(initial=0))
    return largest * math.sqrt(sum_of_squares(x, 1 / math.sqrt(largest))) if largest > 0 else largest


def shrink(root: float, x: Array) -> None:
    """X *= root^2, which may be below all normal numbers."""
    x[:] = x * np.float64(root) * np.float64(root)


def penalty(plan: Any, w: Array, g: Array) -> float:
    """G += l2 w for the weights, not for the biases;  returns l2 / 2 sum w^2."""
    total, layers, gradients = 0.0, layers_of(w, plan.sizes, plan.starts), layers_of(g, plan.sizes, plan.starts)
    for (weights, _), (gradient, _) in zip(layers, gradients, strict=True):
        gradient += w.dtype.type(plan.l2) * weights
        total += sum_of_squares(weights)
    return 0.5 * plan.l2 * total


def decay(plan: Any, w: Array, share: Any) -> None:
    """W -= share w for the weights, not for the biases."""
    for weights, _ in layers_of(w, plan.sizes, plan.starts):
        weights -= share * weights


def step(plan: Any, memory: Any, scale: float, rate: Any) -> None:
    """Update the weights with the gradient of a batch, times scale, and clear it."""
    cast = memory.params.dtype.type
    w, g, settings, totals = memory.params, memory.gradient[: plan.parameters], plan.settings, memory.totals
    if plan.l2 > 0:
        totals[LOSS] += penalty(plan, w, g)
    if plan.clip_norm > 0:
        clip(plan, g, scale)
    g = cast(scale) * g
    if plan.optimizer == PLAIN_SGD:
        plain_sgd(w, g, rate)
    elif plan.optimizer == MOMENTUM_SGD:
        momentum_sgd(w, g, memory.first, rate, settings[SGD_MOMENTUM], bool(settings[SGD_NESTEROV]))
    elif plan.optimizer in (ADAM, ADAMW):
        beta1, beta2, epsilon = settings[ADAM_BETA1], settings[ADAM_BETA2], settings[ADAM_EPSILON]
        totals[POWER1] *= beta1
        totals[POWER2] *= beta2
        root = np.sqrt(1 - totals[POWER2])
        corrected_rate, corrected_epsilon = cast(rate * root / (1 - totals[POWER1])), cast(epsilon * root)
        if plan.optimizer == ADAMW:
            decay(plan, w, rate * settings[ADAMW_WEIGHT_DECAY])
        elif settings[ADAM_EPSILON_HAT]:
            corrected_epsilon = epsilon
        adam(w, g, memory.first, memory.second, corrected_rate, beta1, beta2, corrected_epsilon)
    elif plan.optimizer == RMSPROP:
        rmsprop(w, g, memory.second, rate, settings[RMSPROP_DECAY], settings[RMSPROP_EPSILON])
    elif plan.optimizer == IRPROP:
        bounds = settings[IRPROP_SMALLEST_STEP], settings[IRPROP_LARGEST_STEP]
        factors = settings[IRPROP_INCREASE], settings[IRPROP_DECREASE]
        irprop(w, memory.gradient[: plan.parameters], memory.first, memory.second, *factors, *bounds)  # as summed
    if plan.optimizer != KEEP_GRADIENT:
        memory.gradient[:] = 0


# --- learning-rate schedules ----------------------------------------------------------------------------------------


def rate_factor(schedule: int, settings: Array, epoch: int, reached: float) -> float:
    """Factor of the learning rate in an epoch, counted from 0; `reached` is that of REDUCE_ON_PLATEAU."""
    if schedule == EXPONENTIAL_DECAY:
        return float(settings[EXPONENTIAL_DECAY_DECAY] ** epoch)
    if schedule == INVERSE_SCALING:
        return float((1 + settings[INVERSE_SCALING_PACE] * epoch) ** -settings[INVERSE_SCALING_POWER])
    if schedule == COSINE:
        epochs, warmup, minimum = settings[COSINE_EPOCHS], settings[COSINE_WARMUP], settings[COSINE_MINIMUM]
        if epoch < warmup:
            return float((epoch + 1) / (warmup + 1))
        share = min(1, (epoch - warmup) / (epochs - warmup))
        return float(minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * share)))
    if schedule == REDUCE_ON_PLATEAU:
        return reached
    return 1.0


def rate_of(plan: Any, memory: Any) -> Any:
    """Learning rate of the epoch, in the working precision."""
    epoch, reached = int(memory.position[EPOCH]), memory.totals[FACTOR]
    factor = rate_factor(plan.schedule, plan.schedule_settings, epoch, reached)
    return plan.settings.dtype.type(factor * plan.settings[LEARNING_RATE])


def judge(plan: Any, memory: Any, epoch: int) -> int:
    """Early stopping and REDUCE_ON_PLATEAU at the end of an epoch;  writes best, position and totals.

    Returns STOPPED if more than `patience` epochs in a row were not better than the best before, else FINISHED.
    """
    position, totals = memory.position, memory.totals
    watched = {VALIDATION_LOSS: memory.validation_loss, VALIDATION_MISFIT: memory.validation_misfit}
    figure = watched.get(plan.watched, memory.loss)[epoch]
    position[STALE] = 0 if figure < totals[BEST] - plan.min_delta else position[STALE] + 1
    if figure < totals[BEST]:
        totals[BEST] = figure
        if plan.keep_best:
            memory.best[:] = memory.params
    stop = 0 <= plan.patience < position[STALE]
    if plan.schedule == REDUCE_ON_PLATEAU:
        settings = plan.schedule_settings
        better = figure < totals[BEST_RATE] - settings[REDUCE_ON_PLATEAU_MIN_DELTA]
        position[STALE_RATE] = 0 if better else position[STALE_RATE] + 1
        if figure < totals[BEST_RATE]:
            totals[BEST_RATE] = figure
        if position[STALE_RATE] > settings[REDUCE_ON_PLATEAU_PATIENCE]:
            position[STALE_RATE] = 0
            reducible = totals[FACTOR] > settings[REDUCE_ON_PLATEAU_MINIMUM]
            stop = stop or bool(settings[REDUCE_ON_PLATEAU_STOP] and not reducible)
            totals[FACTOR] *= settings[REDUCE_ON_PLATEAU_FACTOR] if reducible else 1
    return STOPPED if stop else FINISHED


# --- the loop -------------------------------------------------------------------------------------------------------


def random_bits(counter: Array) -> Array:
    """64 random bits from each counter: splitmix64."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffle(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch: Fisher and Yates, from n - 1 down."""
    key = random_stream(seed, epoch, 0)
    random = (random_bits(key + np.arange(n, dtype=np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    other = (random * np.arange(1, n + 1)).astype(np.int64)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = int(other[i])
        order[i], order[j] = order[j], order[i]
    return np.array(order)


def finite(w: Array) -> bool:
    """Whether all numbers of w are finite."""
    return bool(np.isfinite(w).all())


def converges(plan: Any, memory: Any, loss: float) -> bool:
    """Whether the loss of an epoch, the weights and what the optimiser keeps of the gradients are finite."""
    return math.isfinite(loss) and all(map(finite, (memory.params, memory.first, memory.second)))


def train_block(plan: Any, memory: Any, data: Array, epoch: int, row: int, rate: Any) -> int:
    """Forward and backward pass of the next rows of a batch, and the update after its last;  returns their number."""
    I, O = plan.sizes[0], plan.sizes[-1]
    totals = memory.totals
    begin = row // plan.batch_size * plan.batch_size  # of the batch
    end = min(begin + plan.batch_size, plan.rows)
    last = min(row + plan.block * plan.width, end)
    if plan.shuffled and row == 0:
        memory.order[:] = shuffle(plan.rows, plan.seed, epoch)
    block = data[memory.order[row:last]] if plan.shuffled else data[row:last]
    x, y, weight = block[:, :I], block[:, I : I + O], block[:, I + O :]
    activations, kept = forward(plan, memory.params, plan.dropout, x, epoch, row)
    _, delta, loss, error = output(plan, activations[-1], y, weight)
    backward(plan, memory.params, activations, kept, delta, memory.gradient, epoch, row)
    totals[LOSS] += loss.sum(dtype=np.float64)
    totals[ERROR] += error.sum(dtype=np.float64)
    if plan.weighted:
        totals[BATCH_WEIGHT] += weight.sum(dtype=np.float64) / weight.shape[1]
    if last == end:
        total = totals[BATCH_WEIGHT] if plan.weighted else end - begin
        if total > 0:  # a batch without weight is as if it were not there
            step(plan, memory, 1 / total if plan.mean else 1.0, rate)
        totals[WEIGHT] += total
        totals[BATCH_WEIGHT] = 0
    return last - row


def validate_block(plan: Any, memory: Any, validation: Array, row: int) -> int:
    """Loss, error and misfit of the next rows for validation;  adds to totals, returns their number."""
    I, O = plan.sizes[0], plan.sizes[-1]
    block = validation[row : row + plan.block * plan.width]
    x, y, weight = block[:, :I], block[:, I : I + O], block[:, I + O :]
    activations, _ = forward(plan, memory.params, np.zeros(plan.layers), x, 0, 0)
    p, _, loss, error = output(plan, activations[-1], y, weight)
    memory.totals[LOSS] += loss.sum(dtype=np.float64)
    memory.totals[ERROR] += error.sum(dtype=np.float64)
    memory.totals[MISFIT] += misfit(plan, p, y, weight).sum(dtype=np.float64)
    memory.totals[WEIGHT] += weight.sum(dtype=np.float64) / weight.shape[1]
    return len(block)


def run(plan: Any, memory: Any, data: Array, validation: Array, blocks: int) -> int:
    """Train for this many blocks, from memory.position on, in each epoch first the batches, then the validation.

    data (n, F), validation (rows, F): x, y and the weight of each row.  Returns as the kernel.
    """
    n, rows, O = plan.rows, plan.rows + plan.validation_rows, plan.sizes[-1]
    data = data.reshape(n, -1)
    validation = validation.reshape(plan.validation_rows, data.shape[1])
    position, totals = memory.position, memory.totals
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        rate = rate_of(plan, memory)
        for _ in range(blocks):
            epoch, row = int(position[EPOCH]), int(position[ROW])
            status = FINISHED
            if row < n:
                row += train_block(plan, memory, data, epoch, row, rate)
                if row == n:
                    weight = totals[WEIGHT]
                    memory.loss[epoch], memory.error[epoch] = totals[LOSS] / weight, totals[ERROR] / (weight * O)
                    if not converges(plan, memory, totals[LOSS]):
                        status = DIVERGED
                    totals[LOSS] = totals[ERROR] = totals[WEIGHT] = 0
            else:
                row += validate_block(plan, memory, validation, row - n)
                if row == rows:
                    weight = totals[WEIGHT]
                    memory.validation_loss[epoch] = totals[LOSS] / weight
                    memory.validation_error[epoch] = totals[ERROR] / (weight * O)
                    memory.validation_misfit[epoch] = totals[MISFIT] / weight
                    totals[LOSS] = totals[ERROR] = totals[MISFIT] = totals[WEIGHT] = 0
            if row == rows or status == DIVERGED:
                if status == FINISHED and (plan.patience >= 0 or plan.schedule != CONSTANT):
                    status = judge(plan, memory, epoch)
                position[EPOCH], row = epoch + 1, 0
                if plan.schedule != CONSTANT:
                    rate = rate_of(plan, memory)
            position[ROW] = row
            if status != FINISHED:
                return status
    return FINISHED


# --- optimisers of second order --------------------------------------------------------------------------------------


class Search:
    """What an optimiser of second order goes on from; L-BFGS: the point where it is, with loss, slope and sums."""

    def __init__(self, step: Callable[[Any], int], plan: Any, memory: Any, data: Array, validation: Array) -> None:
        self.step, self.plan, self.memory = step, plan, memory
        self.rows = data.reshape(plan.rows, -1)
        self.validation = validation.reshape(plan.validation_rows, self.rows.shape[1])
        self.point: Array | None = None

    def __call__(self, epochs: int) -> int:
        """`run` for so many epochs."""
        status = FINISHED
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            for _ in range(epochs):
                status = self.step(self)
                if status != FINISHED:
                    break
        return status


def close_epoch(search: Any, epoch: int) -> int:
    """Validation and early stopping;  returns the status of `run`."""
    plan, totals, row = search.plan, search.memory.totals, 0
    memory = search.memory
    while row < plan.validation_rows:
        row += validate_block(plan, memory, search.validation, row)
    if row:
        weight = totals[WEIGHT]
        memory.validation_loss[epoch] = totals[LOSS] / weight
        memory.validation_error[epoch] = totals[ERROR] / (weight * plan.sizes[-1])
        memory.validation_misfit[epoch] = totals[MISFIT] / weight
        totals[LOSS] = totals[ERROR] = totals[MISFIT] = totals[WEIGHT] = 0
    return judge(plan, memory, epoch) if plan.patience >= 0 else FINISHED


def lbfgs(search: Any) -> int:
    """An epoch: one step, validation and early stopping;  returns the status of `run`, or what `ended` says."""
    plan, memory = search.plan, search.memory
    if search.point is None or not np.array_equal(search.point, memory.params):
        take(search, memory.params, *evaluate(search))
    epoch, O = int(memory.position[EPOCH]), plan.sizes[-1]
    memory.position[EPOCH] += 1
    loss, error, weight = search.sums
    memory.loss[epoch], memory.error[epoch] = loss / weight, error / (weight * O)
    if not (math.isfinite(loss) and finite(search.slope) and finite(search.point)):
        search.point = None
        return DIVERGED
    if not flat(search):
        descend(search)
    status = close_epoch(search, epoch)
    return ended(search, epoch) if status == FINISHED else status


def flat(search: Any) -> bool:
    """Whether there is a tolerance of the gradient, and no component at the point is larger."""
    return bool(np.abs(search.slope).max() <= search.plan.settings[LBFGS_GRADIENT_TOLERANCE] > 0)


def ended(search: Any, epoch: int) -> int:
    """Whether this epoch was the last one: CONVERGED by a tolerance, EXHAUSTED by the evaluations, else FINISHED."""
    settings, memory = search.plan.settings, search.memory
    before, after = memory.loss[epoch], search.sums[0] / search.sums[2]
    least = settings[LBFGS_LOSS_TOLERANCE] * max(abs(before), abs(after), 1)
    if flat(search) or before - after <= least > 0:
        return CONVERGED
    return EXHAUSTED if memory.second[0] >= settings[LBFGS_MAX_EVALUATIONS] > 0 else FINISHED


def descend(search: Any) -> None:
    """Go along the direction that the remembered steps give or, where that fails, along the gradient."""
    plan, memory = search.plan, search.memory
    step = float(plan.settings[LEARNING_RATE])
    direction, count = two_loops(plan, memory, search.slope)
    slope = dot(direction, search.slope)
    if not slope < 0:
        memory.first[:] = 0
        direction, count = two_loops(plan, memory, search.slope)
        slope = dot(direction, search.slope)
    if not count:
        length = norm(search.slope)
        step /= length if memory.position[EPOCH] == 1 else max(1, length)  # in the first epoch, and later ones
    if slope < 0 and not search_line(search, direction, slope, step):
        memory.first[:] = 0
        if count:
            descend(search)


def evaluate(search: Any) -> tuple[float, Array, tuple[float, float, float]]:
    """Loss and gradient of all rows at the parameters, and sums of loss, error and weight."""
    plan, params = search.plan, search.memory.params
    _, _, delta, (_, activations, kept), sums = passed(plan, params, search.rows)
    gradient = np.zeros_like(params)
    backward(plan, params, activations, kept, delta, gradient, 0, 0)
    loss, error, total = sums
    if plan.l2 > 0:
        loss += penalty(plan, params, gradient)
    scale = 1 / total if plan.mean else 1.0
    return loss * scale, gradient * gradient.dtype.type(scale), (loss, error, total)


def passed(plan: Any, params: Array, rows: Array) -> Any:
    """Logits, predictions and deltas of rows, what the backward pass needs, and sums of loss, error and weight."""
    I, O = plan.sizes[0], plan.sizes[-1]
    x, y, weight = rows[:, :I], rows[:, I : I + O], rows[:, I + O :]
    activations, kept = forward(plan, params, plan.dropout, x, 0, 0)
    p, delta, loss, error = output(plan, activations[-1], y, weight)
    totals = loss, error, weight / weight.shape[1]
    sums = tuple(float(total.sum(dtype=np.float64)) for total in totals)
    return activations[-1], p, delta, (x, activations, kept), sums


def take(search: Any, params: Array, value: float, slope: Array, sums: tuple[float, float, float]) -> None:
    """Let the search be at the parameters, which were evaluated."""
    search.point, search.value, search.slope, search.sums = params.copy(), value, slope, sums


def dot(x: Array, y: Array) -> float:
    """Sum of x y."""
    return float((x.astype(np.float64) * y).sum())


def two_loops(plan: Any, memory: Any, slope: Array) -> tuple[Array, int]:
    """-H slope, H the inverse Hessian that the remembered steps and changes make, and their number."""
    steps, changes = memory.first.reshape(2, int(plan.settings[LBFGS_HISTORY]), -1)
    direction, shares = -slope, []
    for s, y in zip(steps, changes, strict=True):
        if not dot(s, y) > 0:
            break
        shares.append(dot(s, direction) / dot(s, y))
        direction = direction - s.dtype.type(shares[-1]) * y
    if shares:
        direction = direction * s.dtype.type(dot(steps[0], changes[0]) / dot(changes[0], changes[0]))
    for k in range(len(shares) - 1, -1, -1):
        share = shares[k] - dot(changes[k], direction) / dot(steps[k], changes[k])
        direction = direction + s.dtype.type(share) * steps[k]
    return direction, len(shares)


def search_line(search: Any, direction: Array, slope: float, step: float) -> bool:
    """Go from the point to where Wolfe's conditions hold, or to the best place that was seen;  returns whether any."""
    memory, settings = search.memory, search.plan.settings
    history = memory.first.reshape(2, int(settings[LBFGS_HISTORY]), -1)
    tilt = float(settings[LBFGS_C1]) * slope
    best, other, spans = (0.0, search.value, slope), None, (math.inf, math.inf)
    descended, last, evaluated = False, False, 0
    while True:
        memory.params[:] = search.point + step * direction
        value, gradient, sums = evaluate(search)
        evaluated += 1
        memory.second[0] += 1
        found = dot(direction, gradient)
        least = search.value + step * tilt
        if last or (value <= least and abs(found) <= -settings[LBFGS_C2] * slope):
            break
        lacking = not descended and least < value <= best[1]
        descended = descended or (value <= least and found >= 0)
        step, best, other = next_trial(best, other, (step, value, found), tilt if lacking else 0.0)
        if other is not None:
            low, high = sorted((best[0], other[0]))
            if high - low >= 0.66 * spans[0] or not math.isfinite(step):
                step = best[0] + 0.5 * (other[0] - best[0])
            spans = spans[1], high - low
            last = not low < step < high or high - low <= 0.1 * high
        exhausted = evaluated >= settings[LBFGS_EVALUATIONS]
        if last or exhausted:
            last, step = True, best[0]
            if step == 0 or (exhausted and history.any()):
                memory.params[:] = search.point
                return False
    if step * (found - slope) > 0:
        history[:, 1:] = history[:, :-1].copy()
        history[:, 0] = memory.params - search.point, gradient - search.slope
    take(search, memory.params, value, gradient, sums)
    return True


def next_trial(best: Any, other: Any, trial: Any, tilt: float) -> tuple[float, Any, Any]:
    """The step to try next, and the ends of the interval; (step, loss, slope) each, as they are above a line."""
    (l, f_l, g_l), (t, f_t, g_t) = above(best, tilt), above(trial, tilt)
    secant, cubic = t + g_t / (g_t - g_l) * (l - t), lowest((t, f_t, g_t), (l, f_l, g_l))
    nearer, farther = sorted((cubic, secant), key=lambda step: abs(step - t))
    far = t + 4 * (t - l) if other is None else other[0]
    if not f_t <= f_l:
        cubic = lowest((l, f_l, g_l), (t, f_t, g_t))
        square = l + 0.5 * g_l / ((f_l - f_t) / (t - l) + g_l) * (t - l)
        step = cubic if abs(cubic - l) <= abs(square - l) else (cubic + square) / 2
        return float(step), best, trial
    if g_t * g_l < 0:
        return float(farther), trial, best
    if abs(g_t) >= abs(g_l):
        return float(far if other is None else lowest((t, f_t, g_t), above(other, tilt))), trial, other
    if not (cubic - t) * (t - l) > 0:
        nearer, farther = sorted((far, secant), key=lambda step: abs(step - t))
    if other is None:
        return float(np.clip(farther, t + 1.1 * (t - l) if l > 0 else t, far)), trial, other
    return float(t + math.copysign(min(abs(nearer - t), 0.66 * abs(far - t)), t - l)), trial, other


def above(end: Any, tilt: float) -> Any:
    """A step, with loss and slope above a line."""
    return tuple(map(np.float64, (end[0], end[1] - end[0] * tilt, end[2] - tilt)))


def lowest(a: Any, b: Any) -> Any:
    """Where the cubic with these (step, loss, slope) is lowest; not a number where it is not."""
    d = 3 * (a[1] - b[1]) / (b[0] - a[0]) + a[2] + b[2]
    root = np.copysign(np.sqrt(d * d - a[2] * b[2]), b[0] - a[0])
    return a[0] + (root - a[2] + d) / (2 * root - a[2] + b[2]) * (b[0] - a[0])


def marquardt(search: Any) -> int:
    """An epoch: a step of each batch, validation and early stopping;  returns the status of `run`."""
    plan, memory, n = search.plan, search.memory, search.plan.rows
    epoch, totals = int(memory.position[EPOCH]), memory.totals
    memory.position[EPOCH] += 1
    order = shuffle(n, plan.seed, epoch) if plan.shuffled else np.arange(n)
    for first in range(0, n, plan.batch_size):
        batch = search.rows[order[first : first + plan.batch_size]]
        loss, error, weight = damped_step(plan, memory, batch)
        if weight > 0:
            totals[LOSS] += loss
            totals[ERROR] += error
            totals[WEIGHT] += weight
    loss, weight = totals[LOSS], totals[WEIGHT]
    memory.loss[epoch], memory.error[epoch] = loss / weight, totals[ERROR] / (weight * plan.sizes[-1])
    totals[LOSS] = totals[ERROR] = totals[WEIGHT] = 0
    if not (math.isfinite(loss) and finite(memory.params)):
        return DIVERGED
    return close_epoch(search, epoch)


def damped_step(plan: Any, memory: Any, batch: Array) -> tuple[float, float, float]:
    """Make the step of a batch, damped so that its loss falls;  returns sums of loss, error and weight before."""
    settings, point = plan.settings, memory.params.copy()
    z, p, delta, (_, activations, kept), (loss, error, weight) = passed(plan, point, batch)
    gradient = np.zeros_like(point)
    backward(plan, point, activations, kept, delta, gradient, 0, 0)
    ridge = np.zeros_like(gradient)
    if plan.l2 > 0:
        loss += penalty(plan, point, gradient)
        for ridge_w, _ in layers_of(ridge, plan.sizes, plan.starts):
            ridge_w[:] = plan.l2
    if not (weight > 0 and math.isfinite(loss)):
        return loss, error, weight
    I, O, P = plan.sizes[0], plan.sizes[-1], plan.parameters
    roots = curvature(plan, z, p, batch[:, I : I + O], batch[:, I + O :])
    normal = np.diag(ridge.astype(np.float64))
    for o in range(O):
        rows = jacobian(plan, point, activations, kept, p, o, roots)
        normal += rows.T @ rows
    scale = 1 / weight if plan.mean else 1.0
    slope, smallest, largest = (
        scale * gradient.astype(np.float64), float(settings[LEVENBERG_MARQUARDT_SMALLEST]),
        float(settings[LEVENBERG_MARQUARDT_LARGEST]),
    )  # fmt: skip
    for refused in range(int(settings[LEVENBERG_MARQUARDT_ATTEMPTS])):
        damping, value = float(memory.second[0]), math.nan
        try:
            factor = np.linalg.cholesky(scale * normal + damping * np.eye(P))
        except np.linalg.LinAlgError:
            pass
        else:
            solution = np.linalg.solve(factor.T, np.linalg.solve(factor, slope))
            memory.params[:] = point - settings[LEARNING_RATE] * solution
            value = passed(plan, memory.params, batch)[-1][0]
            if plan.l2 > 0:
                value += penalty(plan, memory.params, np.zeros_like(gradient))
        if value * scale < loss * scale:
            damping *= damped_less(plan, slope, solution, damping, (loss - value) * scale)
            memory.second[0] = min(max(damping, smallest), largest)
            break
        memory.params[:] = point
        memory.second[0] = min(damping * settings[LEVENBERG_MARQUARDT_INCREASE] * 2.0**refused, largest)
        if damping >= largest:
            break
    return loss, error, weight


def damped_less(plan: Any, slope: Array, solution: Array, damping: float, gain: float) -> float:
    """Factor of the damping after a step that lowered the loss by this gain."""
    share, along = float(plan.settings[LEARNING_RATE]), dot(slope, solution)
    curved = along - damping * dot(solution, solution)
    ratio = np.float64(gain) / (share * along - 0.5 * share * share * curved)
    return max(float(1 - (2 * ratio - 1) ** 3), float(plan.settings[LEVENBERG_MARQUARDT_DECREASE]))


def curvature(plan: Any, z: Array, p: Array, y: Array, weight: Array) -> Array:
    """The root of the curvature of the loss by each logit, of "cross_entropy" that of p; and of the weight."""
    kind = plan.kinds[-1]
    curved = np.maximum(p * (1 - p) if plan.loss == BINARY_CROSS_ENTROPY else p, p.dtype.type(2.0**-64))
    if plan.loss in (SQUARED_ERROR, HUBER):
        curved = times_slope(kind, np.ones_like(p), z if of_logits(kind) else p) ** 2
        if plan.loss == HUBER:
            size = np.abs(p - y)
            curved = np.where(size < plan.huber_delta, curved, curved * (plan.huber_delta / size))
    return np.sqrt(curved * weight)


def jacobian(
    plan: Any, params: Array, activations: list[Array], kept: list[Array], p: Array, o: int, roots: Array
) -> Array:
    """Rows of J of output o (B, P): the gradients of its logit, times the root of its curvature; in float64.

    Of "cross_entropy", whose curvature is diag(p) - p p', rows are the gradients of root p_o (z_o - sum_k p_k z_k).
    """
    layers = layers_of(params, plan.sizes, plan.starts)
    delta = np.zeros_like(p)
    delta[:, o] = roots[:, o]
    if plan.loss == CROSS_ENTROPY:
        delta -= roots[:, o : o + 1] * p
    parts: list[Array] = []
    for layer in range(len(layers) - 1, -1, -1):
        a = activations[layer].astype(np.float64)
        biases = [delta.astype(np.float64)] if plan.biases else []
        parts = [(a[:, :, None] * delta[:, None, :]).reshape(len(a), -1), *biases, *parts]
        if layer > 0:
            delta = times_slope(plan.kinds[layer - 1], product(layers[layer][0].T, delta), kept[layer])
    return np.hstack(parts)


def bind(plan: Any, memory: Any, data: Array, validation: Array) -> Callable[[int], int]:
    """`run` as a function of the blocks alone."""
    if plan.optimizer in (LIMITED_BFGS, MARQUARDT):
        return Search(lbfgs if plan.optimizer == LIMITED_BFGS else marquardt, plan, memory, data, validation)
    return functools.partial(run, plan, memory, data, validation)


def bind_rows(plan: Any, memory: Any, saved: Any, rows: Array) -> Callable[[], int]:
    """`take_rows` as a function of nothing."""
    return functools.partial(take_rows, plan, memory, saved, rows)


def take_rows(plan: Any, memory: Any, saved: Any, rows: Array) -> int:
    """Check the rows (n, F) of one batch, and save the state before its update;  writes saved."""
    I, O = plan.sizes[0], plan.sizes[-1]
    targets = rows.reshape(plan.rows, -1)[:, I : I + O]
    if not (finite(rows) and finite(memory.params) and are_targets(plan.loss, targets)):
        return REFUSED
    for name in ("params", "first", "second", "totals"):
        getattr(saved, name)[:] = getattr(memory, name)
    return FINISHED


def are_targets(loss: int, y: Array) -> bool:
    """Whether all targets y (n, O) are such as the loss has."""
    if loss == BINARY_CROSS_ENTROPY:
        return bool(((y == 0) | (y == 1)).all())
    if loss == CROSS_ENTROPY:
        return bool((y >= 0).all() and (np.abs(y.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE).all())
    return loss != POISSON or bool((y >= 0).all())


def bind_predict(plan: Any, params: Array, *memory: Array) -> Callable[[Array, Array], int]:
    """`predict` as a function of data and predictions."""
    return lambda data, predictions: predict(plan, params, data, *memory, predictions)


def predict(plan: Any, params: Array, data: Array, *memory: Array) -> int:
    """Predictions for the data (n, I);  writes the last array, predictions (n, O)."""
    if not (finite(params) and finite(data)):
        return REFUSED
    *_, predictions = memory
    activations, _ = forward(plan, params, np.zeros(plan.layers), data, 0, 0)
    z, kind = activations[-1], plan.kinds[-1]
    predictions[:] = softmax(z) if kind == SOFTMAX else activation(kind, z)
    return FINISHED
