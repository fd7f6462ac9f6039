"""Register tiles as Numba variables: the only file that speaks LLVM.

A *vector* is 64 bytes: 8 float64 or 16 float32 *lanes*, on every CPU; LLVM splits it where registers are narrower.
A `Tile` is a few rows of one or two vectors that live in registers, so a kernel can be written in Python and still
choose what stays in registers. A pointer made by `at(array, offset)` is one bare machine address: it is what tiles
are loaded from and stored to.

Every multiplication that is followed by an addition is one explicit fused multiply-add, and nothing may be reordered:
the same inputs give the same bits on every CPU that has one. exp, log, tanh and erf are polynomials of our own for the
same reason, and because Numba would call the scalar ones of the C library lane by lane (4 to 20 ns an element).
"""

# mypy: allow-subclassing-any
# Numba's classes are untyped.

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.core.imputils import lower_getattr_generic
from numba.core.registry import cpu_target
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, lower_builtin, register_model, type_callable
from numpy.typing import NDArray

VECTOR_BITS = 512
INT32, INT64, BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


# --- the machine ----------------------------------------------------------------------------------------------------


def probe() -> str:
    """Assembly of one fused multiply-add of 16 float32, for the CPU that Numba generates code for.

    Asking the code generator sees what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES imply, which no list of names would.
    """
    vector = "<16 x float>"
    module = llvmlite.binding.parse_assembly(
        f"declare {vector} @llvm.fma.v16f32({vector}, {vector}, {vector})\n"
        f"define {vector} @probe({vector} %a, {vector} %b, {vector} %c) {{\n"
        f"  %r = call {vector} @llvm.fma.v16f32({vector} %a, {vector} %b, {vector} %c)\n"
        f"  ret {vector} %r\n}}"
    )
    return str(cpu_target.target_context.codegen()._tm.emit_assembly(module))


_ASSEMBLY = probe()
FUSED = "fmaf" not in _ASSEMBLY  # without the instruction LLVM calls the C library's fmaf
REGISTER_BITS = 512 if "zmm" in _ASSEMBLY else 256 if "ymm" in _ASSEMBLY else 128

# Rows of a tile that holds the sums of a matrix product, and whether they are two vectors wide. AVX-512 has 32
# registers of one vector; AVX2 16 of half a vector; NEON 32 of a quarter. The shape never changes a result. A tile with
# a network in each lane has several rows and columns of vectors.
TILE_ROWS, PAIRED = (8, True) if REGISTER_BITS == 512 else (4, False)
MATRIX_ROWS = MATRIX_COLUMNS = 4 if REGISTER_BITS == 512 else 2


# --- types ----------------------------------------------------------------------------------------------------------


class Tile(types.Type):
    """`rows` rows of `lanes` elements each."""

    def __init__(self, dtype: types.Type, rows: int, lanes: int) -> None:
        self.dtype, self.rows, self.lanes = dtype, rows, lanes
        super().__init__(f"Tile({dtype}, {rows}, {lanes})")


@register_model(Tile)
class TileModel(PrimitiveModel):
    """A tile is an LLVM array of vectors; LLVM keeps each row in registers."""

    def __init__(self, manager: Any, tile: Tile) -> None:
        vector = ir.VectorType(manager.lookup(tile.dtype).get_value_type(), tile.lanes)
        super().__init__(manager, tile, ir.ArrayType(vector, tile.rows))


