"""The house rules, read from the code itself. Tests iterate over what they find, so a new module tests itself."""

import ast
import dataclasses
import doctest
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers import ROOT, output_of

import fastbp
from fastbp import choices, workspace

TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "fastbp").glob("*.py"))}

TOP_LEVEL = {"LICENSE", "README.md", "benchmarks", "fastbp", "pyproject.toml", "tests"}

# What each module may import from the package. A row may name only rows above it.
MAY_IMPORT = {
    "version": set(),
    "errors": set(),
    "scalars": {"errors"},
    "choices": {"errors", "scalars"},
    "workspace": {"choices"},
    "checks": {"errors", "scalars", "choices", "workspace"},
    "checkpoint": {"version", "checks"},
    "jit": set(),
    "simd": {"jit"},
    "products": {"jit", "simd"},
    "formulas": {"choices", "workspace", "jit", "simd"},
    "rows": {"choices", "workspace", "jit", "simd", "formulas"},
    "kernels": {"choices", "workspace", "jit", "simd", "products", "formulas", "rows"},
    "teams": {"choices", "workspace", "jit", "simd", "products", "formulas", "rows", "kernels"},
    "lanes": {"choices", "workspace", "jit", "simd", "formulas", "kernels"},
    "threads": {"choices", "workspace", "teams"},
    "second_order": {"workspace", "jit", "simd", "kernels"},
    "lbfgs": {"choices", "workspace", "jit", "simd", "formulas", "kernels", "second_order"},
    "marquardt": {"choices", "workspace", "jit", "simd", "products", "formulas", "kernels", "teams", "threads"}
    | {"second_order"},
    "reference": {"choices", "workspace"},
    "network": {"choices", "checks", "checkpoint", "workspace", "jit", "kernels", "reference", "threads"},
    "progress": set(),
    "settings": {"choices", "checks"},
    "data": {"choices", "checks", "workspace", "settings"},
    "results": {"checks", "checkpoint", "workspace", "network", "settings"},
    "trainer": {"choices", "checks", "checkpoint", "workspace", "reference", "network", "settings", "data", "results"}
    | {"threads", "lbfgs", "marquardt"},
    "train": {"choices", "checks", "checkpoint", "workspace", "progress", "network", "settings", "data", "results"}
    | {"trainer"},
    "groups": {"choices", "checks", "workspace", "lanes", "network", "settings", "data", "results", "trainer"},
    "many": {"choices", "checks", "progress", "network", "threads", "settings", "data", "train", "groups"},
    "c_code": {"version", "choices", "checks", "reference", "network"},
    "onnx_graph": {"version", "choices", "checks", "simd", "network"},
    "export": {"scalars", "choices", "checks", "checkpoint", "network", "c_code", "onnx_graph"},
    "plots": {"checks", "network", "train", "many"},
    "xor": {"choices", "checks", "progress", "reference", "network", "threads", "train", "many", "plots"},
    "sklearn": {"choices", "checks", "progress", "network", "train", "trainer"},
    "ensembles": {"checks", "progress", "network", "threads", "settings", "groups", "many", "sklearn"},
    "__init__": {"version", "errors", "choices", "network", "trainer", "train", "many"},
    "__main__": {"__init__", "choices", "checks", "jit", "simd", "network", "trainer", "train", "xor"},
}
KERNELS = ["products", "formulas", "rows", "kernels", "teams", "lanes", "second_order", "lbfgs", "marquardt"]
WITHOUT_NUMBA = ["version", "errors", "scalars", "choices", "checks", "checkpoint", "network", "reference"]

