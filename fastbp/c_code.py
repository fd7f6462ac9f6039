"""A network as one file of C99 that computes what `Network.predict` does, and tests itself.

Sums are made in the order of the kernels, so that they have the same bits where multiply-adds are fused; exp, tanh, erf
and the like are those of the C library.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbp import checks, reference
from fastbp.choices import ACTIVATIONS, CLASSIFYING, OF_LOGITS
from fastbp.network import Network, normal
from fastbp.version import __version__

Array = NDArray[Any]
Scaler = tuple[Array, Array]
Labels = list[int] | list[str]

TESTS, BOUND = 5, 4  # rows that the self-test predicts, and the units in the last place that it allows
FACTORS = (1.0, 2.0**-10, 2.0**-100, 2.0**-1000, 0.0)  # of standard normal numbers, until predictions are finite
COLUMNS = {"float64": 4, "float32": 6}  # numbers in a line

# Below, `real` stands for the type of numbers, `~` for the ending of functions and literals in its precision, and name_
# and NAME_ for the name of the model.


class Form(NamedTuple):
    """An activation in C: the statement that writes f(z) over z = a[i], and the functions that it calls."""

    statement: str
    calls: tuple[str, ...] = ()


FORMS = {
    "identity": Form(""),
    "sigmoid": Form("a[i] = name_logistic(a[i]);", ("exp", "logistic")),
    "tanh": Form("a[i] = tanh~(a[i]);"),
    "relu": Form("a[i] = a[i] < 0 ? 0 : a[i];"),
    "leaky_relu": Form("a[i] = a[i] < 0 ? 0.01~ * a[i] : a[i];"),
    "elu": Form("a[i] = a[i] < 0 ? expm1~(a[i]) : a[i];"),
    "gelu": Form("a[i] *= 0.5~ + 0.5~ * erf~(0.7071067811865476~ * a[i]);"),
    "silu": Form("a[i] *= name_logistic(a[i]);", ("exp", "logistic")),
    "softplus": Form("a[i] = (a[i] < 0 ? 0 : a[i]) + log1p~(name_exp(-fabs~(a[i])));", ("exp",)),
    "exponential": Form("a[i] = name_exp(a[i]);", ("exp",)),
    "softmax": Form("", ("exp", "softmax")),
}
FUNCTIONS = {
    "exp": """
/* Beyond its range the value at its end: nothing overflows or vanishes. */
static real name_exp(real z)
{
    return exp~(z < LOWEST ? LOWEST : z > HIGHEST ? HIGHEST : z);
}
""",
    "logistic": """
static real name_logistic(real z)
{
    const real e = name_exp(-fabs~(z));
    return (z < 0 ? e : 1) / (1 + e);
}
""",
    "softmax": """
static void name_softmax(real *a, size_t n)
{
    real top = a[0], total = 0;
    size_t i;
    for (i = 1; i < n; i++)
        if (a[i] > top)
            top = a[i];
    for (i = 0; i < n; i++) {
        a[i] = name_exp(a[i] - top);
        total += a[i];
    }
    for (i = 0; i < n; i++)
        a[i] /= total;
}
""",
}
ELEMENTWISE = """
static void name_KIND(real *a, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++)
        STATEMENT
}
"""
# Where fma is not an instruction it is a call: a row of 32-64-64-10 took 18.5 us instead of 1.5, and 0.7 with -mfma.
LAYER = """
/* With one rounding where that is fast, sums have the bits of fastbp; gcc on x86-64 is to be told -mfma. */
#ifdef FMA_IS_FAST
#define NAME_FMA(a, b, c) fma~(a, b, c)
#else
#define NAME_FMA(a, b, c) ((a) * (b) + (c))
#endif

/* z[o] = b[o] + sum over i of w[i][o] x[i], each sum in the order of i; without biases b is NULL. */
static void name_layer(const real *w, const real *b, const real *x, size_t inputs, size_t outputs, real *z)
{
    size_t i, o;
    for (o = 0; o < outputs; o++)
        z[o] = b ? b[o] : 0;
    for (i = 0; i < inputs; i++) {
        const real x_i = x[i], *row = w + i * outputs;
        for (o = 0; o < outputs; o++)
            z[o] = NAME_FMA(row[o], x_i, z[o]);
    }
}
"""
SCALE = """
static void name_scale(const real *x, real *z)
{
    size_t i;
    for (i = 0; i < NAME_INPUTS; i++)
        z[i] = (x[i] - name_mean[i]) / name_deviation[i];
}
"""
OF_SEVERAL = """
void name_probabilities(const real *x, real *p, real *scratch)
{
    name_predict(x, p, scratch);
}

