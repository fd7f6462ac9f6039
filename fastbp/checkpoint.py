"""Files: metadata and arrays, saved so that a crash loses nothing and read without trusting a byte.

A file is NumPy's `.npz`, an uncompressed zip with one `.npy` member per array, so np.load(path) opens it too. The array
"metadata" is JSON as uint8: {"format": "fastbp", "version": 1, "fastbp": its version, "metadata": {...}}. Zip members
carry a CRC-32, which finds damage. It does not keep out malice: a hostile file can hold any finite weights, but it
cannot run code, crash the process or take more memory than a few times its own size.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fastbp import checks
from fastbp.version import __version__

Array = NDArray[Any]
Path = str | os.PathLike[str]

_FORMAT = "fastbp"
_VERSION = 1
_DTYPES = {"<f4": np.float32, "<f8": np.float64, "<i8": np.int64, "|u1": np.uint8}
_MOST_HEADER = 1000  # bytes to the end of the header of a .npy, which NumPy parses with ast: ours have 128
_MOST_METADATA = 2**20  # bytes of JSON, whose objects take twenty times that
_MOST_LEVELS = 10  # of lists and objects inside each other: ours have five
_ZIP_FIELDS = 76  # bytes that a zip spends on a member beside its content and twice its name, and 22 at its end
_ZIP_END = 22
_ZIP64 = 2**30  # bytes from which a zip may need further fields


def write(path: Path, metadata: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Save both to exactly this path, as `replace` does."""
    name = _name(path)
    data = _encode(metadata, arrays)
    _decode(data)  # what cannot be read must not replace what can
    replace(name, data)


