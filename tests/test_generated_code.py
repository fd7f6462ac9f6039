"""What the compiler makes of the kernels: instructions, versions, allocations, and the same bits from every CPU's code.

No clock is read. The processor that code is generated for is fixed when Numba is imported, so other processes do the
work: this file is also the program that they run.
"""

import functools
import gc
import json
import os
import platform
import re
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from helpers import output_of

import fastbp

DTYPES = "float32", "float64"
ENTRIES = "run_words", "predict_words"
CONFIGURATIONS = {  # rows, settings; 5 inputs
    "one vector": (6, {"hidden": 3, "activation": "sigmoid", "optimizer": "sgd", "learning_rate": 0.1}),
    "one vector, Adam, shuffled": (20, {"hidden": (4, 3), "activation": "tanh", "batch_size": 5}),
    "linear": (20, {"batch_size": 1, "shuffle": False}),
    "few rows": (20, {"hidden": (17, 9), "activation": "tanh", "batch_size": 3, "optimizer": "sgd"}),
    "few rows, dropout, weights": (
        20,
        {"hidden": (33, 17), "batch_size": 4, "dropout": 0.2, "sample_weight": np.arange(20) % 3, "shuffle": False},
    ),
    "panels": (300, {"hidden": (70, 9), "optimizer": fastbp.SGD(momentum=0.9, nesterov=True), "batch_size": None}),
    "panels, shuffled": (70, {"hidden": (17, 9, 5), "activation": "tanh", "batch_size": 24}),
    "no bias": (70, {"hidden": 33, "activation": "sigmoid", "bias": False, "reduction": "sum"}),
    "binary": (70, {"hidden": 20, "activation": "leaky_relu", "loss": "binary_cross_entropy"}),
    "classes": (70, {"hidden": (20, 12), "loss": "cross_entropy", "optimizer": "sgd"}),
    "elu, softplus, exponential decay": (
        70,
        {
            "hidden": (9, 17), "activation": ("elu", "softplus"), "loss": "huber", "optimizer": "rmsprop",
            "schedule": fastbp.ExponentialDecay(0.9),
        },
    ),
    "gelu, silu, dropout, weights": (
        70,
        {
            "hidden": (17, 9), "activation": ("gelu", "silu"), "loss": "absolute_error", "dropout": (0.3, 0.1),
            "sample_weight": np.arange(70) % 3, "optimizer": fastbp.AdamW(weight_decay=0.1), "l2": 0.1,
            "schedule": fastbp.InverseScaling(0.3),
        },
    ),
    "poisson, clipping, validation": (
        70,
        {
            "hidden": 9, "activation": "exponential", "loss": "poisson", "optimizer": "sgd", "clip_norm": 0.5,
            "validation": 0.3, "patience": 60, "dropout": 0.2, "schedule": fastbp.CosineDecay(50, warmup=5),
        },
    ),
    "signs alone": (
        70, {"hidden": 9, "activation": "silu", "optimizer": "irprop", "batch_size": None, "validation": 0.3}
    ),
    "plateaus": (
        70,
        {
            "hidden": 9, "loss": "cross_entropy", "validation": 0.3, "watch": "score", "patience": 60,
            "schedule": fastbp.ReduceOnPlateau(0.5, patience=1),
        },
    ),
}  # fmt: skip
LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=1)[::-1, ::2],
    "read-only": lambda X: np.frombuffer(X.tobytes()).reshape(X.shape),
    "big-endian": lambda X: X.astype(">f8"),
    "float16": np.float16,
    "integers": lambda X: (9 * X).astype(np.int16),
    "booleans": lambda X: X > 0,
    "lists": lambda X: X.tolist(),
}


# --- the work of the other processes --------------------------------------------------------------------------------


def data(rows, loss="squared_error"):
    X = np.random.default_rng(rows).uniform(-1, 1, (rows, 5))
    score = X[:, 0] * X[:, 1] + X[:, 2]
    if loss == "cross_entropy":
        return X, np.digitize(score, [-0.3, 0.3])
    if loss == "poisson":
        return X, np.floor(3 * np.abs(score))
    return X, score > 0 if loss == "binary_cross_entropy" else np.column_stack([score, -X[:, 3]])


def trained(name, dtype, epochs):
    rows, settings = CONFIGURATIONS[name]
    X, y = data(rows, settings.get("loss", "squared_error"))
    return X, fastbp.train(X, y, epochs=epochs, dtype=dtype, seed=1, **settings)


