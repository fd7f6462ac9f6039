"""The decorators of compiled code and their disk cache, tried in fresh processes on a throw-away package."""

import errno
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from helpers import output_of

from fastbp import jit

posix = pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")

INNER = """
from .jit import kernel

@kernel
def scale(x):
    return x * 2
"""
OUTER = """
from .inner import scale
from .jit import entry

@entry
def answer(x):
    return scale(x) + 1
"""
# Two signatures make two files. What happens outside the `with` may warn of nothing, since warnings are errors.
CALLS = """
import json, sys, warnings
from tiny import jit
from tiny.outer import answer
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    answers = [answer(3.0), answer(3)]
print(json.dumps({{
    "answers": answers,
    "hits": sum(answer.stats.cache_hits.values()),
    "misses": sum(answer.stats.cache_misses.values()),
    "warnings": [(warning.category.__name__, str(warning.message)) for warning in caught],
}}))
"""
COLD = {"answers": [7.0, 7], "hits": 0, "misses": 2, "warnings": []}
WARM = {"answers": [7.0, 7], "hits": 2, "misses": 0, "warnings": []}


def python(package, cache, code, **variables):
    """Run code in a new process that sees the package and the cache; return what it prints."""
    variables = {"PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(cache)} | variables
    return output_of("-c", code, without=["NUMBA_", "FASTBP_"], **variables)


def call(package, cache, before="", **environment):
    """Call the entry of the package with a float and an int in a new process."""
    return json.loads(python(package, cache, CALLS.format(before=before), **environment))


def files(cache):
    return sorted(cache.rglob("*.bin*"))  # with what is left of interrupted writes


def assert_compiled_with_one_warning(actual, *words):
    assert actual | {"hits": 0, "misses": 2, "warnings": []} == COLD
    [(category, message)] = actual["warnings"]
    assert category == "RuntimeWarning"
    assert [word for word in words if word not in message] == []


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    directory = tmp_path_factory.mktemp("package") / "tiny"
    directory.mkdir()
    shutil.copy(jit.__file__, directory)
    for name, text in {"__init__.py": "", "inner.py": INNER, "outer.py": OUTER}.items():
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="module")
def filled(package, tmp_path_factory):
    """Fill a cache in a first process."""
    cache = tmp_path_factory.mktemp("filled")
    assert call(package, cache) == COLD
    return cache


@pytest.fixture
def cache(filled, tmp_path):
    """Copy the filled cache."""
    return shutil.copytree(filled, tmp_path / "cache")


def test_second_process_loads_everything(package, cache):
    before = [(file.name, file.stat().st_mtime_ns) for file in files(cache)]
    expected = WARM
    actual = call(package, cache)

    assert actual == expected
    assert [(file.name, file.stat().st_mtime_ns) for file in files(cache)] == before


def test_edit_of_another_file_is_noticed_and_old_code_removed(package, cache, tmp_path):
    python(package, cache, "from tiny.outer import answer; answer(3j)")  # which nobody asks for later
    before = files(cache)
    foreign = before[0].with_name("00000000" + before[0].name[8:])  # as another installation would name it
    foreign.write_bytes(b"")
    saved = shutil.copytree(package, tmp_path / "saved")
    try:
        (package / "inner.py").write_text(INNER.replace("* 2", "* 5"))
        expected = COLD | {"answers": [16.0, 16]}
        actual = call(package, cache)
    finally:
        shutil.copytree(saved, package, dirs_exist_ok=True)

    assert actual == expected
    assert len(before) == 3
    assert foreign.exists()
    assert len(set(files(cache)) - {foreign}) == 2
    assert not set(files(cache)) & set(before)


def test_settings_of_the_compiler_are_told_apart(package, cache):
    names = {file.name for file in files(cache)}
    expected = COLD
    actual = call(package, cache, NUMBA_BOUNDSCHECK="1")

    assert actual == expected
    assert names < {file.name for file in files(cache)}