# Public kernels that have no twin in the reference, each with its reason.
FORMULA = "the formula of a loop that has a twin, or of several"
TILE = "a part of the kernel that calls it: which sums share registers"
LAYOUT = "panels and pointers, which matrices do not need"
ROWS = "the same once more for a batch of few rows: compared with the twin of the panels' kernel"
MANY = "the same once more for a network in each lane: compared with `train`"
ONLY_COMPILED = {
    **dict.fromkeys(("loss_and_delta", "sign", "plain_sgd_of", "momentum_sgd_of", "adam_of", "rmsprop_of"), FORMULA),
    "irprop_of": FORMULA,
    **dict.fromkeys(
        (
            "begin_epoch",
            "squares",
            "samples_sum",
            "record",
            "forget",
            "end",
            "end_epoch",
            "product_row",
            "tiny_update",
            "correct",
            "lay_out",
            "weigh",
        ),
        MANY,
    ),
    "product_tile": TILE,
    "product_rows": TILE,
    "product_in_slabs": "`product` for all panels of a block: compared with it",
    "slab_tile": TILE,
    "is_wide": "which of the two computes a product",
    "wide_tile": TILE,
    "wide_rows": TILE,
    "narrow_tile": TILE,
    "bias_tile": TILE,
    "further_activation": "a part of `activation`",
    "further_slope": "a part of `times_slope`",
    "activate": "`activation` for a whole panel",
    "slope": "`times_slope` for a whole panel",
    "further_loss": "a part of `loss_and_delta`",
    "weight_stride": LAYOUT,
    "misfit_of_outputs": "a part of `misfit`",
    "mean_weight": "NumPy's own",
    "mean_of_row": "NumPy's own",
    "highest": "a part of `softmax`",
    "tiny_batch": "forward, backward and step once more, fused: compared with the twin of `run`",
    "outputs_tile": TILE,
    "two_outputs_tile": TILE,
    "deltas_tile": TILE,
    "two_deltas_tile": TILE,
    "fused_tile": TILE,
    "two_fused_tile": TILE,
    "add_tiles": TILE,
    "outputs_of_rows": ROWS,
    "outputs_of_column": ROWS,
    "deltas_of_rows": ROWS,
    "deltas_of_column": ROWS,
    "add_to_rows": ROWS,
    "add_to_column": ROWS,
    "backward_layer": ROWS,
    "forward_rows": ROWS,
    "backward_rows": ROWS,
    "output_rows": ROWS,
    "few_rows": ROWS,
    "dropout_rows": ROWS,
    "whole": LAYOUT,
    "scaled": "NumPy's own",
    "output_layer": LAYOUT,
    "transposed": LAYOUT,
    "columns": LAYOUT,
    "gradient_rows": "a part of `weight_gradient`",
    "activate_units": "a part of `forward`",
    "slope_units": "a part of `backward`",
    "begin_step": "a part of `step`",
    "update": "a part of `step`",
    "gather": LAYOUT,
    "weight_of": LAYOUT,
    "panel_count": LAYOUT,
    "add_scaled": "a loop of `penalty` and `decay`",
    "power": "NumPy's own",
    "cosine": "NumPy's own",
    "set_rate": "a line of the twin of `run`",
    "end_training": "lines of the twin of `run`",
    "end_validation": "lines of the twin of `run`",
    "run_words": LAYOUT,
    "run_blocks": LAYOUT,
    "take_rows_words": LAYOUT,
    "copy": "NumPy's own",
    "end_block": "lines of the twin of `run`",
    "predict_words": LAYOUT,
    "predict_blocks": LAYOUT,
    "predict_block": "a part of `predict`",
    "lbfgs_words": LAYOUT,
    "evaluate_block": "a part of `evaluate`",
    "end_steps": "lines of the twins of `lbfgs` and `marquardt`",
    "validate": "lines of the twin of `close_epoch`",
    "walked": LAYOUT,
    "marquardt_words": LAYOUT,
    "begin_batch": "lines of the twin of `marquardt`",
    "in_vectors": LAYOUT,
    "parts_of_batch": LAYOUT,
    "batch_rows": LAYOUT,
    "walk_batch": "lines of `damped_step`",
    "walk_part": "lines of `damped_step`",
    "clear": LAYOUT,
    "add_parts": "NumPy's own",
    "assemble_block": "lines of `damped_step`",
    "units_of": LAYOUT,
    "widen": "NumPy's own",
    "lay_activations": LAYOUT,
    "lay_deltas": "lines of the twin of `jacobian`",
    "tile_of": LAYOUT,
    "add_squares": "NumPy's own",
    "end_assembly": "lines of `damped_step`",
    "factorise": "lines of `damped_step`",
    "factor_rows": "NumPy's own",
    "rest_rows": "NumPy's own",
    "columns_of_chunk": LAYOUT,
    "do_chunk": LAYOUT,
    "rest_tile": TILE,
    "squares_tile": TILE,
    "solve": "NumPy's own",
    "try_block": "lines of `damped_step`",
    "compare": "lines of `damped_step`",
    "refuse": "lines of `damped_step`",
    "end_batch": "lines of the twin of `marquardt`",
    "end_batches": "lines of the twin of `marquardt`",
    "knows": "NumPy's own",
    "aim": "lines of the twin of `lbfgs`",
    "decide": "lines of `search_line`",
    "go": "a line of `search_line`",
    "holds": "a line of `search_line`",
    "shortened": "lines of `search_line`",
    "remember": "lines of `search_line`",
    "remembers": "a line of `two_loops`",
    "forget": "NumPy's own",
}
TEAM = "what one thread does in `kernels`, in chunks: compared with it bit by bit"
ONLY_COMPILED |= dict.fromkeys(
    re.findall(r"^def (\w+)", (ROOT / "fastbp/teams.py").read_text(encoding="utf-8"), re.MULTILINE), TEAM
)

