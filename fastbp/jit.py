"""The one decorator of compiled code, its options with their reasons, and the guarded disk cache.

Numba's own cache does not see edits in other files than the function's own, fails for ever on a damaged file (or aborts
the process) and raises at import where it cannot write. This one keeps one file per compiled signature,

    <installation>-<sources>-<module>.<function>-<key>.bin

whose name says all that the code depends on and whose first 32 bytes are the SHA-256 of that name and of the rest.
Files are replaced whole and there is no index, so processes need no lock: whoever is last has written the same code.
Whatever goes wrong, the function is compiled as if there were no cache, with one warning per process.
"""

# mypy: allow-untyped-calls, allow-subclassing-any
# Numba has types for what it documents, and none for its cache.

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
from numba import _dynfunc
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

Function = TypeVar("Function", bound=Callable[..., Any])

config: Any = numba.config  # filled from the environment when Numba is imported: mypy sees no attribute
njit: Any = numba.njit  # its types know nothing of the two options of kernels

DISABLED = bool(config.DISABLE_JIT)  # NUMBA_DISABLE_JIT=1: functions stay Python's, which tiles cannot be
NOTICE_SECONDS = 1.0  # of compiling, after which a terminal is told what it waits for

_log = logging.getLogger(__name__)


class LinkedLibrary(JITCodeLibrary):
    """The code of a kernel, which is only linked into the entries that call it, and optimised there.

    Numba would optimise a function with all that it calls, and generate machine code, at each level of calls.
    """

    def finalize(self) -> None:
        """Gather the code of all that is called."""
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


class KernelCompiler(Compiler):
    """Numba's compiler, without machine code that Python could call."""

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        super().__init__(typing, target, library or LinkedLibrary(target.codegen(), "kernel"), *rest)
        self.state.targetctx.get_executable = _without_code


def _without_code(library: Any, description: Any, environment: Any) -> Any:
    """Make the function object by which Numba finds a kernel; to call it would crash."""
    return _dynfunc.make_function(description.lookup_module(), description.qualname, "", 0, environment, (library,))


# No fastmath of any kind and no parallel: both would change bits.
OPTIONS = {
    "error_model": "numpy",  # x / 0 is inf or nan, as in the reference; Python's model tests every divisor and raises
    "nogil": True,  # other Python threads go on, and several networks train side by side
}
# Only compiled code calls a kernel. Without the wrappers that Python and C would call, twelve kernels compile in 1.7 s
# instead of 2.2 s.
KERNEL_OPTIONS = OPTIONS | {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": KernelCompiler,
    "forceinline": False,  # which a kernel would else inherit from a caller that is compiled into its own
}

# The settings of Numba that change machine code; its own cache has only the CPU in its key, and the CPU's features.
SETTINGS = (
    "OPT",
    "BOUNDSCHECK",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
    "DEBUGINFO_DEFAULT",
    "DEBUG_NRT",
    "ENABLE_PROFILING",
    "EXTEND_VARIABLE_LIFETIMES",
)


def kernel(function: Function) -> Function:
    """Compile a function that only compiled code calls, on its first use.

    It has no cache of its own: the cached code of an entry contains its kernels.

    Examples
    --------
    >>> @kernel
    ... def half(x):
    ...     return x / 2
    >>> @entry
    ... def quarter(x):
    ...     return half(half(x))
    >>> quarter(1.0)
    0.25
    """
    return cast(Function, njit(**KERNEL_OPTIONS)(function))


def inlined(function: Function) -> Function:
    """Compile a kernel into its callers, for one whose call would cost a tenth of its work."""
    return cast(Function, njit(**KERNEL_OPTIONS | {"forceinline": True})(function))


def merged(function: Function) -> Function:
    """Compile a kernel into its one caller, merged before types are inferred: faster to compile if it is long."""
    return cast(Function, njit(**KERNEL_OPTIONS, inline="always")(function))


def entry(function: Function) -> Function:
    """Compile a function that Python calls, or load it from the disk cache, on its first call with each signature.

    Decorating touches no file. Functions of other packages are not cached, since edits of them would not be noticed.
    """
    compiled = njit(**OPTIONS)(function)
    if not DISABLED and function.__module__.startswith(f"{__package__}."):
        compiled._cache = GuardedCache(function)  # what Dispatcher.enable_caching() does, with another class
        compiled._compiler.compile = announced(function.__name__)(compiled._compiler.compile)
    return cast(Function, compiled)


@contextlib.contextmanager
def announced(name: str) -> Iterator[None]:
    """Log that an entry is compiled, and how long it took; tell a terminal as soon as that is long.

    Named here and not where the cache finds nothing, since compiling may also end by an error or by Ctrl-C.
    """
    _log.info("compiling %s", name)
    began = time.perf_counter()
    timer = threading.Timer(NOTICE_SECONDS, _tell_terminal)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no further thread can be started, as at the end of Python
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident:
            timer.join()  # a fork right after it would warn of a second thread
    _log.info("compiled %s in %.2f s", name, time.perf_counter() - began)


def _tell_terminal() -> None:
    with contextlib.suppress(Exception):  # stderr may be None, closed, or anything else that a program puts there
        if sys.stderr.isatty():
            sys.stderr.write("fastbp: compiling kernels, once; this takes some seconds ...\n")
            sys.stderr.flush()