def assembly():
    """Assembly of the entries, which are compiled and not run: this CPU may be another."""
    from fastbp import kernels

    entries = {name: getattr(kernels, name) for name in ENTRIES}

    def compile_only(entry):
        return lambda *arguments: entry.compile(tuple(map(entry.typeof_pyval, arguments))) and kernels.FINISHED

    for name, entry in entries.items():
        setattr(kernels, name, compile_only(entry))
    for dtype in DTYPES:
        X, result = trained("elu, softplus, exponential decay", dtype, 0)  # the full version, which holds the lean one
        result.network.predict(X)
    for name, entry in entries.items():
        setattr(kernels, name, entry)
    return {name: dict(zip(DTYPES, entry.inspect_asm().values(), strict=True)) for name, entry in entries.items()}


def bits():
    """Hash of all that 50 epochs compute, for each configuration and precision."""
    hashes = {}
    for name in CONFIGURATIONS:
        for dtype in DTYPES:
            X, result = trained(name, dtype, 50)
            arrays = [result.network.params, result.loss, result.error, result.network.predict(X)]
            arrays += [result.validation_loss, result.validation_error] if result.validation_loss is not None else []
            hashes[f"{name}, {dtype}"] = sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    return hashes


def versions():
    """How many versions of each compiled function there are, and how many of the entries' came from the cache."""
    from fastbp import formulas, kernels, products, rows

    for layout in LAYOUTS.values():
        X, y = data(10)
        X, states = layout(X), []
        result = fastbp.train(X, layout(y), hidden=3, epochs=1, callback=states.append)
        for network in (result.network, states[0].network):  # of which the second is read-only
            network.predict(X)
    entries = {name: getattr(kernels, name) for name in ENTRIES}
    compiled = {
        name
        for module in (formulas, kernels, products, rows)
        for name, value in vars(module).items()
        if getattr(value, "signatures", None)
    } - entries.keys()
    return {
        name: {
            "versions": len(entry.signatures),
            "loaded": sum(entry.stats.cache_hits.values()),
            "compiled": sum(entry.stats.cache_misses.values()),
        }
        for name, entry in entries.items()
    } | {"kernels compiled": sorted(compiled)}


def allocated():
    """Numba's count of allocations and of what was freed."""
    from numba.core.runtime import rtsys

    statistics = rtsys.get_allocation_stats()
    return statistics.alloc + statistics.mi_alloc, statistics.free + statistics.mi_free


def allocations():
    """Blocks of each call of the kernel, and what it allocated and freed, for each configuration and precision."""
    from fastbp import kernels

    run, calls = kernels.run_words, {}

    def counting(*arguments):
        before = allocated()
        status = run(*arguments)
        after = allocated()
        calls[name, dtype].append((int(arguments[-1]), after[0] - before[0], after[1] - before[1]))
        return status

    kernels.run_words = counting
    for name in CONFIGURATIONS:
        for dtype in DTYPES:
            calls[name, dtype] = []
            trained(name, dtype, 300)
    kernels.run_words = run
    return {", ".join(key): value for key, value in calls.items()}


def leaks():
    """What 130 trainings add, three times after the first: allocations of Numba, bytes of Python and (Linux) of all."""

    # Names that Numba looks attributes up by are made anew each time, and CPython's cache holds up to 4096 of them.
    forget = sys._clear_internal_caches if sys.version_info >= (3, 13) else sys._clear_type_cache

    def state():
        forget()
        gc.collect()
        held = allocated()
        statm = Path("/proc/self/statm")
        pages = int(statm.read_text().split()[1]) if statm.exists() else 0
        return np.array([held[0] - held[1], tracemalloc.get_traced_memory()[0], 4096 * pages])

    tracemalloc.start()
    states = []
    for _ in range(4):
        for _ in range(130 // len(CONFIGURATIONS) // len(DTYPES)):
            for name in CONFIGURATIONS:
                for dtype in DTYPES:
                    X, result = trained(name, dtype, 1)
                    result.network.predict(X)
        states.append(state())
    return dict(zip(["numba", "python", "process"], np.diff(states, axis=0).T.tolist(), strict=True))


# --- the tests ------------------------------------------------------------------------------------------------------

X86 = platform.machine().lower() in ("x86_64", "amd64")
x86 = pytest.mark.skipif(not X86, reason="the instructions are those of x86")


def work(*names, **variables):
    """Results of the functions of these names, from another process."""
    variables = {"NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"]} | variables
    return json.loads(output_of(__file__, *names, without=["NUMBA_", "FASTBP_"], **variables))