def _tile(pointer: Any, rows: Any, vectors: Any) -> Tile:
    return Tile(pointer.dtype, rows.literal_value, vectors.literal_value * (VECTOR_BITS // pointer.dtype.bitwidth))


# --- arithmetic on vectors ------------------------------------------------------------------------------------------


class Lanes:
    """A vector, or a number, while code is generated: `a * b` emits the multiplication.

    Python numbers stand for constants.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value, self.type = builder, value, value.type

    def constant(self, number: float) -> Any:
        """The number, in every lane."""
        if not isinstance(self.type, ir.VectorType):
            return ir.Constant(self.type, float(number))
        return ir.Constant(self.type, [ir.Constant(self.type.element, number)] * self.type.count)

    def _emit(self, instruction: str, *operands: Any) -> Lanes:
        values = [x.value if isinstance(x, Lanes) else self.constant(x) for x in operands]
        return Lanes(self.builder, getattr(self.builder, instruction)(*values))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._emit("fadd", self, other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._emit("fsub", self, other)

    def __rsub__(self, other: float) -> Lanes:
        return self._emit("fsub", other, self)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._emit("fmul", self, other)

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self._emit("fdiv", self, other)

    def __rtruediv__(self, other: float) -> Lanes:
        return self._emit("fdiv", other, self)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.builder.fneg(self.value))

    def less(self, other: Lanes | float, yes: Lanes | float, no: Lanes | float) -> Lanes:
        """`yes` where self < other, elsewhere, also where either is NaN, `no`."""
        other, yes, no = (x.value if isinstance(x, Lanes) else self.constant(x) for x in (other, yes, no))
        return Lanes(self.builder, self.builder.select(self.builder.fcmp_ordered("<", self.value, other), yes, no))

    @property
    def width(self) -> int:
        """Bits of an element."""
        return 32 if isinstance(self.type.element, ir.FloatType) else 64

    def bits(self) -> Any:
        """The same bits as integers."""
        return self.builder.bitcast(self.value, ir.VectorType(ir.IntType(self.width), self.type.count))

    def from_bits(self, integers: Any) -> Lanes:
        """The vector that has these bits."""
        return Lanes(self.builder, self.builder.bitcast(integers, self.type))

    def integer(self, number: int) -> Any:
        """The integer, as wide as an element, in every lane."""
        return ir.Constant(ir.VectorType(ir.IntType(self.width), self.type.count), [number] * self.type.count)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an intrinsic function of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name=name)
    return builder.call(function, arguments)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    if not FUSED:
        return builder.fadd(builder.fmul(a, b), c)
    name = f"llvm.fma.v{a.type.count}f{32 if isinstance(a.type.element, ir.FloatType) else 64}"
    return _call(builder, name, a.type, a, b, c)


def fma(a: Lanes, b: Lanes | float, c: Lanes | float) -> Lanes:
    """a * b + c, rounded once."""
    b, c = (x.value if isinstance(x, Lanes) else a.constant(x) for x in (b, c))
    return Lanes(a.builder, _fused(a.builder, a.value, b, c))


def polynomial(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """The sum of coefficients[i] x^i, in pairs (Estrin): the chain of dependent steps is log2 of their number."""
    terms: list[Any] = list(coefficients)
    power = x
    while len(terms) > 1:
        pairs = [fma(power, terms[i + 1], terms[i]) for i in range(0, len(terms) - 1, 2)]
        terms = pairs + terms[len(pairs) * 2 :]
        power = power * power
    return terms[0]


# --- elementary functions -------------------------------------------------------------------------------------------
# Minimax polynomials (Remez exchange in 60 digits), a row of constants for each precision. No function overflows or
# gives a subnormal number for a normal one; NaN gives NaN. At most 2 units in the last place: tests/test_simd.py.


class _Float64:
    mantissa, one, least = 52, 0x3FF0000000000000, 2.2250738585072014e-308
    exp_range = (-708.0, 709.0)
    tanh_saturates, erf_saturates = 20.0, 5.93
    ln2_high, ln2_low = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # n * ln2_high is exact
    # (exp(r) - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]
    exp_terms = (
        0.5000000000000001, 0.16666666666666674, 0.04166666666662405, 0.008333333333322191, 0.0013888888917249532,
        0.00019841269886642314, 2.4801521241144826e-05, 2.755724227864308e-06, 2.7620114214227137e-07,
        2.5110071767914694e-08,
    )  # fmt: skip
    # (log((1 + s) / (1 - s)) / s - 2) / s^2 as a polynomial in s^2, for (1 + s) / (1 - s) in [sqrt(1/2), sqrt(2)]
    log_terms = (
        0.6666666666666666, 0.40000000000000907, 0.2857142857078543, 0.2222222239571206, 0.18181795223867447,
        0.1538626184261057, 0.132681916998536, 0.13092602699406006,
    )  # fmt: skip
    # log(erfc(-x)) / x - 1 on [-erf_saturates, 0]
    erf_terms = (
        0.12837916709551256, -0.6366197723675836, 0.10277260330178879, 0.019128447005070815, -0.0002091946948381226,
        -0.00169620638571181, -0.0005901255526863574, -2.5878603309545685e-05, 6.449186414376183e-05,
        2.9724054356509618e-05, 3.407280721538154e-06, -2.8351188164177556e-06, -1.7415243934686301e-06,
        -3.3634535746843056e-07, 1.3719473693075466e-07, 1.4176847637700556e-07, 6.573617117037325e-08,
        2.0963530053184422e-08, 4.997932060109452e-09, 9.082689985991062e-10, 1.2484819676123134e-10,
        1.2611829664639318e-11, 8.846239030050917e-13, 3.8508552791731854e-14, 7.834941973099721e-16,
    )  # fmt: skip


class _Float32:
    mantissa, one, least = 23, 0x3F800000, 1.1754943508222875e-38
    exp_range = (-87.0, 88.0)
    tanh_saturates, erf_saturates = 10.0, 3.92
    ln2_high, ln2_low = 0.693359375, -2.12194440e-4
    exp_terms = (
        0.500000001348871, 0.1666666675644083, 0.04166646473538701, 0.008333286025062859, 0.0013933669912857395,
        0.00019907573429032082,
    )  # fmt: skip
    log_terms = (0.6666666655149466, 0.40000123993962194, 0.2855059708362547, 0.23336178105914954)
    erf_terms = (
        0.12837917161117685, -0.636619381942051, 0.10277783098097962, 0.01915306654190903, -0.0001603898009435622,
        -0.001667020073918677, -0.0006328323420014388, -0.00011763991085585498, -9.256105950518714e-06,
    )  # fmt: skip


def _constants(x: Lanes) -> type[_Float64] | type[_Float32]:
    return _Float32 if x.width == 32 else _Float64


def _minus_absolute(x: Lanes) -> Lanes:
    """-|x|."""
    return x.from_bits(x.builder.or_(x.bits(), x.integer(1 << (x.width - 1))))


def _copy_sign(x: Lanes, sign: Lanes) -> Lanes:
    """|x| with the sign of the other."""
    mask = x.integer(1 << (x.width - 1))
    return x.from_bits(x.builder.or_((-_minus_absolute(x)).bits(), x.builder.and_(sign.bits(), mask)))


def _reduce(x: Lanes) -> tuple[Lanes, ...]:
    """2^n, r, (exp(r) - 1 - r) / r^2, x - n ln2_high and n, with x = n ln 2 + r, n whole and |r| <= ln 2 / 2."""
    k, builder = _constants(x), x.builder
    # Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits: neither a rounding nor a
    # conversion instruction, which AVX2 lacks for float64.
    shifter = 1.5 * 2.0**k.mantissa
    shifted = fma(x, 1.4426950408889634, shifter)
    n = shifted - shifter
    high = fma(n, -k.ln2_high, x)
    r = fma(n, -k.ln2_low, high)
    scale = builder.add(builder.shl(shifted.bits(), x.integer(k.mantissa)), x.integer(k.one))
    return x.from_bits(scale), r, polynomial(r, k.exp_terms), high, n


def _exp_in_range(x: Lanes) -> Lanes:
    scale, r, terms, *_ = _reduce(x)
    return (1.0 + fma(r * r, terms, r)) * scale


def _expm1_of_sum(x: Lanes, rest: Lanes | float) -> Lanes:
    """e^(x + rest) - 1 but for the sign of zero, for x in range and a rest below a unit in its last place."""
    scale, r, terms, high, n = _reduce(x)
    # First what is exact, the small terms last. Summed as in tanh 2.5 units in the last place instead of 1.7, with r
    # for high 2.1.
    low = fma(n, -_constants(x).ln2_low, rest)
    return fma(scale, fma(r * r, terms, low), fma(scale, high, scale - 1.0))


def _clamp(x: Lanes) -> Lanes:
    """x, or the nearer end of exp_range."""
    low, high = _constants(x).exp_range
    x = x.less(low, low, x)
    return (-x).less(-high, high, x)


def _exp(x: Lanes) -> Lanes:
    """e^x; beyond exp_range the value at its end."""
    return _exp_in_range(_clamp(x))


def _expm1(x: Lanes) -> Lanes:
    """e^x - 1, exact in its leading digits also for small x; beyond exp_range the value at its end."""
    return _copy_sign(_expm1_of_sum(_clamp(x), 0.0), x)


def _sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + e^-x), or e^x / (1 + e^x) below zero; never below e^-708 (float64) or e^-87 (float32)."""
    low = _constants(x).exp_range[0]
    size = _minus_absolute(x)
    e = _exp_in_range(size.less(low, low, size))
    dividend = x.less(0.0, e, 1.0)
    quotient = dividend / (1.0 + e)
    # One step of division by hand for what rounding 1 + e lost; 1 - e / 2 is near enough to 1 / (1 + e). Without it
    # 2.3 units in the last place instead of 1.5, and a tenth less time.
    rest = fma(-quotient, e, dividend - quotient)
    return fma(rest, fma(e, -0.5, 1.0), quotient)


def _tanh(x: Lanes) -> Lanes:
    """-e / (2 + e) with e = exp(-2 |x|) - 1, and the sign of x: no cancellation near zero, no case."""
    k = _constants(x)
    size = _minus_absolute(x)
    scale, r, terms, *_ = _reduce(2.0 * size.less(-k.tanh_saturates, -k.tanh_saturates, size))
    expm1 = fma(r * r, terms, r)
    e = fma(scale, expm1, scale - 1.0)
    lost = fma(scale, expm1, (scale - 1.0) - e)
    quotient = -e / (2.0 + e)
    # One step of division by hand for what rounding e, 2 + e and the quotient lost; 1 / (2 + e) = (1 + tanh) / 2.
    # Without it 2.4 units in the last place instead of 1.7.
    rest = fma(-quotient, e, fma(quotient, -2.0, -e))
    above = 1.0 + quotient
    return _copy_sign(fma(fma(-lost, above, rest), 0.5 * above, quotient), x)


def _erf(x: Lanes) -> Lanes:
    """1 - exp(y) with y = log(erfc(|x|)), and the sign of x: y is one polynomial from zero to where erf is 1."""
    k = _constants(x)
    size = _minus_absolute(x)
    size = size.less(-k.erf_saturates, -k.erf_saturates, size)
    factor = polynomial(size, k.erf_terms)
    y = fma(size, factor, size)
    # Without what rounding y lost 2.2 units in the last place instead of 1.8.
    return _copy_sign(_expm1_of_sum(y, fma(size, factor, size - y)), x)


def _log_of_sum(x: Lanes, rest: Lanes | float) -> Lanes:
    """log(x + rest) for a normal x > 0 and a rest below half a unit in its last place."""
    k, builder = _constants(x), x.builder
    # x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)): less the bits of sqrt(1/2), the exponent steps there
    root_half = 0x3FE6A09E667F3BCD if x.width == 64 else 0x3F3504F3
    above = builder.sub(x.bits(), x.integer(root_half))
    exponent = builder.ashr(above, x.integer(k.mantissa))
    mantissa = builder.sub(x.bits(), builder.shl(exponent, x.integer(k.mantissa)))
    f = x.from_bits(mantissa) - 1.0
    # an integer below 2^(mantissa - 1) to a float by the same shifter as in exp
    shifter = 1.5 * 2.0**k.mantissa
    shifter_bits = x.builder.bitcast(x.constant(shifter), above.type)
    n = x.from_bits(builder.add(exponent, shifter_bits)) - shifter
    # log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))), s = f / (2 + f): the large terms stay exact
    s = f / (f + 2.0)
    half_square = 0.5 * f * f
    z = s * s
    tail = fma(s, fma(z, polynomial(z, k.log_terms), half_square), fma(n, k.ln2_low, rest))
    return fma(n, k.ln2_high, f - (half_square - tail))


def _log_special(x: Lanes, result: Lanes) -> Lanes:
    """The result, but log's own at 0 (-inf), below 0 (NaN), at infinity and NaN."""
    infinity, nan = float("inf"), float("nan")
    result = x.less(_constants(x).least, -infinity, result)
    result = x.less(0.0, nan, result)
    return x.less(infinity, result, x)


def _log(x: Lanes) -> Lanes:
    """log x; subnormal numbers count as 0."""
    return _log_special(x, _log_of_sum(x, 0.0))


def _log1p(x: Lanes) -> Lanes:
    """log(1 + x), exact in its leading digits also for small x."""
    u = 1.0 + x
    lost = x - (u - 1.0)  # what rounding 1 + x lost; its share of log(u) is lost / u
    result = _log_special(u, _log_of_sum(u, lost / u))
    tiny = 2.0 ** -(_constants(x).mantissa + 1)
    return (-_minus_absolute(x)).less(tiny, x, result)  # log1p(x) rounds to x there, and -0.0 keeps its sign


# --- lane by lane on tiles ------------------------------------------------------------------------------------------


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(vector, scalar, INT32(0))
    return builder.shuffle_vector(first, vector, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def _elementwise(function: Callable[..., Lanes], context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Generate `function` for each row; scalars and tiles of one row stand for themselves in every row."""
    tile = signature.return_type
    result = ir.Constant(context.get_value_type(tile), ir.Undefined)
    for row in range(tile.rows):
        operands = [
            builder.extract_value(value, row if kind.rows > 1 else 0)
            if isinstance(kind, Tile)
            else _splat(builder, context.cast(builder, value, kind, tile.dtype), tile.lanes)
            for value, kind in zip(arguments, signature.args, strict=True)
        ]
        result = builder.insert_value(result, function(*(Lanes(builder, x) for x in operands)).value, row)
    return result


def _on_numbers(function: Callable[..., Lanes], context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Generate `function` for numbers of one kind, where it needs none of what vectors alone have."""
    wanted = signature.return_type
    values = [context.cast(builder, x, kind, wanted) for x, kind in zip(arguments, signature.args, strict=True)]
    return function(*(Lanes(builder, x) for x in values)).value


def _intrinsic(function: Callable[..., Lanes]) -> Any:
    """The function as an intrinsic of tiles and numbers; of numbers alone, if it can be, it makes a number."""
    arity = function.__code__.co_argcount

    def define(*operands: Any) -> Any:
        tiles = [x for x in operands if isinstance(x, Tile)]
        if not tiles:
            kind = max((x for x in operands if isinstance(x, types.Float)), key=lambda x: x.bitwidth)
            return kind(*operands), lambda *generation: _on_numbers(function, *generation)
        tile = max(tiles, key=lambda x: x.rows)
        return tile(*operands), lambda *generation: _elementwise(function, *generation)

    # Numba reads the number of arguments off the signature.
    one = lambda typingctx, x: define(x)  # noqa: E731
    two = lambda typingctx, x, y: define(x, y)  # noqa: E731
    three = lambda typingctx, x, y, z: define(x, y, z)  # noqa: E731
    four = lambda typingctx, x, y, z, w: define(x, y, z, w)  # noqa: E731
    definition = (one, two, three, four)[arity - 1]
    definition.__name__, definition.__doc__ = function.__name__.lstrip("_"), function.__doc__
    return intrinsic(definition)


exp, log, log1p = _intrinsic(_exp), _intrinsic(_log), _intrinsic(_log1p)
expm1, erf = _intrinsic(_expm1), _intrinsic(_erf)
tanh, sigmoid = _intrinsic(_tanh), _intrinsic(_sigmoid)
multiply_add = _intrinsic(fma)
where_less = _intrinsic(Lanes.less)


@_intrinsic
def absolute(x: Lanes) -> Lanes:
    """|x|."""
    return -_minus_absolute(x)


@_intrinsic
def sqrt(x: Lanes) -> Lanes:
    """The square root of x."""
    kind = f"v{x.type.count}" if isinstance(x.type, ir.VectorType) else ""
    element = x.type.element if kind else x.type
    name = f"llvm.sqrt.{kind}f{32 if isinstance(element, ir.FloatType) else 64}"
    return Lanes(x.builder, _call(x.builder, name, x.type, x.value))


def _operator(symbol: Callable[..., Any]) -> None:
    @type_callable(symbol)
    def typing(context):  # type: ignore[no-untyped-def]
        def typer(x, y):  # type: ignore[no-untyped-def]
            tiles = [t for t in (x, y) if isinstance(t, Tile)]
            return max(tiles, key=lambda t: t.rows) if tiles else None

        return typer

    def lower(*generation: Any) -> Any:
        return _elementwise(symbol, *generation)

    for operands in ((Tile, Tile), (Tile, types.Number), (types.Number, Tile)):
        lower_builtin(symbol, *operands)(lower)


for _symbol in (operator.add, operator.sub, operator.mul, operator.truediv):
    _operator(_symbol)


# --- random numbers -------------------------------------------------------------------------------------------------


def _splitmix64(builder: Any, counter: Any, constant: Callable[[int], Any]) -> Any:
    """64 random bits from a counter: Steele, Lea and Flood, OOPSLA 2014, figure 17."""
    z = builder.mul(counter, constant(0x9E3779B97F4A7C15))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = builder.mul(builder.xor(z, builder.lshr(z, constant(shift))), constant(factor))
    return builder.xor(z, builder.lshr(z, constant(31)))


@intrinsic
def random_bits(typingctx, counter):  # type: ignore[no-untyped-def]
    """64 random bits from a counter, an uint64: splitmix64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splitmix64(builder, arguments[0], arguments[0].type)

    return types.uint64(types.uint64), generate


def _uniform(context: Any, builder: Any, tile: Tile, counters: Any) -> Any:
    """Tile of one row of random numbers in [0, 1) from a vector of counters."""
    integers = counters.type
    bits = _splitmix64(builder, counters, lambda number: ir.Constant(integers, [number] * tile.lanes))
    # The upper bits are the mantissa of a number in [1, 2): no conversion, which AVX2 lacks for 64 bits.
    one = Lanes(builder, ir.Constant(ir.VectorType(context.get_value_type(tile.dtype), tile.lanes), [1.0] * tile.lanes))
    shift = 64 - _constants(one).mantissa
    mantissa = builder.lshr(bits, ir.Constant(integers, [shift] * tile.lanes))
    mantissa = mantissa if one.width == 64 else builder.trunc(mantissa, one.bits().type)
    number = one.from_bits(builder.or_(mantissa, one.bits())) - 1.0
    return builder.insert_value(ir.Constant(context.get_value_type(tile), ir.Undefined), number.value, 0)


@intrinsic
def uniform(typingctx, pointer, counter, stride):  # type: ignore[no-untyped-def]
    """Vector of random numbers in [0, 1), of the pointer's type, lane k from the random bits of counter + k stride."""
    tile = Tile(pointer.dtype, 1, VECTOR_BITS // pointer.dtype.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integers = ir.VectorType(ir.IntType(64), tile.lanes)
        counters, strides = (_splat(builder, argument, tile.lanes) for argument in arguments[1:])
        counters = builder.add(counters, builder.mul(strides, ir.Constant(integers, list(range(tile.lanes)))))
        return _uniform(context, builder, tile, counters)

    return tile(pointer, types.uint64, types.uint64), generate


@intrinsic
def uniform_of(typingctx, pointer, keys, counter):  # type: ignore[no-untyped-def]
    """Vector of random numbers in [0, 1), of the pointer's type, lane k from the random bits of keys[k] + counter."""
    tile = Tile(pointer.dtype, 1, VECTOR_BITS // pointer.dtype.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, keys, counter = arguments
        integers = ir.VectorType(INT64, tile.lanes)
        counters = builder.load(builder.bitcast(keys, integers.as_pointer()))
        counters.align = 8
        return _uniform(context, builder, tile, builder.add(counters, _splat(builder, counter, tile.lanes)))

    return tile(pointer, types.CPointer(types.int64), types.uint64), generate


# --- subnormal numbers ----------------------------------------------------------------------------------------------
# While a kernel runs, numbers below the least normal one (1.2e-38 in float32, 2.2e-308 in float64) count as 0, both
# read and computed: dying deltas would else make some CPUs seven times slower. Each instruction obeys the rule by
# itself, so that the bits stay the same whatever the width of the vectors: SSE, AVX2 and AVX-512 all read MXCSR, and
# round before they compare with the least normal number. NEON reads FPCR and compares before it rounds: a result that
# would round up to the least normal number is 0 there, the one difference. Where no control word is known, kernels keep
# such numbers, which costs time alone: nothing relies on the rule, and only what is computed from them has other bits.

MACHINE = llvmlite.binding.get_process_triple().split("-")[0]
FLUSHING_BITS = {"x86_64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}.get(MACHINE)  # of MXCSR, or of FPCR


def _control_word(builder: Any) -> Any:
    if MACHINE == "x86_64":
        place = cgutils.alloca_once(builder, INT32)
        _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(place, BYTES))
        return builder.load(place)
    return _call(builder, "llvm.aarch64.get.fpcr", INT64)


def _set_control_word(builder: Any, word: Any) -> None:
    if MACHINE == "x86_64":
        place = cgutils.alloca_once(builder, INT32)
        builder.store(word, place)
        _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(place, BYTES))
    else:
        _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), word)


@intrinsic
def flush_subnormals(typingctx):  # type: ignore[no-untyped-def]
    """Have subnormal numbers count as 0 in this thread;  returns the control word as it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if FLUSHING_BITS is None:
            return INT64(0)
        word = _control_word(builder)
        _set_control_word(builder, builder.or_(word, word.type(FLUSHING_BITS)))
        return builder.zext(word, INT64) if word.type == INT32 else word

    return types.uint64(), generate


@intrinsic
def put_back(typingctx, word):  # type: ignore[no-untyped-def]
    """Give this thread back the control word that `flush_subnormals` returned."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if FLUSHING_BITS is not None:
            (word,) = arguments
            _set_control_word(builder, builder.trunc(word, INT32) if MACHINE == "x86_64" else word)
        return context.get_dummy_value()

    return types.none(types.uint64), generate


# --- threads --------------------------------------------------------------------------------------------------------
# All of them sequentially consistent: what a thread wrote before is seen by whoever sees the number it wrote.


def _number_at(builder: Any, arguments: Any) -> Any:
    return builder.gep(arguments[0], [arguments[1]])


@intrinsic
def atomic_add(typingctx, numbers, place, number):  # type: ignore[no-untyped-def]
    """numbers[place] += number, as one step for all threads;  returns what was there before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _number_at(builder, arguments), arguments[2], "seq_cst")

    return types.int64(types.CPointer(types.int64), types.intp, types.int64), generate


@intrinsic
def atomic_load(typingctx, numbers, place):  # type: ignore[no-untyped-def]
    """numbers[place], which other threads write."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_number_at(builder, arguments), "seq_cst", 8)

    return types.int64(types.CPointer(types.int64), types.intp), generate


@intrinsic
def atomic_store(typingctx, numbers, place, number):  # type: ignore[no-untyped-def]
    """numbers[place] = number, which other threads read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _number_at(builder, arguments), "seq_cst", 8)
        return context.get_dummy_value()

    return types.none(types.CPointer(types.int64), types.intp, types.int64), generate


@intrinsic
def pause(typingctx):  # type: ignore[no-untyped-def]
    """Tell the core that a loop waits, where there is such an instruction: it leaves its caches to the other thread."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if MACHINE == "x86_64":
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def give_way(typingctx):  # type: ignore[no-untyped-def]
    """Let the system run another thread on this core, where it has sched_yield; Windows has not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            _call(builder, "sched_yield", INT32)
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def nap(typingctx, microseconds):  # type: ignore[no-untyped-def]
    """Sleep so long and some 50 us more, where the system has usleep; Windows has not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            _call(builder, "usleep", INT32, builder.trunc(arguments[0], INT32))
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic
def core(typingctx):  # type: ignore[no-untyped-def]
    """Number of the core that runs this thread, from 1 on; 0 where the system does not tell."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform != "linux":
            return INT64(0)
        return builder.add(builder.sext(_call(builder, "sched_getcpu", INT32), INT64), INT64(1))

    return types.int64(), generate


@intrinsic
def ticks(typingctx):  # type: ignore[no-untyped-def]
    """Ticks of a steady clock, a few to a nanosecond on x86; 0 where none can be read by one instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.readcyclecounter", INT64) if MACHINE == "x86_64" else INT64(0)

    return types.int64(), generate


# --- bundles --------------------------------------------------------------------------------------------------------


class Bundle(types.Type):
    """Address of the fields of a NamedTuple, one after the other, each of 8 bytes: numbers, and addresses of arrays."""

    def __init__(self, kind: type, precision: types.Type, full: bool, few: bool) -> None:
        self.full, self.few = full, few
        kinds = {
            int: types.int64,
            float: types.float64,
            bool: types.boolean,
            NDArray[np.int64]: types.CPointer(types.int64),
            NDArray[np.float64]: types.CPointer(types.float64),
            NDArray[Any]: types.CPointer(precision),
        }
        self.fields = {name: kinds[hint] for name, hint in get_type_hints(kind).items()}
        super().__init__(f"Bundle({kind.__name__}, {precision}, {full}, {few})")


@register_model(Bundle)
class BundleModel(PrimitiveModel):
    """A bundle is an address."""

    def __init__(self, manager: Any, bundle: Bundle) -> None:
        super().__init__(manager, bundle, INT64.as_pointer())


@infer_getattr
class BundleAttributes(AttributeTemplate):
    """The types of the fields."""

    key = Bundle

    def generic_resolve(self, bundle: Bundle, field: str) -> types.Type | None:
        """Return the type of the field of this name, None if there is none."""
        return bundle.fields.get(field)


@lower_getattr_generic(Bundle)  # type: ignore[untyped-decorator]
def _field(context: Any, builder: Any, bundle: Bundle, words: Any, field: str) -> Any:
    word = builder.load(builder.gep(words, [INT64(list(bundle.fields).index(field))]))
    word.set_metadata("invariant.load", builder.module.add_metadata([]))  # nothing writes to the words of a bundle
    kind = bundle.fields[field]
    if isinstance(kind, types.CPointer):
        return builder.inttoptr(word, context.get_value_type(kind))
    if kind == types.boolean:
        return builder.icmp_unsigned("!=", word, INT64(0))
    return word if kind == types.int64 else builder.bitcast(word, ir.DoubleType())


@intrinsic
def bundle(typingctx, kind, precision, version, words):  # type: ignore[no-untyped-def]
    """The fields of this kind of NamedTuple at these words, arrays as pointers to numbers of this precision.

    The type of the version says what is compiled for it: of None what is lean, of a flag and of a float what is full,
    of numbers also what batches of few rows need. `Plan.version` is such a value.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(words)(context, builder, arguments[3]).data

    full, few = isinstance(version, types.Boolean | types.Float), isinstance(version, types.Integer | types.Float)
    kind_of_bundle = Bundle(kind.instance_class, precision, full, few)
    return kind_of_bundle(kind, precision, version, words), generate


@intrinsic
def if_full(typingctx, bundle, otherwise, function, *arguments):  # type: ignore[no-untyped-def]
    """function(*arguments), but for a lean bundle `otherwise`: the function is then not even compiled."""
    return _if(bundle.full, typingctx, bundle, otherwise, function, arguments)


@intrinsic
def if_few(typingctx, bundle, otherwise, function, *arguments):  # type: ignore[no-untyped-def]
    """function(*arguments), but for a bundle that has no batch of few rows `otherwise`, as `if_full`."""
    return _if(bundle.few, typingctx, bundle, otherwise, function, arguments)


def _if(known: bool, typingctx: Any, bundle: Any, otherwise: Any, function: Any, arguments: Any) -> Any:
    rest = types.StarArgTuple(arguments)
    if not known:
        return otherwise(bundle, otherwise, function, rest), lambda *generation: generation[3][1]
    call = function.get_call_type(typingctx, [types.unliteral(kind) for kind in arguments], {})

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values = [
            context.cast(builder, builder.extract_value(given[3], place), kind, wanted)
            for place, (kind, wanted) in enumerate(zip(arguments, call.args, strict=True))
        ]
        compiled = context.get_function(function, call)
        context.add_linking_libs(getattr(compiled, "libs", ()))
        return compiled(builder, values)

    return call.return_type(bundle, otherwise, function, rest), generate


# --- memory ---------------------------------------------------------------------------------------------------------


@intrinsic
def at(typingctx, array, offset):  # type: ignore[no-untyped-def]
    """Pointer to array[offset]; the array may be a pointer itself."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, index = arguments
        if isinstance(signature.args[0], types.Array):
            base = context.make_array(signature.args[0])(context, builder, base).data
        return builder.gep(base, [index])

    return types.CPointer(array.dtype)(array, types.intp), generate


@intrinsic
def lanes_of(typingctx, pointer):  # type: ignore[no-untyped-def]
    """Elements of one vector of the pointer's type, a constant of the generated code."""
    lanes = VECTOR_BITS // pointer.dtype.bitwidth
    return types.intp(pointer), lambda context, *_: context.get_constant(types.intp, lanes)


def _keep_loops(builder: Any) -> None:
    builder.function.attributes.add("optsize")


@intrinsic
def keep_loops(typingctx):  # type: ignore[no-untyped-def]
    """Have LLVM unroll no loops of this kernel, one that has tiles loaded by what it inlines, and loads none itself."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _keep_loops(builder)
        return context.get_dummy_value()

    return types.none(), generate


def _load(context: Any, builder: Any, tile: Tile, pointer: Any) -> Any:
    vector = ir.VectorType(context.get_value_type(tile.dtype), tile.lanes)
    # Tiles are unrolled as far as it pays; LLVM would unroll the loops around them eightfold: 5 % slower at 64 units,
    # and a second longer to compile.
    _keep_loops(builder)
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = tile.dtype.bitwidth // 8
    return value


def _store(builder: Any, value: Any, pointer: Any, align: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


@intrinsic(prefer_literal=True)
def fill(typingctx, rows, vectors, pointer):  # type: ignore[no-untyped-def]
    """Tile whose row r has pointer[r] in every lane."""
    tile = _tile(pointer, rows, vectors)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for row in range(tile.rows):
            scalar = builder.load(builder.gep(arguments[2], [context.get_constant(types.intp, row)]))
            result = builder.insert_value(result, _splat(builder, scalar, tile.lanes), row)
        return result

    return tile(rows, vectors, pointer), generate


@intrinsic(prefer_literal=True)
def zeros(typingctx, rows, vectors, pointer):  # type: ignore[no-untyped-def]
    """Tile of zeros, of the pointer's type; nothing is read."""
    tile = _tile(pointer, rows, vectors)
    return tile(rows, vectors, pointer), lambda context, *_: ir.Constant(context.get_value_type(tile), None)


@intrinsic(prefer_literal=True)
def load(typingctx, rows, vectors, pointer, stride):  # type: ignore[no-untyped-def]
    """Tile whose row r begins at pointer[r * stride]."""
    tile = _tile(pointer, rows, vectors)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, stride = arguments[2:]
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for row in range(tile.rows):
            result = builder.insert_value(result, _load(context, builder, tile, pointer), row)
            pointer = builder.gep(pointer, [stride])
        return result

    return tile(rows, vectors, pointer, types.intp), generate


@intrinsic
def store(typingctx, pointer, stride, tile):  # type: ignore[no-untyped-def]
    """Write row r of the tile at pointer[r * stride]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, stride, value = arguments
        for row in range(tile.rows):
            _store(builder, builder.extract_value(value, row), pointer, tile.dtype.bitwidth // 8)
            pointer = builder.gep(pointer, [stride])
        return context.get_dummy_value()

    return types.none(pointer, types.intp, tile), generate


def _masked(context: Any, builder: Any, tile: Tile, pointer: Any, count: Any, value: Any = None) -> Any:
    """Load the first `count` lanes of a row of the tile, or store those of the value."""
    lanes, width = tile.lanes, tile.dtype.bitwidth
    builder.function.attributes.add("optsize")  # for the reason of `_load`
    numbers = ir.Constant(ir.VectorType(INT32, lanes), list(range(lanes)))
    mask = builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, INT32), lanes))
    vector = ir.VectorType(context.get_value_type(tile.dtype), lanes)
    place, align = builder.bitcast(pointer, vector.as_pointer()), INT32(width // 8)
    suffix = f"v{lanes}f{width}.p0"
    if value is None:
        return _call(builder, f"llvm.masked.load.{suffix}", vector, place, align, mask, ir.Constant(vector, None))
    return _call(builder, f"llvm.masked.store.{suffix}", ir.VoidType(), value, place, align, mask)


@intrinsic(prefer_literal=True)
def load_first(typingctx, rows, vectors, pointer, stride, count):  # type: ignore[no-untyped-def]
    """`load` of the first `count` lanes of each row, the others zero; nothing is read beyond."""
    tile = _tile(pointer, rows, vectors)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, stride, count = arguments[2:]
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for row in range(tile.rows):
            value = _masked(context, builder, tile, pointer, count)
            result = builder.insert_value(result, value, row)
            pointer = builder.gep(pointer, [stride])
        return result

    return tile(rows, vectors, pointer, types.intp, types.intp), generate


@intrinsic
def store_first(typingctx, pointer, stride, tile, count):  # type: ignore[no-untyped-def]
    """`store` of the first `count` lanes of each row; nothing is written beyond."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, stride, value, count = arguments
        for row in range(tile.rows):
            _masked(context, builder, tile, pointer, count, builder.extract_value(value, row))
            pointer = builder.gep(pointer, [stride])
        return context.get_dummy_value()

    return types.none(pointer, types.intp, tile, types.intp), generate


@intrinsic(prefer_literal=True)
def load_matrix(typingctx, rows, columns, pointer, row_stride, column_stride):  # type: ignore[no-untyped-def]
    """Tile of rows x columns vectors, of which that of row r and column c begins at r row_stride + c column_stride."""
    tile = Tile(pointer.dtype, rows.literal_value * columns.literal_value, VECTOR_BITS // pointer.dtype.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, *strides = arguments[2:]
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for place, there in enumerate(_places(builder, pointer, strides, rows.literal_value, columns.literal_value)):
            result = builder.insert_value(result, _load(context, builder, tile, there), place)
        return result

    return tile(rows, columns, pointer, types.intp, types.intp), generate


@intrinsic(prefer_literal=True)
def store_matrix(typingctx, rows, pointer, row_stride, column_stride, tile):  # type: ignore[no-untyped-def]
    """Write a tile of so many rows of vectors as `load_matrix` reads it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, *strides, value = arguments[1:]
        height = rows.literal_value
        for place, there in enumerate(_places(builder, pointer, strides, height, tile.rows // height)):
            _store(builder, builder.extract_value(value, place), there, tile.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(rows, pointer, types.intp, types.intp, tile), generate


def _places(builder: Any, pointer: Any, strides: Any, rows: int, columns: int) -> Iterator[Any]:
    """Pointers to the vectors of a matrix, row by row."""
    row_stride, column_stride = strides
    for row in range(rows):
        there = builder.gep(pointer, [builder.mul(row_stride, INT64(row))])
        for column in range(columns):
            yield builder.gep(there, [builder.mul(column_stride, INT64(column))])


# --- products and sums ----------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def add_outer_vectors(typingctx, tile, rows, x, row_stride, y, column_stride):  # type: ignore[no-untyped-def]
    """tile[r, c] + x[r] y[c], vector by vector: one step of a matrix product in each lane.

    The tile has so many rows of vectors; x[r] begins at r row_stride, y[c] at c column_stride.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result, _, x, row_stride, y, column_stride = arguments
        height = rows.literal_value
        width = tile.rows // height
        there = [builder.gep(y, [builder.mul(column_stride, INT64(column))]) for column in range(width)]
        ys = [_load(context, builder, tile, pointer) for pointer in there]
        for row in range(height):
            x_r = _load(context, builder, tile, builder.gep(x, [builder.mul(row_stride, INT64(row))]))
            for column in range(width):
                place = row * width + column
                total = _fused(builder, x_r, ys[column], builder.extract_value(result, place))
                result = builder.insert_value(result, total, place)
        return result

    return tile(tile, rows, x, types.intp, y, types.intp), generate


@intrinsic
def add_to_totals(typingctx, totals, tile):  # type: ignore[no-untyped-def]
    """totals[k] += lane k of a tile of one row, in float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        totals, value = arguments
        value = builder.extract_value(value, 0)
        wide = ir.VectorType(ir.DoubleType(), tile.lanes)
        value = value if value.type == wide else builder.fpext(value, wide)
        before = builder.load(builder.bitcast(totals, wide.as_pointer()))
        before.align = 8
        _store(builder, builder.fadd(before, value), totals, 8)
        return context.get_dummy_value()

    return types.none(types.CPointer(types.float64), tile), generate


@intrinsic
def add_outer(typingctx, tile, w, stride, x):  # type: ignore[no-untyped-def]
    """tile[r] + w[r * stride] * x[0 : lanes]: one step of a matrix product, for every row r."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result, w, stride, x = arguments
        x = _load(context, builder, tile, x)
        for row in range(tile.rows):
            scalar = _splat(builder, builder.load(w), tile.lanes)
            total = _fused(builder, scalar, x, builder.extract_value(result, row))
            result = builder.insert_value(result, total, row)
            w = builder.gep(w, [stride])
        return result

    return tile(tile, w, types.intp, x), generate


@intrinsic
def add_products(typingctx, sums, x, y):  # type: ignore[no-untyped-def]
    """sums + x[0] y[0] + x[1] y[1] + ..., lane by lane and in this order; sums is a tile of one row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, x, y = arguments
        total = builder.extract_value(sums, 0)
        for row in range(signature.args[1].rows):
            total = _fused(builder, builder.extract_value(x, row), builder.extract_value(y, row), total)
        return builder.insert_value(sums, total, 0)

    return sums(sums, x, y), generate


@intrinsic
def add_rows(typingctx, sums, tile):  # type: ignore[no-untyped-def]
    """sums + tile[0] + tile[1] + ..., lane by lane and in this order; sums is a tile of one row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, value = arguments
        total = builder.extract_value(sums, 0)
        for row in range(tile.rows):
            total = builder.fadd(total, builder.extract_value(value, row))
        return builder.insert_value(sums, total, 0)

    return sums(sums, tile), generate


def _shuffle(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """Lanes of x, then of y, by number."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))


def _sum_lanes(builder: Any, vectors: list[Any]) -> list[Any]:
    """Vectors that hold, in order, the sums of the lanes of the given ones (their number a power of two).

    Each step adds the upper half of every group of lanes to its lower half, two vectors at a time, so that the order
    of additions within a sum does not depend on how many sums are made.
    """
    count = width = vectors[0].type.count
    while width > 1:
        half = width // 2
        if len(vectors) == 1:  # nothing to pair it with: the sums get narrower
            pairs, lanes = [(vectors[0], vectors[0])], vectors[0].type.count
        else:
            pairs, lanes = list(zip(vectors[::2], vectors[1::2], strict=True)), 2 * count
        lower = [group + lane for group in range(0, lanes, width) for lane in range(half)]
        upper = [lane + half for lane in lower]
        vectors = [builder.fadd(_shuffle(builder, x, y, lower), _shuffle(builder, x, y, upper)) for x, y in pairs]
        width = half
    return vectors


@intrinsic
def add_lane_sums(typingctx, tile, g, stride):  # type: ignore[no-untyped-def]
    """g[r * stride] += sum of the lanes of tile[r]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, g, stride = arguments
        (sums,) = _sum_lanes(builder, [builder.extract_value(value, k) for k in range(tile.rows)])
        for row in range(tile.rows):
            builder.store(builder.fadd(builder.load(g), builder.extract_element(sums, INT32(row))), g)
            g = builder.gep(g, [stride])
        return context.get_dummy_value()

    return types.none(tile, g, types.intp), generate


@intrinsic
def store_lane_sums(typingctx, pointer, tile):  # type: ignore[no-untyped-def]
    """pointer[r] = sum of the lanes of tile[r], in the order of `add_lane_sums`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, value = arguments
        (sums,) = _sum_lanes(builder, [builder.extract_value(value, row) for row in range(tile.rows)])
        if sums.type.count > tile.rows:
            sums = _shuffle(builder, sums, sums, list(range(tile.rows)))
        _store(builder, sums, pointer, tile.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(pointer, tile), generate


@intrinsic
def lane_sum(typingctx, tile):  # type: ignore[no-untyped-def]
    """Sum of all lanes of a tile: of each row in the order of `add_lane_sums`, then over the rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (sums,) = _sum_lanes(builder, [builder.extract_value(arguments[0], row) for row in range(tile.rows)])
        total = builder.extract_element(sums, INT32(0))
        for row in range(1, tile.rows):
            total = builder.fadd(total, builder.extract_element(sums, INT32(row)))
        return total

    return tile.dtype(tile), generate


@intrinsic
def load_rows(typingctx, pointer, index, stride, rows, nothing):  # type: ignore[no-untyped-def]
    """Square tile whose row r begins at pointer[index[r] * stride], or from `rows` on at nothing[0]."""
    lanes = VECTOR_BITS // pointer.dtype.bitwidth
    tile = Tile(pointer.dtype, lanes, lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, index, stride, rows, nothing = arguments
        result = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for row in range(lanes):
            number = context.get_constant(types.intp, row)
            there = builder.icmp_signed("<", number, rows)
            number = builder.load(builder.gep(index, [builder.select(there, number, number.type(0))]))
            begin = builder.select(there, builder.gep(pointer, [builder.mul(number, stride)]), nothing)
            result = builder.insert_value(result, _load(context, builder, tile, begin), row)
        return result

    return tile(pointer, index, types.intp, types.intp, nothing), generate


@intrinsic
def transpose(typingctx, tile):  # type: ignore[no-untyped-def]
    """Square tile with rows and lanes exchanged."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = tile.lanes
        rows = [builder.extract_value(arguments[0], row) for row in range(lanes)]
        # Swap the off-diagonal halves of 2 x 2 blocks, then of 2 x 2 blocks of those, and so on.
        step = 1
        while step < lanes:
            upper = [lanes + lane - step if lane & step else lane for lane in range(lanes)]
            lower = [lanes + lane if lane & step else lane + step for lane in range(lanes)]
            for row in (r for r in range(lanes) if not r & step):
                x, y = rows[row], rows[row + step]
                rows[row], rows[row + step] = _shuffle(builder, x, y, upper), _shuffle(builder, x, y, lower)
            step *= 2
        result = arguments[0]
        for row in range(lanes):
            result = builder.insert_value(result, rows[row], row)
        return result

    return tile(tile), generate