# What users call has docstrings with numpydoc sections; inside the house formula, shapes and what is written do.
ROOMS = ["xor", "export", "plots", "sklearn"]  # whose names are public beside those of the package
WITH_SECTIONS = ["choices", "network", "trainer", "train", *ROOMS]
PUBLIC = {
    *fastbp.__all__,
    *(node.name for room in ROOMS for node in TREES[room].body if isinstance(node, ast.FunctionDef | ast.ClassDef)),
}

# Saved networks and compiled code on disk hold these numbers: rows may be added, never changed.
CODES = {
    "ACTIVATIONS": {
        "IDENTITY": 0,
        "SIGMOID": 1,
        "TANH": 2,
        "RELU": 3,
        "LEAKY_RELU": 4,
        "SOFTMAX": 5,
        "ELU": 6,
        "GELU": 7,
        "SILU": 8,
        "SOFTPLUS": 9,
        "EXPONENTIAL": 10,
    },
    "LOSSES": {
        "SQUARED_ERROR": 0,
        "BINARY_CROSS_ENTROPY": 1,
        "CROSS_ENTROPY": 2,
        "ABSOLUTE_ERROR": 3,
        "HUBER": 4,
        "POISSON": 5,
        "QUANTILE": 6,
        "GAUSSIAN_NLL": 7,
    },
    "optimisers": {
        "KEEP_GRADIENT": 0,
        "PLAIN_SGD": 1,
        "MOMENTUM_SGD": 2,
        "ADAM": 3,
        "RMSPROP": 4,
        "IRPROP": 5,
        "ADAMW": 6,
        "LIMITED_BFGS": 7,
        "MARQUARDT": 8,
    },
    "schedules": {
        "CONSTANT": 0,
        "EXPONENTIAL_DECAY": 1,
        "INVERSE_SCALING": 2,
        "COSINE": 3,
        "REDUCE_ON_PLATEAU": 4,
    },
}
# Where kernels read a setting: the place of its field, under its name after that of the code.
SETTINGS = {name.upper(): kind for name, kind in (choices.OPTIMIZERS | choices.SCHEDULES).items()}
SLOTS = {"LEARNING_RATE": 0, "SLOTS": max(len(dataclasses.fields(kind)) for kind in SETTINGS.values())} | {
    f"{'EXPONENTIAL_DECAY' if name == 'EXPONENTIAL' else name}_{field.name.upper()}": place
    for name, kind in SETTINGS.items()
    for place, field in enumerate(dataclasses.fields(kind))
    if field.name != "learning_rate"
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- reading the code ---------------------------------------------------------------------------------------------


def is_public(name: str) -> bool:
    return not name.startswith("_")


def decorators(node: Function | ast.ClassDef) -> set[str]:
    """Names of the decorators, bare: `kernel` for @kernel, @kernel(...) and @jit.kernel."""
    bare = (decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list)
    return {name.attr if isinstance(name, ast.Attribute) else ast.unparse(name) for name in bare}


def is_compiled(node: ast.AST) -> bool:
    return isinstance(node, Function) and not decorators(node).isdisjoint({"kernel", "inlined", "merged", "entry"})


def imported(tree: ast.Module) -> set[tuple[str, str]]:
    """(package, module or "") of whatever a module imports, inside its functions too."""
    paths = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = ["fastbp" if node.level else "", node.module or ""]
            paths += [".".join([*filter(None, parts), alias.name]) for alias in node.names]
    return {(package, rest[0] if rest else "") for package, *rest in (path.split(".") for path in paths)}


def definitions(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and methods with their dotted names."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and is_public(node.name):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            for member in node.body:
                if isinstance(member, Function) and is_public(member.name):
                    yield f"{node.name}.{member.name}", member


def compiled(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if is_compiled(node)]


def table(
    functions: Callable[[ast.Module], Iterable[tuple[str, ast.AST]]], modules: Iterable[str] = TREES
) -> pytest.MarkDecorator:
    """Parametrise over (module, name, node), called by their dotted names."""
    rows = [
        pytest.param(module, name, node, id=f"{module}.{name}")
        for module in modules
        if module in TREES
        for name, node in functions(TREES[module])
    ]
    return pytest.mark.parametrize(("module", "name", "node"), rows)


def parameters(node: Function) -> set[str]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return {argument.arg for argument in arguments if argument} - {"self", "cls"}


def documented_parameters(docstring: str) -> set[str]:
    """Names before the colons in the section Parameters: `X : array`, `beta1, beta2 : float`."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", docstring, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^([^\s:][^:\n]*)", section[1], re.MULTILINE) if section else []
    return {name.strip(" *") for line in lines for name in line.split(",")}


def has_section(docstring: str, title: str) -> bool:
    return re.search(rf"^{title}\n-+$", docstring, re.MULTILINE) is not None


def returns_something(node: Function) -> bool:
    return node.returns is not None and ast.unparse(node.returns) not in {"None", "NoReturn", "Never"}


# --- the tree -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git checkout")
def test_top_level_holds_only_the_agreed_files():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    expected = TOP_LEVEL
    actual = {path.split("/")[0] for path in listing.splitlines()}

    assert {name for name in actual - expected if not name.startswith(".")} == set()


def test_installed_package_is_the_checkout():
    expected = {path.name: path.read_bytes() for path in (ROOT / "fastbp").glob("*.py")}
    actual = {path.name: path.read_bytes() for path in Path(fastbp.__file__).parent.glob("*.py")}

    assert [name for name in expected | actual if expected.get(name) != actual.get(name)] == [], "install it again"


# --- imports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", TREES)
def test_imports_run_downwards(module):
    expected = MAY_IMPORT[module]
    actual = {name if name in TREES else "__init__" for package, name in imported(TREES[module]) if package == "fastbp"}

    assert actual <= expected


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_table_of_imports_runs_downwards(module):
    above = list(MAY_IMPORT)[: list(MAY_IMPORT).index(module)]

    assert MAY_IMPORT[module] <= set(above)


@pytest.mark.parametrize("module", WITHOUT_NUMBA)
def test_module_does_not_name_numba(module):
    packages = {package for package, _ in imported(TREES[module])}

    assert packages.isdisjoint({"numba", "llvmlite"})


@pytest.mark.parametrize("module", ["fastbp", *(f"fastbp.{module}" for module in WITHOUT_NUMBA)])
def test_import_does_not_load_numba(module):
    output_of("-c", f"import sys, {module}; assert not {{'numba', 'fastbp.kernels'}} & set(sys.modules)")


@pytest.mark.parametrize("heavy", ["numba", "numpy", "dataclasses", "inspect", "typing"])
def test_import_of_the_package_alone_does_not_load(heavy):
    code = "import sys; before = {*sys.modules}; import fastbp; print(*{*sys.modules} - before)"

    assert heavy not in output_of("-c", code).split()


@pytest.mark.parametrize("name", fastbp.__all__)
def test_public_name_can_be_reached_before_any_other(name):
    output_of("-c", f"import fastbp; assert {name!r} in dir(fastbp); assert fastbp.{name}.__name__ == {name!r}")


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import fastbp", "fastbp.train"),
        ("import fastbp.train", "fastbp.train"),
        ("from fastbp import train", "train"),
    ],
)
def test_train_can_be_called_however_it_is_imported(statement, name):
    call = f"import numpy; X = numpy.zeros((2, 1)); {name}(X, X, epochs=1, backend='numpy')"
    output_of("-c", f"{statement}; {call}; import inspect; assert 'X' in inspect.signature({name}).parameters")


# --- docstrings and examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", TREES)
def test_module_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])


@table(definitions)
def test_public_name_has_a_docstring(module, name, node):
    assert ast.get_docstring(node)


@table(lambda tree: [(node.name, node) for node in compiled(tree)])
def test_compiled_function_has_a_docstring(module, name, node):
    assert ast.get_docstring(node)


def functions_with_sections(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """What users call, without properties, which are documented as what they are."""
    for name, node in definitions(tree):
        called = name.split(".")[0] in PUBLIC and isinstance(node, Function)
        if called and decorators(node).isdisjoint({"property", "setter", "cached_property"}):
            yield name, node


@table(functions_with_sections, modules=WITH_SECTIONS)
def test_docstring_names_every_parameter(module, name, node):
    expected = parameters(node)
    actual = documented_parameters(ast.get_docstring(node) or "")

    assert actual == expected


@table(functions_with_sections, modules=WITH_SECTIONS)
def test_docstring_says_what_is_returned(module, name, node):
    expected = returns_something(node)
    actual = any(has_section(ast.get_docstring(node) or "", title) for title in ("Returns", "Yields"))

    assert actual == expected


@pytest.mark.parametrize("module", TREES)
def test_examples_of_module_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = fastbp if module == "__init__" else importlib.import_module(f"fastbp.{module}")

    with mock.patch.dict(os.environ):
        assert doctest.testmod(loaded).failed == 0


def test_examples_of_readme_run(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    assert all(block.startswith(">>> ") for block in blocks)

    # A fence would be read as the last line of the expected output; an empty line ends it.
    session = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)

    with mock.patch.dict(os.environ):
        assert runner.run(examples).failed == 0


# --- compiled code ------------------------------------------------------------------------------------------------


def allocates(call: ast.Call) -> bool:
    """Whether a call of NumPy makes an array: everything but a scalar type or an element-wise function does."""
    function = call.func
    if not (isinstance(function, ast.Attribute) and ast.unparse(function.value) in {"np", "numpy"}):
        return False
    value = getattr(np, function.attr)
    return not (isinstance(value, np.ufunc) or (isinstance(value, type) and issubclass(value, np.generic)))


def formats(node: ast.AST) -> bool:
    """Whether an expression formats a string."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in {"print", "str", "repr"} or ast.unparse(node.func).endswith(".format")
    return isinstance(node, ast.JoinedStr)


def faults(function: Function) -> Iterator[str]:
    """What a compiled function must not do, with its line."""
    for node in ast.walk(function):
        match node:
            case ast.Raise() | ast.Assert():
                yield f"line {node.lineno}: raises"
            case ast.Subscript(ctx=ast.Store()) if any(isinstance(part, ast.Slice) for part in ast.walk(node.slice)):
                yield f"line {node.lineno}: assigns to a slice"
            case ast.List() | ast.ListComp() | ast.Dict() | ast.DictComp() | ast.Set() | ast.SetComp():
                yield f"line {node.lineno}: allocates"
            case ast.Call() if allocates(node):
                yield f"line {node.lineno}: allocates"
        if formats(node):
            yield f"line {node.lineno}: formats a string"


def test_kernels_are_found():
    """Otherwise the tests below would have no rows, and be skipped."""
    assert all(compiled(TREES[module]) for module in KERNELS)


@table(lambda tree: [(node.name, node) for node in compiled(tree)])
def test_compiled_function_only_loops(module, name, node):
    assert list(faults(node)) == []


@pytest.mark.parametrize("module", ["simd", *KERNELS])
def test_compiled_module_sets_no_options(module):
    names = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(TREES[module])}
    keywords = {node.arg for node in ast.walk(TREES[module]) if isinstance(node, ast.keyword)}

    assert (names | keywords).isdisjoint({"fastmath", "parallel", "prange"})


@table(lambda tree: [(node.name, node) for node in compiled(tree) if is_public(node.name)], modules=KERNELS)
def test_kernel_has_a_twin_in_the_reference(module, name, node):
    twins = {twin.name for twin in TREES["reference"].body if isinstance(twin, Function)}

    assert (name in twins) != (name in ONLY_COMPILED)


# --- codes --------------------------------------------------------------------------------------------------------


def constants():
    return {name: value for name, value in vars(choices).items() if name.isupper() and isinstance(value, int)}


def test_codes_are_append_only():
    expected = {name: code for family in CODES.values() for name, code in family.items()}
    actual = {name: value for name, value in constants().items() if name not in SLOTS}

    assert actual == expected


def test_slots_are_the_places_of_the_fields():
    expected = {name: place for name, place in SLOTS.items() if name in constants()}
    actual = {name: place for name, place in constants().items() if name in SLOTS}

    assert actual == expected
    assert SLOTS.keys() - actual.keys() == {"ADAMW_BETA1", "ADAMW_BETA2", "ADAMW_EPSILON"}  # those of Adam
    assert all(dataclasses.fields(kind)[0].name == "learning_rate" for kind in choices.OPTIMIZERS.values())


def test_settings_that_do_not_fit_are_refused(monkeypatch):
    network = fastbp.Network((2, 3, 1))
    monkeypatch.setattr("fastbp.workspace.SLOTS", 4)

    with pytest.raises(ValueError, match="could not broadcast"):
        workspace.make_plan(network, 7, 7, fastbp.Adam(learning_rate=0.123))


@pytest.mark.parametrize("family", ["ACTIVATIONS", "LOSSES"])
def test_names_keep_their_codes(family):
    expected = {name.lower(): code for name, code in CODES[family].items()}
    actual = {name: row.code for name, row in getattr(choices, family).items()}

    assert actual == expected