def runs_here(processor):
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    needed = ["avx2", "bmi2", "fma"]
    if processor == "skylake-avx512":
        needed += ["avx512bw", "avx512cd", "avx512dq", "avx512vl"]
    return all(features.get(feature) for feature in needed)


@functools.cache
def native():
    """What a process says that generates code for this CPU."""
    return work("bits", "versions")


@functools.cache
def results():
    """What processes say that generate other code; two work at a time."""
    futures = {}
    with ThreadPoolExecutor(2) as pool:
        for processor in ("haswell", "skylake-avx512") if X86 else ():
            names = ["assembly", "bits"] if runs_here(processor) else ["assembly"]
            pinned = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "FASTBP_CACHE": "0"}
            futures[processor] = pool.submit(work, *names, **pinned)
        futures["bounds checks"] = pool.submit(work, "bits", NUMBA_BOUNDSCHECK="1", FASTBP_CACHE="0")
        return {name: future.result() for name, future in futures.items()}


@functools.cache
def warm():
    """What a process says that finds all compiled code in the cache."""
    native()
    return work("bits", "versions", "allocations", "leaks", NUMBA_NRT_STATS="1")


@pytest.mark.slow
@pytest.mark.parametrize("process", ["haswell", "skylake-avx512", "bounds checks"])
def test_same_bits_from_all_code(process):
    result = results().get(process, {})
    if "bits" not in result:
        pytest.skip("this CPU cannot run the code")
    expected = native()["bits"]
    actual = result["bits"]

    assert actual == expected


@pytest.mark.slow
def test_same_bits_from_cached_code():
    expected = native()["bits"]
    actual = warm()["bits"]

    assert actual == expected


def test_configurations_differ_in_their_bits():
    hashes = native()["bits"].values()

    assert len(set(hashes)) == len(CONFIGURATIONS) * len(DTYPES)


def versions_of(entry):
    """Lean and full for each precision, and of training both with and without batches of few rows."""
    return len(DTYPES) * (4 if entry == "run_words" else 2)


@pytest.mark.parametrize("entry", ENTRIES)
def test_few_versions_of_each_precision_serve_everything(entry):
    expected = versions_of(entry)
    actual = native()["versions"][entry]["versions"]

    assert actual == expected


RARELY_USED = {
    "clip", "cosine", "decay", "dropout", "end_validation", "further_activation", "further_slope", "irprop",
    "misfit", "norm", "normal", "poisson", "power", "rate_factor", "rmsprop", "shrink", "softplus", "validate_block",
}  # fmt: skip


@pytest.mark.slow
def test_plain_training_compiles_no_more_than_it_needs():
    compiled = set(work("versions", FASTBP_CACHE="0")["versions"]["kernels compiled"])

    assert compiled >= {"forward", "backward", "adam", "elementwise", "shuffle"}
    assert compiled & RARELY_USED == set()


def test_second_process_compiles_nothing():
    counts = {entry: versions_of(entry) for entry in ENTRIES}
    expected = {entry: {"versions": n, "loaded": n, "compiled": 0} for entry, n in counts.items()}
    expected["kernels compiled"] = []
    actual = warm()["versions"]

    assert actual == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_allocations_of_a_call_do_not_grow_with_its_batches(name, dtype):
    calls = warm()["allocations"][f"{name}, {dtype}"]
    blocks = [blocks for blocks, *_ in calls]
    counts = {(made, freed) for _, made, freed in calls}

    assert max(blocks) >= 8  # or no call had many
    assert len(counts) == 1
    assert all(made == freed for made, freed in counts)


def test_trainings_leak_nothing():
    """A leak adds as much each time; what the system keeps for later is added once, sooner or later."""
    actual = warm()["leaks"]

    assert actual["numba"] == [0] * 3
    assert max(actual["python"]) < 1024  # 130 of the smallest blocks of memory have twice that
    assert min(actual["process"]) < 2**18


# --- assembly -------------------------------------------------------------------------------------------------------