def cache_directory() -> Path | None:
    """Say where compiled code is kept. Nothing is created or checked.

    Returns
    -------
    Path or None
        ``fastbp`` inside ``NUMBA_CACHE_DIR`` if that is set, else inside the user's cache directory:
        ``XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``LOCALAPPDATA``.
        None if nothing is kept: ``FASTBP_CACHE=0`` or ``NUMBA_DISABLE_JIT=1`` is set, the user has no home
        directory, or the package has no source files in which to notice an edit (a zip archive, a frozen program).

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, FASTBP_CACHE="0"):
    ...     print(cache_directory())
    None
    """
    if DISABLED or _SOURCES is None or os.environ.get("FASTBP_CACHE") == "0":
        return None
    if config.CACHE_DIR:
        parent = config.CACHE_DIR
    elif sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        parent = "~/Library/Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME", "")
        parent = parent if os.path.isabs(parent) else "~/.cache"  # its specification says to ignore relative paths
    try:
        return Path(parent).expanduser() / "fastbp"
    except RuntimeError:  # no home
        return None


class GuardedCache(FunctionCache):
    """The disk cache of one function. Numba calls it, one thread at a time, with its compiler lock held."""

    _warned = False  # of the class: one warning per process

    def __init__(self, function: Callable[..., Any]) -> None:
        # Numba's own __init__ would look for a writable directory here, at import, and raise if there is none.
        self._py_func = function
        self._name = repr(function)
        name = f"{function.__module__}.{function.__qualname__}".replace("<", "").replace(">", "")  # as Windows wants it
        self._prefix = f"{_INSTALLATION}-{_SOURCES}-{name}-"
        self.enable()

    @property
    def cache_path(self) -> str | None:
        """The directory, as the statistics of a function show it."""
        directory = cache_directory()
        return None if directory is None else str(directory)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code of a signature, or None if it is to be compiled."""
        target_context.refresh()  # as Numba does first: it registers what loaded code may refer to
        try:
            file = self._file(sig, target_context.codegen())
            if file is None:
                return None
            content = file.read_bytes()
            if content[:32] != _digest(file, content[32:]):  # unpickled, it might abort the process
                raise ValueError(f"{file} is damaged: its SHA-256 does not match")
            return CompileResult._rebuild(target_context, *pickle.loads(content[32:]))
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever it is, compiling helps
            self._warn(error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep freshly compiled code, and remove what was kept for older sources of this installation."""
        file = None
        try:
            file = self._file(sig, data.codegen)
            if file is None:
                return
            if data.library.has_dynamic_globals:
                raise ValueError(f"the code of {self._name} contains addresses of this process")
            content = dumps(data._reduce())
            _replace(file, _digest(file, content) + content)
            for other in file.parent.glob(f"{_INSTALLATION}-*"):
                if not other.name.startswith(f"{_INSTALLATION}-{_SOURCES}-"):
                    other.unlink(missing_ok=True)
        except Exception as error:  # the function is compiled, and its result must not be lost
            # On Windows a file that another process has open cannot be replaced or removed, and need not be.
            if file is None or not os.path.exists(file):
                self._warn(error)

    def flush(self) -> None:
        """Remove the function's files, as Numba's ``recompile`` asks."""
        directory = cache_directory()
        for file in directory.glob(f"{self._prefix}*") if directory else ():
            file.unlink(missing_ok=True)

    def _file(self, signature: Any, codegen: Any) -> Path | None:
        """Name the file of a signature. None if there is no cache; OSError if its directory cannot be used."""
        directory = cache_directory()
        if directory is None or not self._enabled:
            return None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32":
            status = directory.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                # The files are pickles: whoever writes one runs code as this user. The digest is no signature.
                raise PermissionError(f"{directory} must belong to this user, and nobody else may write to it")
        settings = [(name, getattr(config, name, None)) for name in SETTINGS]
        # Hashed as text: how a type pickles depends on what the process compiled before. Numba's part is the signature,
        # the CPU, the bytecode and the closure; the line tells apart functions that differ in constants alone.
        line = self._py_func.__code__.co_firstlineno
        key = sha256(repr((self._index_key(signature, codegen), line, settings)).encode()).hexdigest()[:16]
        return directory / f"{self._prefix}{key}.bin"

    def _warn(self, error: Exception) -> None:
        """Say once in a process what is wrong with the cache."""
        if not GuardedCache._warned:
            GuardedCache._warned = True
            warnings.warn(
                f"The cache of compiled code in {cache_directory()} failed, and code is compiled anew. Results are not "
                f"affected. ({type(error).__name__}: {error}) NUMBA_CACHE_DIR sets another directory, FASTBP_CACHE=0 "
                "does without.",
                RuntimeWarning,
                stacklevel=3,
            )


def _digest(file: Path, content: bytes) -> bytes:
    """Hash content together with the file's name, so that a good file under another's name is noticed too."""
    return sha256(file.name.encode() + b"\0" + content).digest()


def _replace(file: Path, content: bytes) -> None:
    """Write a file so that whoever reads it meanwhile gets the old one or the new one, whole."""
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _hash_sources(package: Path) -> str | None:
    """Hash the source files of the package and the versions of what compiles them; None if there are none to read."""
    digest = sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    try:
        files = sorted(package.glob("[!.]*.py"))  # no dot files: editors keep locks named .#module.py
        for file in files:
            content = file.read_bytes()
            digest.update(f"\0{file.name}\0{len(content)}\0".encode() + content)
    except OSError:
        return None
    return digest.hexdigest()[:16] if files else None


# A fork waits until no other thread compiles, up to ten seconds: the child would inherit the lock of the compiler held
# by a thread that it does not have, and its first call would wait for ever. So it still does where another thread is
# importing when it forks, which holds for all modules of Python.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )

# Two installations must not remove each other's files; an editable one may serve several environments.
_INSTALLATION = sha256(os.fsencode(f"{Path(__file__).parent}\0{sys.prefix}")).hexdigest()[:8]
# Now and not on the first call: a file edited while the program runs is not the one that was imported.
_SOURCES = _hash_sources(Path(__file__).parent)
