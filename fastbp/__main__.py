"""`python -m fastbp [xor | many | info | warmup]`.

Numba takes half a second to import, and NumPy a tenth: a command imports what it needs, and `--help` needs neither.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import fastbp
from fastbp.choices import BACKENDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line, without the program's name; by default those of this process.

    Returns
    -------
    int
        Exit code: 0, 1 if the output cannot be written or nobody reads it to its end, 2 if fastbp refuses a setting,
        130 after Ctrl-C.

    Raises
    ------
    SystemExit
        If the words are not understood (2), or ask for help or the version (0).

    Examples
    --------
    >>> main(["xor", "--backend", "numpy", "--epochs", "0"])  # and says on stderr what is wrong
    XOR, NumPy reference
    2
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "xor")
    parser = _parser()
    options = parser.parse_args(words)
    try:
        options.command(options)
        print(end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # as with `| head`, which has read enough
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        if sys.stdout:  # Python would fail once more when it writes the rest at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except fastbp.FastbpError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastbp", description=fastbp.__doc__)
    parser.add_argument("--version", action="version", version=f"fastbp {fastbp.__version__}")
    commands = parser.add_subparsers(title="commands", description="xor if none is given", metavar="COMMAND")

    text = "train the notebook's XOR network, print its table and the time of an epoch"
    xor = commands.add_parser(
        "xor", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    xor.add_argument("--backend", choices=BACKENDS, default="numba", help="compiled kernels or the NumPy reference")
    xor.add_argument("--epochs", type=int, default=10_000, help="updates with all four rows")
    xor.add_argument("--seed", type=int, default=42, help="seed of the initial weights")
    xor.add_argument("--hidden", type=int, nargs="+", default=[2], metavar="UNITS", help="units of each hidden layer")
    xor.set_defaults(command=_xor)

    text = "train XOR from 1,000 seeds, and print how many solve it and how many networks a second are trained"
    many = commands.add_parser(
        "many", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    many.add_argument("--networks", type=int, default=1000, help="how many, each with a seed of its own")
    many.add_argument("--epochs", type=int, default=2000, help="updates with all four rows")
    many.add_argument("--seed", type=int, default=0, help="seed of the first network")
    many.add_argument("--hidden", type=int, nargs="+", default=[2], metavar="UNITS", help="units of each hidden layer")
    many.add_argument("--plot", metavar="FILE", help="picture of their losses, such as losses.svg")
    many.set_defaults(command=_many)

    text = "print versions, what the CPU offers and where compiled code is kept"
    commands.add_parser("info", help=text, description=text).set_defaults(command=_info)

    text = "compile everything into the cache, so that no program waits for it later"
    commands.add_parser("warmup", help=text, description=text).set_defaults(command=_warmup)
    return parser


class _Compiling(logging.Handler):
    """Prints when compiling begins, and in the same line the seconds that it took."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print what the log says: the name of the function, and at the end the seconds."""
        name, *seconds = record.args or ()
        text = f" {seconds[0]:.1f} s\n" if seconds else f"Compiling {name}, once; this takes some seconds ..."
        print(text, end="", flush=True)


def _xor(options: argparse.Namespace) -> None:
    from fastbp import xor

    with contextlib.nullcontext() if options.backend == "numpy" else _telling(_Compiling()):
        xor.report(options.backend, options.epochs, options.seed, options.hidden)


def _many(options: argparse.Namespace) -> None:
    from fastbp import xor

    with _telling(_Compiling()):
        xor.report_many(options.networks, options.epochs, options.seed, options.hidden, options.plot)


@contextlib.contextmanager
def _telling(handler: logging.Handler) -> Iterator[None]:
    """Have a handler say that code is compiled, in place of the notice on stderr."""
    from fastbp import jit

    log = logging.getLogger(jit.__name__)
    before = jit.NOTICE_SECONDS, log.level
    jit.NOTICE_SECONDS = threading.TIMEOUT_MAX
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[1])
        jit.NOTICE_SECONDS = before[0]


def _info(_: argparse.Namespace) -> None:
    import llvmlite
    import llvmlite.binding
    import numba
    import numpy as np

    from fastbp import jit, simd

    host = llvmlite.binding.get_host_cpu_name()
    features = jit.config.CPU_FEATURES  # None unless NUMBA_CPU_FEATURES is set, or NUMBA_CPU_NAME is "generic"
    features = "those of this CPU" if features is None else features or "those of its name"
    rows = {
        "fastbp": fastbp.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "NumPy": np.__version__,
        "Numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "platform": platform.platform(),
        "CPU": host,
        "code for": "no CPU: NUMBA_DISABLE_JIT is set" if jit.DISABLED else jit.config.CPU_NAME or host,
        "features": features,
        "vectors": f"{simd.VECTOR_BITS} bits, in registers of {simd.REGISTER_BITS} bits",
        "multiply-add": "fused" if simd.FUSED else "no fused multiply-add: bits differ from other CPUs",
        "tiles": f"{simd.TILE_ROWS} rows of {'2 vectors' if simd.PAIRED else '1 vector'}",
        "cache": jit.cache_directory() or "off",
    }
    for name, value in rows.items():
        print(f"{name:<14} {value}")


def _warmup(_: argparse.Namespace) -> None:
    from fastbp import jit
    from fastbp.train import train
    from fastbp.trainer import Trainer
    from fastbp.xor import X, y

    if jit.DISABLED:
        print("nothing to compile: NUMBA_DISABLE_JIT is set")
        return
    # Two versions of each entry serve every network and every data set of a precision: one for what most need, one for
    # everything.
    with _telling(logging.NullHandler()):
        for dtype, (version, activation) in itertools.product(
            ("float32", "float64"), (("lean", "relu"), ("full", "elu"))
        ):
            print(f"{dtype} {version} train    ", end="", flush=True)
            result = train(X, y, 1, activation=activation, epochs=0, dtype=dtype)
            print(f"{result.compile_seconds:5.2f} s")
            print(f"{dtype} {version} predict  ", end="", flush=True)
            rows = X.astype(dtype)
            began = time.perf_counter()
            result.network.predict(rows)
            result.network.predict(rows)  # the second call of its size is prepared, and has entries of its own
            print(f"{time.perf_counter() - began:5.2f} s")
            print(f"{dtype} {version} step     ", end="", flush=True)
            began = time.perf_counter()
            Trainer(result.network).step(X, y)
            print(f"{time.perf_counter() - began:5.2f} s")
    print(f"cache: {jit.cache_directory() or 'off, nothing was kept'}")


if __name__ == "__main__":
    sys.exit(main())