REGISTERS = {"haswell": "ymm", "skylake-avx512": "zmm"}
LOOPS = {  # the functions of a loop, and whose code it is part of if they are compiled into their caller
    "product": (r"product", r"forward"),
    "weight gradient": (r"gradient_rows|wide|narrow", r"weight_gradient", r"backward"),
}
ALLOWED = {
    "memset",
    "memcpy",
    "memmove",
    "NRT_incref",
    "NRT_decref",
}  # zeros, copies, and the arguments counted as used
processors = pytest.mark.parametrize("processor", REGISTERS)
entries = pytest.mark.parametrize("entry", ENTRIES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def code_of_kernels(processor, entry, dtype):
    """Name and assembly of each kernel that was not compiled into its caller."""
    assembly = results()[processor]["assembly"][entry][dtype]
    parts = re.split(r"^(?!\.?L)([\w.$]+):", assembly, flags=re.MULTILINE)
    kernels = []
    for symbol, code in zip(parts[1::2], parts[2::2], strict=True):
        if match := re.match(r"_+ZN6fastbp(?:7kernels|8formulas|8products|4rows|5teams)(\d+)", symbol):
            kernels.append((symbol[match.end() :][: int(match[1])], code))
    return kernels


def pieces(loop, processor, dtype):
    """The code of a loop of `run`, cut at its labels."""
    kernels = code_of_kernels(processor, "run_words", dtype)
    for pattern in LOOPS[loop]:
        if found := [code for name, code in kernels if re.match(pattern, name)]:
            return [piece for code in found for piece in re.split(r"^\.?L\w+:", code, flags=re.MULTILINE)]
    raise AssertionError([name for name, _ in kernels])


@pytest.mark.slow
@x86
@processors
@dtypes
@pytest.mark.parametrize("loop", LOOPS)
def test_sums_fill_whole_registers_and_hide_the_latency(loop, processor, dtype):
    suffix, register = {"float32": "ps", "float64": "pd"}[dtype], REGISTERS[processor]
    fused = re.compile(rf"\bvfmadd\d+{suffix}\b.*%({register}\d+)$", re.MULTILINE)
    sums = [len(set(fused.findall(piece))) for piece in pieces(loop, processor, dtype)]

    assert max(sums) >= 8  # two units, and four cycles until a sum can be added to again


@pytest.mark.slow
@x86
@processors
@dtypes
@pytest.mark.parametrize("loop", LOOPS)
def test_sums_stay_in_registers(loop, processor, dtype):
    busy = [piece for piece in pieces(loop, processor, dtype) if len(re.findall(r"\bvfmadd", piece)) >= 8]
    spilled = [line for piece in busy for line in piece.splitlines() if re.search(r"\sv\w+.*\(%rsp", line)]

    assert spilled == []


@pytest.mark.slow
@x86
@processors
@entries
@dtypes
def test_no_scalars_are_multiplied_and_added_at_once(entry, processor, dtype):
    for _, code in code_of_kernels(processor, entry, dtype):
        assert re.findall(r"\bvfn?m(?:add|sub)\d+s[sd]\b.*", code) == []


@pytest.mark.slow
@x86
@processors
@entries
@dtypes
def test_kernels_call_each_other_and_nothing_else(entry, processor, dtype):
    called = {
        name
        for _, code in code_of_kernels(processor, entry, dtype)
        for name in re.findall(r"(?:\bmovabsq\s+\$|\bcall\w*\s+|\bjmp\s+)_?([A-Za-z]\w*)", code)
        if not re.match(r"ZN6fastbp(7kernels|8formulas|8products|4rows|5teams)|L[A-Z]", name)
    }

    assert {name for name, _ in code_of_kernels(processor, entry, dtype)} > {entry}
    assert called - ALLOWED == set()


@pytest.mark.slow
@x86
@processors
@entries
@dtypes
def test_subnormal_numbers_are_flushed_around_all_arithmetic(entry, processor, dtype):
    """No instruction may be moved across the change of the control word: all of them are behind one call."""
    (code,) = (code for name, code in code_of_kernels(processor, entry, dtype) if name == entry)
    before, inside, after = re.split(r"\bv?ldmxcsr\b", code)

    assert len(re.findall(r"\bcall", inside)) == 1
    for part in (before, inside, after):
        assert re.findall(r"\bv?(?:add|sub|mul|div|fn?m(?:add|sub)\d+)[ps][sd]\b.*", part) == []


@pytest.mark.slow
@x86
@processors
@entries
@dtypes
def test_entries_allocate_nothing(entry, processor, dtype):
    assembly = results()[processor]["assembly"][entry][dtype]

    assert re.findall(r"NRT_MemInfo_\w*alloc\w*|NRT_Allocate\w*|NRT_MemInfo_new\w*", assembly) == []


if __name__ == "__main__":
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))  # noqa: T201