int name_class(const real *x, real *scratch)
{
    real *const y = scratch + PLACE;
    int o, best = 0;
    name_predict(x, y, scratch);
    for (o = 1; o < NAME_OUTPUTS; o++)
        if (y[o] > y[best])
            best = o;
    return best;
}
"""
OF_TWO = """
void name_probabilities(const real *x, real *p, real *scratch)
{
    name_predict(x, p + 1, scratch);
    p[0] = 1 - p[1];
}

int name_class(const real *x, real *scratch)
{
    real *const y = scratch + PLACE;
    name_predict(x, y, scratch);
    return y[0] > 0.5~;
}
"""
OF_LABELS = """
void name_probabilities(const real *x, real *p, real *scratch)
{
    name_predict(x, p, scratch);
}

void name_labels(const real *x, int *labels, real *scratch)
{
    real *const y = scratch + PLACE;
    int o;
    name_predict(x, y, scratch);
    for (o = 0; o < NAME_OUTPUTS; o++)
        labels[o] = y[o] > 0.5~;
}
"""
SELF_TEST = """
int main(void)
{
    static real y[NAME_OUTPUTS], scratch[NAME_SCRATCH];
    int t, o, failed = 0;
    double worst = 0;
    for (t = 0; t < TESTS; t++) {
        name_predict(name_test_x[t], y, scratch);
        for (o = 0; o < NAME_OUTPUTS; o++) {
            const double units = fabs((double)y[o] - (double)name_test_y[t][o]) / name_test_unit[t][o];
            if (!(units <= BOUND))
                failed++;
            if (units > worst)
                worst = units;
        }
    }
    printf("%d of %d predictions are off by more than BOUND units in the last place, the worst by %.2f\\n", failed,
           TESTS * NAME_OUTPUTS, worst);
    return failed > 0;
}
"""

# What a file declares, and how its comment explains it.
PREDICT = "void name_predict(const real *x, real *y, real *scratch);"
PROBABILITIES = "void name_probabilities(const real *x, real *p, real *scratch);"
ONE_CLASS = "int name_class(const real *x, real *scratch);"
ANY_LABELS = "void name_labels(const real *x, int *labels, real *scratch);"
USE = {
    PREDICT: "From x[NAME_INPUTS] the outputs of the network to y[NAME_OUTPUTS].",
    PROBABILITIES: "The probability of each class to p[NAME_CLASSES].",
    ONE_CLASS: "The number of the likeliest class, from 0 on.",
    ANY_LABELS: "Whether each label is likelier than not, 0 or 1, to labels[NAME_CLASSES].",
}


def source(network: Network, name: str, scaler: Scaler | None, labels: Labels | None) -> str:
    """Return the text of the file, in ASCII; name must be an identifier."""
    for layer, activation in enumerate(network.activations):
        checks.choice(f"network.activations[{layer}]", activation, FORMS, " for C")
    inputs, outputs = network.sizes[0], network.sizes[-1]
    classifies = network.loss in CLASSIFYING
    several = network.loss == "binary_cross_entropy" and outputs > 1
    single = network.params.dtype == np.float32

    # Layers write to two places of the scratch in turns, the first into the second one: scaled inputs lie in the first.
    widths = [inputs if scaler else 0, *network.sizes[1:-1], outputs if classifies else 0]
    even, odd = max(widths[0::2]), max(widths[1::2])
    words = {
        "name_": f"{name}_",
        "NAME_": f"{name.upper()}_",
        "real": "float" if single else "double",
        "~": "f" if single else "",
        "FMA_IS_FAST": "FP_FAST_FMAF" if single else "FP_FAST_FMA",
        "LOWEST": "-87.0f" if single else "-708.0",
        "HIGHEST": "88.0f" if single else "709.0",
        "PLACE": str(even if len(widths) % 2 == 0 else 0),
        "TESTS": str(TESTS),
        "BOUND": str(BOUND),
    }
    declared = [PREDICT]
    if classifies:
        declared += [PROBABILITIES, ANY_LABELS if several else ONE_CLASS]
    macros = {"INPUTS": inputs, "OUTPUTS": outputs}
    if classifies:
        macros["CLASSES"] = max(outputs, 2)
    macros["SCRATCH"] = max(even + odd, 1)

    parts = [_comment(network, scaler, declared, macros["SCRATCH"])]
    parts += ["\n#ifndef NAME_INPUTS\n", *(f"#define NAME_{macro} {value}\n" for macro, value in macros.items())]
    parts += ['\n#ifdef __cplusplus\nextern "C" {\n#endif\n', *(f"{line}\n" for line in declared)]
    if labels is not None:
        of_strings = isinstance(labels[0], str)
        of_labels = "const char *const" if of_strings else "const long long"
        parts += [f"extern {of_labels} name_classes[NAME_CLASSES]; /* their labels */\n"]
    parts += ["#ifdef __cplusplus\n}\n#endif\n#endif\n", "\n#ifndef NAME_DECLARATIONS\n#include <math.h>\n"]
    parts += ["#include <stddef.h>\n", "#ifdef NAME_SELFTEST\n#include <stdio.h>\n#endif\n"]
    head = _filled("".join(parts), words)

    body = []
    if labels is not None:
        literals = (_string(label) if isinstance(label, str) else _integer(label) for label in labels)
        body += [_filled(f"\n{of_labels} name_classes[NAME_CLASSES] = {{\n", words), *_lines(literals, 1), "};\n"]
    constants: list[tuple[str, Array]] = []
    if scaler is not None:
        constants += [("mean", scaler[0]), ("deviation", scaler[1])]
    for layer, (weights, biases) in enumerate(zip(network.weights, network.biases, strict=True)):
        constants += [(f"w{layer}", weights), *([(f"b{layer}", biases)] if network.bias else [])]
    for what, array in constants:
        body += _array(_filled(f"name_{what}[{array.size}]", words), array)
    used = {call for activation in network.activations for call in FORMS[activation].calls}
    code = [function for call, function in FUNCTIONS.items() if call in used]
    for activation in dict.fromkeys(network.activations):
        if FORMS[activation].statement:
            code.append(ELEMENTWISE.replace("KIND", activation).replace("STATEMENT", FORMS[activation].statement))
    code += [LAYER, *([SCALE] if scaler else []), _predict(network, scaler is not None, even)]
    if classifies:
        code.append(OF_LABELS if several else OF_SEVERAL if outputs > 1 else OF_TWO)
    body += [_filled("".join(code), words), _filled("\n#ifdef NAME_SELFTEST\n", words)]
    x, y, units = self_test(network, scaler)
    for what, array in {"x": x, "y": y, "unit": units}.items():
        body += _array(_filled(f"name_test_{what}[{TESTS}][{array.shape[1]}]", words), array)
    return "".join([head, *body, _filled(SELF_TEST, words), "#endif\n#endif\n"])


def _filled(template: str, words: dict[str, str]) -> str:
    """Return a template with all words in their places."""
    signs = "|".join(sign for sign in words if sign != "real")
    return re.sub(rf"{signs}|\breal\b", lambda match: words[match[0]], template)


def _comment(network: Network, scaler: Scaler | None, declared: list[str], scratch: int) -> str:
    """Return what the file says of itself."""
    dtype = network.params.dtype
    sizes, activations = "-".join(map(str, network.sizes)), ", ".join(network.activations)
    constants = dtype.itemsize * (network.params.size + (2 * network.sizes[0] if scaler else 0))
    products = sum(inputs * outputs for inputs, outputs in itertools.pairwise(network.sizes))
    uses = "\n".join(f"   {line}\n       {USE[line]}" for line in declared)
    scaled = "Inputs are given as they were measured: scaling is part of it.\n   " if scaler else ""
    return f"""\