def file_of(function, signature=(), processor="generic"):
    """Name the file of a function's code for a signature and a processor."""
    return jit.GuardedCache(function)._file(signature, SimpleNamespace(magic_tuple=lambda: processor))


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Put this process's cache elsewhere."""
    monkeypatch.delenv("FASTBP_CACHE", raising=False)
    monkeypatch.setattr(jit.config, "CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("setting", jit.SETTINGS)
def test_every_setting_makes_another_file(setting, directory, monkeypatch):
    before = file_of(files)
    monkeypatch.setattr(jit.config, setting, "another")  # and fails if Numba knows no such setting
    after = file_of(files)

    assert after != before


def test_signature_processor_and_constants_make_another_file(directory):
    def make(number):
        return lambda: number

    one, other = (
        lambda: 1,
        lambda: 2,
    )
    names = {file_of(one), file_of(other), file_of(one, (1,)), file_of(one, (), "another")}
    names |= {file_of(make(number)) for number in (1, 2)}

    assert len(names) == 6
    assert {file.parent for file in names} == {jit.cache_directory()}


def is_whole(file):
    """Say whether a process would load the file (a process that tried would take a second)."""
    content = file.read_bytes()
    return content[:32] == jit._digest(file, content[32:])


def flip(position):
    """Flip a bit of a file, at a fraction of its length."""

    def damage(content):
        at = int(position * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return damage


DAMAGES = {
    "empty": lambda content: b"",
    "within the digest": lambda content: content[:20],
    "digest alone": lambda content: content[:32],
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "garbage": lambda content: bytes(range(256)) * 20,
} | {f"bit flipped at {position}": flip(position) for position in (0, 0.01, 0.3, 0.6, 0.99, 1)}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_never_unpickled(damage, directory, monkeypatch):
    context = SimpleNamespace(refresh=lambda: None, codegen=lambda: SimpleNamespace(magic_tuple=lambda: "generic"))
    guarded, file = jit.GuardedCache(files), file_of(files)
    monkeypatch.setattr(jit.GuardedCache, "_warned", False)
    monkeypatch.setattr(jit, "pickle", None)
    content = bytes(range(256)) * 100
    file.write_bytes(damage(jit._digest(file, content) + content))
    with pytest.warns(RuntimeWarning, match="is damaged: its SHA-256 does not match"):
        actual = guarded.load_overload((), context)

    assert actual is None


@pytest.mark.parametrize("damage", ["empty", "half", "bit flipped at 0.6"])
def test_damaged_files_are_replaced_with_one_warning(package, cache, damage):
    for file in files(cache):
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    actual = call(package, cache)

    assert_compiled_with_one_warning(actual, "damaged", str(cache), ".bin")
    assert [is_whole(file) for file in files(cache)] == [True, True]


def test_good_file_under_the_name_of_another_is_damaged(package, cache):
    one, other = files(cache)
    shutil.copy(one, other)
    actual = call(package, cache)

    assert actual["answers"] == [7.0, 7]
    assert (actual["hits"], actual["misses"], len(actual["warnings"])) == (1, 1, 1)
    assert call(package, cache) == WARM


def test_good_digest_over_what_cannot_be_loaded_is_damaged(package, cache):
    for file in files(cache):
        content = b"not a pickle"
        file.write_bytes(jit._digest(file, content) + content)
    actual = call(package, cache)

    assert_compiled_with_one_warning(actual, "UnpicklingError", str(cache))
    assert min(file.stat().st_size for file in files(cache)) > 1000


def test_missing_file_is_made_again_in_silence(package, cache):
    files(cache)[0].unlink()
    expected = WARM | {"hits": 1, "misses": 1}
    actual = call(package, cache)

    assert actual == expected
    assert call(package, cache) == WARM


def test_directory_that_cannot_be_made_costs_one_warning(package, tmp_path):
    (tmp_path / "file").write_text("in the way")
    actual = call(package, tmp_path / "file")

    assert_compiled_with_one_warning(actual, str(tmp_path / "file"), "FASTBP_CACHE=0")


def test_file_in_place_of_the_directory_costs_one_warning(package, tmp_path):
    (tmp_path / "fastbp").write_text("in the way")
    actual = call(package, tmp_path)

    assert_compiled_with_one_warning(actual, "FileExistsError", str(tmp_path / "fastbp"))
    assert (tmp_path / "fastbp").read_text() == "in the way"


def test_file_that_cannot_be_replaced_costs_one_warning(package, cache):
    for file in files(cache):
        file.unlink()
        file.mkdir()
    actual = call(package, cache)

    assert_compiled_with_one_warning(actual, str(cache))
    assert not [file for file in files(cache) if file.is_file()]


FULL = {
    "no space": f"""
def replace(file, content):
    raise OSError({errno.ENOSPC}, "No space left on device", str(file))
jit._replace = replace
""",
    "no more bytes": """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
""",
}


@pytest.mark.parametrize("before", [FULL["no space"], pytest.param(FULL["no more bytes"], marks=posix)], ids=FULL)
def test_full_disk_costs_one_warning_and_leaves_no_part(package, tmp_path, before):
    actual = call(package, tmp_path, before)

    assert_compiled_with_one_warning(actual, "OSError", str(tmp_path))
    assert files(tmp_path) == []


@posix
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_directory_that_others_can_write_to_is_refused(directory, mode):
    file_of(files).parent.chmod(mode)
    with pytest.raises(PermissionError, match="nobody else may write to it"):
        file_of(files)


@posix
def test_directory_that_is_refused_costs_one_warning(package, cache):
    (cache / "fastbp").chmod(0o1777)
    actual = call(package, cache)

    assert_compiled_with_one_warning(actual, "PermissionError", str(cache / "fastbp"))


@posix
def test_directory_of_somebody_else_is_refused(package, cache):
    actual = call(package, cache, f"import os; os.geteuid = lambda: {os.geteuid() + 1}")

    assert_compiled_with_one_warning(actual, "PermissionError", str(cache / "fastbp"))


@posix
def test_new_directory_is_private(package, filled):
    expected = 0o700
    actual = (filled / "fastbp").stat().st_mode & 0o777

    assert actual == expected


def test_nothing_is_kept_with_fastbp_cache_0(package, tmp_path):
    expected = COLD
    actual = call(package, tmp_path / "cache", FASTBP_CACHE="0")

    assert actual == expected
    assert list(tmp_path.iterdir()) == []


def test_functions_stay_python_with_numba_disable_jit(package, tmp_path):
    expected = "7 True None"
    code = "from tiny import jit, outer; print(outer.answer(3), jit.DISABLED, jit.cache_directory())"
    actual = python(package, tmp_path / "cache", code, NUMBA_DISABLE_JIT="1")

    assert actual.strip() == expected
    assert list(tmp_path.iterdir()) == []


def test_importing_touches_no_cache(package, tmp_path):
    python(package, tmp_path / "cache", "import tiny.outer")

    assert list(tmp_path.iterdir()) == []


def test_processes_may_fill_a_cache_at_once(package, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        actual = list(pool.map(lambda _: call(package, tmp_path), range(3)))

    assert [result["answers"] for result in actual] == [[7.0, 7]] * 3
    assert [result["warnings"] for result in actual] == [[]] * 3
    assert len(files(tmp_path)) == 2
    assert call(package, tmp_path) == WARM


def test_recompiling_replaces_the_files(package, cache):
    before = {file.name: file.stat().st_mtime_ns for file in files(cache)}
    python(package, cache, "from tiny.outer import answer; answer(3); answer(3.0); answer.recompile()")
    after = {file.name: file.stat().st_mtime_ns for file in files(cache)}

    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in after)


PLACES = [  # platform, environment, directory below home
    ("linux", {}, ".cache"),
    ("linux", {"XDG_CACHE_HOME": "~/elsewhere"}, "elsewhere"),
    ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache"),
    ("darwin", {"XDG_CACHE_HOME": "~/elsewhere"}, "Library/Caches"),
    ("win32", {"LOCALAPPDATA": "~/elsewhere"}, "elsewhere"),
    ("win32", {}, "AppData/Local"),
    ("linux", {"NUMBA_CACHE_DIR": "~/numba", "XDG_CACHE_HOME": "~/elsewhere"}, "numba"),
]


@pytest.mark.parametrize(("platform", "environment", "place"), PLACES)
def test_directory_follows_the_platform(platform, environment, place, tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "FASTBP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    environment = {name: value.replace("~", str(tmp_path)) for name, value in environment.items()}
    monkeypatch.setattr(jit.config, "CACHE_DIR", environment.pop("NUMBA_CACHE_DIR", ""))
    for name, value in (environment | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    expected = tmp_path / place / "fastbp"
    actual = jit.cache_directory()

    assert actual == expected


def test_package_without_sources_is_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "_SOURCES", jit._hash_sources(tmp_path / "package.zip"))

    assert jit.cache_directory() is None


def test_sources_are_told_apart_by_name_and_content(tmp_path):
    contents = [{"a.py": "1"}, {"a.py": "2"}, {"b.py": "1"}, {"a.py": "1", "b.py": ""}, {"a.py": "", "b.py": "1"}]
    hashes = set()
    for number, content in enumerate(contents):
        (tmp_path / str(number)).mkdir()
        for name, text in content.items():
            (tmp_path / str(number) / name).write_text(text)
        hashes.add(jit._hash_sources(tmp_path / str(number)))

    assert len(hashes) == len(contents)


def test_lock_file_of_an_editor_is_no_source(tmp_path):
    (tmp_path / "a.py").write_text("1")
    expected = jit._hash_sources(tmp_path)
    (tmp_path / ".#a.py").write_text("somebody@somewhere")
    actual = jit._hash_sources(tmp_path)

    assert actual == expected


def test_function_of_another_package_is_not_cached():
    expected = None
    actual = jit.entry(lambda x: x).stats.cache_path

    assert actual == expected


def test_options_keep_bits():
    options = jit.entry(lambda x: x).targetoptions

    assert not {"fastmath", "parallel"} & options.keys()
    assert jit.kernel(lambda x: x).targetoptions.items() > options.items()


def test_division_by_zero_is_infinite():
    expected = float("inf")
    actual = jit.entry(lambda x: 1.0 / x)(0.0)

    assert actual == expected


# --- what is said -------------------------------------------------------------------------------------------------

# What stands for stderr, and the seconds of compiling after which it is told.
SAYS = """
import io, json, logging, sys, threading, warnings
import scipy.linalg  # Numba imports it when it compiles, which NumPy 2.0 does not survive without a stderr
from tiny import jit
from tiny.outer import answer

class Stderr(io.StringIO):
    isatty = lambda self: {terminal}

class Records(logging.Handler):
    def emit(self, record):
        texts.append(record.getMessage())

texts = []
logging.getLogger("tiny.jit").addHandler(Records())
logging.getLogger("tiny.jit").setLevel("INFO")
stderr, kept, jit.NOTICE_SECONDS = {stderr}, sys.stderr, {seconds}
sys.stderr = stderr
try:
    answer({value})
except Exception as error:
    texts.append(type(error).__name__)
sys.stderr = kept
assert threading.active_count() == 1
print(json.dumps([stderr and stderr.getvalue(), texts]))
"""
NOTICE = "fastbp: compiling kernels, once; this takes some seconds ...\n"
NEVER = "threading.TIMEOUT_MAX"


def said(package, cache, terminal=True, stderr="Stderr()", seconds="0", value="3.0", **variables):
    """Return what a call says on stderr, and to the log with all figures as 0."""
    code = SAYS.format(terminal=terminal, stderr=stderr, seconds=seconds, value=value)
    shown, texts = json.loads(python(package, cache, code, **variables))
    return shown, [re.sub(r"\d+\.\d\d", "0.00", text) for text in texts]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, NOTICE),
        ({"FASTBP_CACHE": "0"}, NOTICE),
        ({"seconds": NEVER}, ""),
        ({"terminal": False}, ""),
        ({"terminal": "1 / 0"}, ""),
        ({"stderr": "None"}, None),
    ],
    ids=str,
)
def test_first_call_says_that_it_compiles(settings, expected, package, tmp_path):
    actual, logged = said(package, tmp_path, **settings)

    assert actual == expected
    assert logged == ["compiling answer", "compiled answer in 0.00 s"]


def test_nothing_is_said_of_code_from_the_cache(package, tmp_path):
    said(package, tmp_path)

    assert said(package, tmp_path) == ("", [])


def test_compiling_that_fails_is_not_said_to_have_ended(package, tmp_path):
    shown, logged = said(package, tmp_path, seconds=NEVER, value="'text'")

    assert shown == ""
    assert logged == ["compiling answer", "TypingError"]