def replace(path: Path, data: bytes) -> None:
    """Make a file of exactly this path and these bytes: what stood there is lost only once all is safely on the disk.

    A link is followed: the file it points to is replaced, with its permissions kept. A kill at the wrong moment may
    leave a file `.NAME.xxxxxxxxxxxxxxxx.tmp` beside it, which can be deleted. An OSError means that the old file is
    untouched; only if the disk fails to confirm the new name, which comes last, the new one is there, and whole.
    """
    name = _name(path)
    target = os.path.realpath(name)
    replaced = os.stat(target) if os.path.exists(target) else None
    if replaced and not stat.S_ISREG(replaced.st_mode):  # os.replace would put a file in the place of /dev/null
        kind, text = (errno.EISDIR, "is a directory") if os.path.isdir(target) else (errno.EEXIST, "not a regular file")
        raise OSError(kind, text, name)
    directory, base = os.path.split(target)
    temporary = os.path.join(directory, f".{base[:32]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if replaced:
                os.chmod(temporary, stat.S_IMODE(replaced.st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # a Ctrl-C too
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def _name(path: Path) -> str:
    """Return the path of a file to be written."""
    name = checks.path(path)
    if os.path.basename(name) in ("", os.curdir, os.pardir):  # realpath() would make a file of "directory/"
        raise IsADirectoryError(errno.EISDIR, "is a directory", name)
    return name


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what `write` saved; CheckpointError for any other file, ResourceError if it does not fit into memory."""
    name = checks.path(path)
    with open(name, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        checks.memory(3 * size, f"the file {name!r}")  # its bytes, those of a member and their array
        with blaming(name):
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device, which might never end
                raise ValueError("it is not a regular file")
        data = file.read(size)
    with blaming(name):
        return _decode(data)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a writer at the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn whatever is raised inside into a CheckpointError that names the file.

    For what is done with bytes at hand, where nothing but these bytes can be at fault: zipfile, json and NumPy raise
    nine classes on damaged ones, and more where their authors did not look.
    """
    try:
        yield
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise checks.CheckpointError(
            f"{os.fspath(path)!r} is not a file that fastbp can load: {reason[:300]}"
        ) from error


def _encode(metadata: dict[str, Any], arrays: dict[str, Array]) -> bytes:
    """Return the bytes of a file: the same for the same content."""
    envelope = {
        "format": _FORMAT,
        "version": _VERSION,
        "fastbp": __version__,
        "metadata": metadata,
    }
    text = json.dumps(envelope).encode()
    if len(text) > _MOST_METADATA:
        raise checks.ParameterError(
            f"must have fewer classes to be saved: all settings may take {_MOST_METADATA:,} bytes, got {len(text):,}",
            "class_weight",
        )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in {"metadata": np.frombuffer(text, np.uint8), **arrays}.items():
            member = io.BytesIO()
            little_endian = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            npy.write_array(member, little_endian, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getbuffer())  # ZipInfo's own date: 1980
    return stream.getvalue()


def _decode(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return metadata and arrays, or raise nearly anything: the callers know the name of the file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("a member is there twice")
        if "metadata.npy" not in members:
            raise ValueError("the array 'metadata' is missing")
        # Before all else, since a later version may store the rest in ways unknown to this one.
        metadata = _metadata(_array("metadata", _content(archive, members["metadata.npy"])))
        total = _ZIP_END + sum(_ZIP_FIELDS + 2 * len(name) + info.file_size for name, info in members.items())
        if total > len(data) or (total < len(data) < _ZIP64):  # members that overlap; bytes of no member
            raise ValueError(f"its members need {total} bytes, the file has {len(data)}")
        del members["metadata.npy"]
        arrays = {}
        for member, info in members.items():
            name = member.removesuffix(".npy")
            if name == member:
                raise ValueError(f"the member {member[:80]!r} is not an array")
            arrays[name] = _array(name, _content(archive, info))
    return metadata, arrays


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a member, which zipfile compares with its CRC-32; nothing is decompressed."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"the member {info.filename[:80]!r} is compressed, or has two sizes")
    return archive.read(info)


def _array(name: str, member: bytes) -> Array:
    """Return the array of a `.npy` member, native and writeable, once its header agrees with the bytes there."""
    stream = io.BytesIO(member[:_MOST_HEADER])
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"the array {name[:80]!r} has .npy version {version}, not (1, 0)")
    shape, fortran_order, dtype = npy.read_array_header_1_0(stream)
    if dtype.str not in _DTYPES:
        allowed = "float32, float64, int64 or uint8, little-endian"
        raise ValueError(f"the array {name[:80]!r} must be {allowed}, got dtype {str(dtype.str)[:80]!r}")
    if fortran_order:
        raise ValueError(f"the array {name[:80]!r} must be in C order, got Fortran order")
    declared, present = math.prod(shape) * dtype.itemsize, len(member) - stream.tell()
    if declared != present:
        raise ValueError(f"the array {name[:80]!r} has {present} bytes, which are not those of shape {shape}")
    return np.frombuffer(member, dtype, offset=stream.tell()).reshape(shape).astype(_DTYPES[dtype.str])


def _metadata(array: Array) -> dict[str, Any]:
    """Return the metadata inside its JSON envelope, after format and version are known to be ours."""
    if array.dtype != np.uint8 or array.ndim != 1 or array.size > _MOST_METADATA:
        raise ValueError(f"'metadata' must be 1-D, uint8 and at most {_MOST_METADATA} bytes")
    text = array.tobytes().decode()
    _check_levels(text)
    envelope = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    if not isinstance(envelope, dict) or envelope.get("format") != _FORMAT:
        raise ValueError("its metadata is not that of fastbp")
    version = checks.count("version", envelope.get("version"))
    if version > _VERSION:
        raise ValueError(f"it has format version {version}, this build reads version {_VERSION}; upgrade fastbp")
    metadata = envelope.get("metadata")
    if envelope.keys() != {"format", "version", "fastbp", "metadata"} or not isinstance(metadata, dict):
        raise ValueError("its metadata has missing or unknown parts")
    return metadata


def _check_levels(text: str) -> None:
    """Refuse JSON that is nested deeply: since Python 3.14 its parser goes on until the stack of the thread is full."""
    level, inside = 0, False
    for mark in re.finditer(r'\\.|["\[\]{}]', text, re.DOTALL):
        if mark[0] == '"':
            inside = not inside
        elif not inside:
            level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
            if level > _MOST_LEVELS:
                raise ValueError(f"its metadata has more than {_MOST_LEVELS} lists and objects inside each other")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; readers disagree on which of two equal keys counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key of its metadata is there twice")
    return result


def _finite(text: str) -> float:
    """Return a JSON number; NaN and Infinity are none, and 1e999 would become one."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number of its metadata is not finite")
    return value


def _sync_directory(directory: str) -> None:
    """Have the disk confirm the new name, where the platform can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens no directory, others none without the permission to list it
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):  # what file systems say that cannot
            raise
    finally:
        os.close(handle)