/* A neural network, written by fastbp {__version__}: layers {sizes}, activations {activations}.

   constants      {constants:,} bytes
   scratch        {dtype.itemsize * scratch:,} bytes, NAME_SCRATCH numbers
   multiply-adds  {products:,}

{uses}

   {scaled}Nothing is allocated and nothing kept: threads may call at once, each with a scratch of its own, whose
   content does not matter. x is not written to; x, the results and scratch must not overlap.

   It is C99 and needs nothing but the mathematical library. With -DNAME_SELFTEST and -lm it becomes a program that
   compares {TESTS} rows with what fastbp predicts, and returns 0 if they agree. A file of C or C++ that defines
   NAME_DECLARATIONS before it includes this one gets the declarations alone. */
"""


def _predict(network: Network, scaled: bool, odd: int) -> str:
    """Return the function that goes through the layers; the second place of the scratch begins at `odd`."""
    lines, a, last = [], "x", len(network.weights) - 1
    if scaled:
        lines.append("name_scale(x, scratch);")
        a = "scratch"
    for layer, (weights, kind) in enumerate(zip(network.weights, network.activations, strict=True)):
        inputs, outputs = weights.shape
        z = "y" if layer == last else "scratch" if layer % 2 or not odd else f"scratch + {odd}"
        biases = f"name_b{layer}" if network.bias else "NULL"
        lines.append(f"name_layer(name_w{layer}, {biases}, {a}, {inputs}, {outputs}, {z});")
        if kind != "identity":
            lines.append(f"name_{kind}({z}, {outputs});")
        a = z
    if "scratch" not in " ".join(lines):
        lines.append("(void)scratch;")
    body = "".join(f"    {line}\n" for line in lines)
    return f"\nvoid name_predict(const real *x, real *y, real *scratch)\n{{\n{body}}}\n"


# --- literals -------------------------------------------------------------------------------------------------------


def _array(declarator: str, array: Array) -> Iterator[str]:
    """Yield the definition of an array of constants."""
    single = array.dtype == np.float32
    yield f"\nstatic const {'float' if single else 'double'} {declarator} = {{\n"
    rows = array if "][" in declarator else [array.ravel()]
    for row in rows:
        yield from (["{\n"] if array is rows else [])
        yield from _lines((_number(value, "f" * single) for value in row.tolist()), COLUMNS[array.dtype.name])
        yield from (["},\n"] if array is rows else [])
    yield "};\n"


def _lines(literals: Iterable[str], columns: int) -> Iterator[str]:
    literals = iter(literals)
    while line := ", ".join(itertools.islice(literals, columns)):
        yield f"    {line},\n"


def _number(value: float, suffix: str) -> str:
    """Return a hexadecimal literal, which every C99 compiler must read exactly.

    >>> _number(-0.15625, "f"), _number(-0.0, "")
    ('-0x1.4p-3f', '-0x0p+0')
    """
    digits, exponent = value.hex().split("p")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}p{exponent}{suffix}"


def _integer(value: int) -> str:
    return f"{value}LL" if value > -(2**63) else f"({value + 1}LL - 1)"  # C has no literals below 0


def _string(value: str) -> str:
    r"""Return a literal of the bytes in UTF-8; question marks would make trigraphs.

    >>> print(_string('a "b"?'), _string("\n1"))
    "a \"b\"\?" "\0121"
    """
    escaped = (f"\\{chr(c)}" if chr(c) in '"\\?' else chr(c) if 32 <= c < 127 else f"\\{c:03o}" for c in value.encode())
    return f'"{"".join(escaped)}"'


# --- the self-test --------------------------------------------------------------------------------------------------


def self_test(network: Network, scaler: Scaler | None) -> tuple[Array, Array, Array]:
    """Return rows (TESTS, inputs), what fastbp predicts (TESTS, outputs), and the units in its last place."""
    dtype = network.params.dtype
    drawn = normal(np.random.RandomState(0).random_sample((TESTS, network.sizes[0])))
    for factor in FACTORS:
        with np.errstate(over="ignore", invalid="ignore"):
            x = z = (factor * (np.round(16 * drawn) / 16)).astype(dtype)  # short literals
            if scaler is not None:
                mean, scale = scaler
                x = mean + scale * z
                x = np.where(np.isfinite(x), x, mean)
                z = (x - mean) / scale
            y = network.predict(z)
        units = np.array([units_of(network, row) for row in z])
        if np.isfinite(y).all() and np.isfinite(units).all():
            return x, y, units
    raise checks.DataError("must have parameters with which predictions are finite, got some that overflow", "network")


def units_of(network: Network, x: Array) -> Array:
    """Units in the last place of the outputs (outputs,) for a row x (inputs,): of all numbers that lead to them.

    A sum is rounded with each of its terms, and an activation once; each of these is a unit in the last place of its
    own number, and moves an output by the derivative. The unit of the output is the root of the sum of their squares,
    since roundings go either way. To a single layer without activation it is that of its partial sums.
    """
    layers, a = [], x.astype(np.float64)
    with np.errstate(all="ignore"):
        for weights, biases, name in zip(network.weights, network.biases, network.activations, strict=True):
            terms = a[:, None] * weights
            partial = terms.cumsum(axis=0) + (biases if network.bias else 0)
            z, rounded = partial[-1], (partial**2 + terms**2).sum(axis=0)
            if name == "softmax":
                rounded = rounded + (z - z.max()) ** 2
                a = reference.softmax(z[None, :])[0]
            else:
                a = reference.activation(ACTIVATIONS[name].code, z)
            layers.append((weights, name, z, a, rounded))
        squares, jacobian = np.zeros(a.size), np.eye(a.size)
        for weights, name, z, a, rounded in reversed(layers):
            # gelu multiplies z by a share of 1/2, of which little may remain
            squares = squares + _products(jacobian**2, (z if name == "gelu" else a) ** 2)
            if name == "softmax":
                jacobian = jacobian * a - (jacobian @ a)[:, None] * a
            else:
                code = ACTIVATIONS[name].code
                slope = reference.times_slope(code, np.ones_like(z), z if code in OF_LOGITS else a)
                jacobian = jacobian * slope
            squares = squares + _products(jacobian**2, rounded)
            jacobian = jacobian @ weights.T
        units = np.finfo(network.params.dtype).eps * np.sqrt(squares)
    return np.maximum(units, float(np.finfo(network.params.dtype).tiny))


def _products(factors: Array, squares: Array) -> Array:
    """Sum of the products by rows, where no slope moves nothing, however large the number."""
    return np.where(factors == 0, 0, factors * squares).sum(axis=1)
