"""Files: saved so that a crash loses nothing, read without trusting a byte."""

import base64
import copy
import errno
import io
import json
import os
import pickle
import random
import re
import stat
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import loss_settings, output_of
from numpy.lib import format as npy

import fastbp
from fastbp import checkpoint
from fastbp.checks import (
    CheckpointError,
    DataError,
    DivergenceError,
    FastbpError,
    ParameterError,
    ParameterTypeError,
    ResourceError,
)
from fastbp.choices import ELEMENTWISE, INITIALISERS, LOSSES, OPTIMIZERS, SCHEDULES
from fastbp.workspace import (
    BATCH_WEIGHT,
    BEST,
    BEST_RATE,
    EPOCH,
    ERROR,
    FACTOR,
    LOSS,
    MISFIT,
    PANEL,
    POWER1,
    POWER2,
    ROW,
    STALE,
    STALE_RATE,
    WEIGHT,
)

Network = fastbp.Network
ROOT = Path(__file__).resolve().parents[1]
PARAMS = np.linspace(-1, 1, 13)
CONTENT = PARAMS.tobytes()
NETWORK = Network((2, 3, 1), seed=0)._to_file()[0]
ENVELOPE = {"format": "fastbp", "version": 1, "fastbp": "0.1.0", "metadata": NETWORK}

# Loss, output activation, activation of the hidden layers: every one at least once.
MODELS = [
    *[("squared_error", output, "tanh") for output in ELEMENTWISE],
    *[(loss, LOSSES[loss].outputs[0], activation) for loss in LOSSES for activation in ELEMENTWISE],
]


def network(dtype="float64"):
    return Network((2, 3, 1), seed=0, dtype=dtype)


def same(first, second):
    """Whether all plain attributes agree, and the parameters bit by bit."""
    (metadata, arrays), (other_metadata, other_arrays) = first._to_file(), second._to_file()
    return metadata == other_metadata and arrays["params"].tobytes() == other_arrays["params"].tobytes()


def saved(path):
    """The bytes of a real file."""
    network().save(path / "saved.npz")
    return (path / "saved.npz").read_bytes()


def header(text):
    """The start of a .npy member, with whatever header."""
    return npy.magic(1, 0) + len(text).to_bytes(2, "little") + text.encode()


def member(array, version=(1, 0)):
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy announces versions 2 and 3
        npy.write_array(stream, np.asanyarray(array), version=version)
    return stream.getvalue()


def declared(descr="<f8", order=False, shape=(13,), content=CONTENT):
    """A .npy member that declares one thing and holds another."""
    return header(f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n") + content


def text(envelope):
    """The member of the metadata, given as a JSON value or as JSON."""
    encoded = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return member(np.frombuffer(encoded, np.uint8))


def archive(*members, compression=zipfile.ZIP_STORED):
    """The bytes of a zip."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that come twice
        for name, content in members:
            file.writestr(name, content)
    return stream.getvalue()


def with_metadata(**changes):
    """A network's file whose metadata says otherwise; None leaves a key out."""
    metadata = {name: value for name, value in {**NETWORK, **changes}.items() if value is not None}
    return with_envelope({**ENVELOPE, "metadata": metadata})


def with_envelope(envelope, *further):
    return archive(("metadata.npy", text(envelope)), ("params.npy", member(PARAMS)), *further)


def with_params(content):
    return archive(("metadata.npy", text(ENVELOPE)), ("params.npy", content))


def patched(data, signature, offset, value):
    """The file with the bytes at an offset of the last record of a zip that begins so replaced."""
    start = data.rindex(signature) + offset
    return data[:start] + value + data[start + len(value) :]


def overlapping():
    """A member that lies inside another one: a hundred of them would make a bomb without compression."""
    inner, entry = re.fullmatch(
        rb"(.*?)(PK\x01\x02.*)PK\x05\x06.*", archive(("inside.npy", member(PARAMS))), re.S
    ).groups()
    data = with_envelope(ENVELOPE, ("outer.npy", declared("|u1", shape=(len(inner),), content=inner)))
    end = data.rindex(b"PK\x05\x06")
    size = int.from_bytes(data[end + 12 : end + 16], "little") + len(entry)
    entry = patched(entry, b"PK\x01\x02", 42, data.index(inner).to_bytes(4, "little"))
    return data[:end] + entry + patched(data[end:], b"PK\x05\x06", 12, size.to_bytes(4, "little"))


def load(path, data):
    file = path / "file.npz"
    file.write_bytes(data)
    return Network.load(file)


# --- what comes back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("init", INITIALISERS)
def test_network_comes_back(tmp_path, init, bias, dtype):
    expected = Network((4, 7, 5, 3), activation=("tanh", "relu"), bias=bias, init=init, seed=1, dtype=dtype)
    expected.save(tmp_path / "file.npz")
    actual = Network.load(tmp_path / "file.npz")

    assert same(actual, expected)
    assert vars(actual).keys() == vars(expected).keys()
    assert type(actual.sizes) is type(actual.activations) is tuple
    assert actual.params.flags.carray


def test_settings_of_the_loss_come_back(tmp_path):
    levels = {"loss": "quantile", "quantiles": (0.2, 0.7), "crossing_penalty": 0.5}
    for settings in ({"loss": "huber", "huber_delta": 0.3}, levels):
        expected = Network((2, 2), **settings, seed=0)
        expected.save(tmp_path / "file.npz")
        actual = Network.load(tmp_path / "file.npz")

        assert same(actual, expected)
        for name, value in settings.items():
            assert getattr(actual, name) == value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "output", "activation"), MODELS)
def test_every_choice_comes_back(tmp_path, loss, output, activation, dtype):
    expected = Network((4, 3, 2), activation=activation, output=output, seed=1, dtype=dtype, **loss_settings(loss, 2))
    expected.save(tmp_path / "file.npz")
    actual = Network.load(tmp_path / "file.npz")

    assert same(actual, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loaded_network_predicts_the_same_bits(tmp_path, rng, dtype):
    X = rng.normal(size=(50, 4))
    network = Network((4, 17, 3), activation="tanh", loss="cross_entropy", seed=1, dtype=dtype)
    network.save(tmp_path / "file.npz")

    expected = network.predict(X)
    actual = Network.load(tmp_path / "file.npz").predict(X)

    assert actual.tobytes() == expected.tobytes()


def test_loaded_network_can_be_trained(tmp_path):
    X = np.array([[0.0], [1.0]])
    network = Network((1, 1), init="zeros")
    network.save(tmp_path / "file.npz")

    expected = fastbp.train(X, X, network=network, epochs=3, seed=0, backend="numpy").network.params
    actual = Network.load(tmp_path / "file.npz")
    fastbp.train(X, X, network=actual, epochs=3, seed=0, backend="numpy")

    assert actual.params.tobytes() == expected.tobytes()


ARRAYS = {
    "float32": np.array([1.5, -0.0, np.nan, np.inf, 1e-45], np.float32),
    "float64": np.array([[1.5, -0.0], [np.nan, -np.inf], [5e-324, 0]]),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "uint8": np.arange(256, dtype=np.uint8),
    "nothing": np.empty((0, 3)),
    "scalar": np.array(7.0),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(12.0)[::-3],
}


def test_arrays_and_metadata_come_back(tmp_path):
    expected = {"a": [1, 2.5, True, None, "\N{GREEK SMALL LETTER ALPHA}"], "b": {"c": {}}, "float": 0.1 + 0.2}
    checkpoint.write(tmp_path / "file", expected, ARRAYS)
    actual, arrays = checkpoint.read(tmp_path / "file")

    assert actual == expected
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()
        assert arrays[name].flags.carray
        assert arrays[name].flags.owndata or arrays[name].base is None


def test_big_endian_arrays_are_stored_little_endian(tmp_path):
    checkpoint.write(tmp_path / "file", {}, {"array": np.arange(3, dtype=">f4")})

    expected = np.arange(3, dtype=np.float32)
    actual = checkpoint.read(tmp_path / "file")[1]["array"]

    assert np.load(tmp_path / "file")["array"].dtype.str == "<f4"
    assert actual.dtype == expected.dtype
    assert actual.tolist() == expected.tolist()


def test_file_with_the_fields_of_large_ones_comes_back(tmp_path, monkeypatch):
    """Beyond 2 GiB, here 1,000 bytes, zipfile writes members with more fields."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(checkpoint, "_ZIP64", 1000)
    expected = Network((20, 20, 1), seed=0)
    expected.save(tmp_path / "file")
    actual = Network.load(tmp_path / "file")

    assert (tmp_path / "file").read_bytes().count(b"PK\x06\x06") == 1
    assert same(actual, expected)


def test_numpy_opens_the_file(tmp_path):
    network().save(tmp_path / "file.npz")

    with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
        assert file["params"].tobytes() == network().params.tobytes()
        assert json.loads(file["metadata"].tobytes()) == {**ENVELOPE, "fastbp": fastbp.__version__}


def test_same_network_is_saved_as_the_same_bytes(tmp_path):
    assert saved(tmp_path) == saved(tmp_path)


# The file of a network (2, 2, 1) as this version writes it. Every later version has to read it.
VERSION_1 = """
UEsDBBQAAAAAAAAAIQAg4G12ZAEAAGQBAAAMAAAAbWV0YWRhdGEubnB5k05VTVBZAQB2AHsnZGVzY3InOiAnfHUxJywgJ2ZvcnRyYW5fb3JkZXInOiBG
YWxzZSwgJ3NoYXBlJzogKDIyOCwpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAp7ImZv
cm1hdCI6ICJmYXN0YnAiLCAidmVyc2lvbiI6IDEsICJmYXN0YnAiOiAiMC4xLjAiLCAibWV0YWRhdGEiOiB7ImtpbmQiOiAibmV0d29yayIsICJzaXpl
cyI6IFsyLCAyLCAxXSwgImFjdGl2YXRpb25zIjogWyJ0YW5oIiwgInNpZ21vaWQiXSwgImxvc3MiOiAiYmluYXJ5X2Nyb3NzX2VudHJvcHkiLCAiaHVi
ZXJfZGVsdGEiOiAxLjAsICJiaWFzIjogdHJ1ZSwgImR0eXBlIjogImZsb2F0MzIifX1QSwMEFAAAAAAAAAAhAKX6jy2kAAAApAAAAAoAAABwYXJhbXMu
bnB5k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDksKSwgfSAgICAgICAgICAgICAgICAg
ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAIC/AABAvwAAAL8AAIC+AAAAAAAAgD4AAAA/AABAPwAAgD9QSwECFAMU
AAAAAAAAACEAIOBtdmQBAABkAQAADAAAAAAAAAAAAAAAgAEAAAAAbWV0YWRhdGEubnB5UEsBAhQDFAAAAAAAAAAhAKX6jy2kAAAApAAAAAoAAAAAAAAA
AAAAAIABjgEAAHBhcmFtcy5ucHlQSwUGAAAAAAIAAgByAAAAWgIAAAAA
"""


def test_file_of_version_1_is_read(tmp_path):
    loaded = load(tmp_path, base64.b64decode(VERSION_1))

    expected = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]
    actual = loaded.params.tolist()

    assert actual == expected
    assert loaded.params.dtype == np.float32
    assert (loaded.sizes, loaded.activations, loaded.loss) == ((2, 2, 1), ("tanh", "sigmoid"), "binary_cross_entropy")


# --- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "file.npz", "file.fastbp", "\N{SNOWMAN} a", "x" * 255], ids=range(5))
@pytest.mark.parametrize("kind", [str, Path])
def test_path_is_used_as_given(tmp_path, kind, name):
    path = kind(tmp_path / name)
    network().save(path)

    assert os.listdir(tmp_path) == [name]
    assert same(Network.load(path), network())


def test_path_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network().save("file")

    assert same(Network.load("file"), network())


@pytest.mark.parametrize("path", [None, 3, b"file", 1.5, ["file"], io.BytesIO()], ids=lambda path: type(path).__name__)
def test_path_of_another_type_is_refused(path):
    with pytest.raises(ParameterTypeError, match=r"^'path' must be a str or os\.PathLike, got "):
        network().save(path)
    with pytest.raises(ParameterTypeError, match=r"^'path' must be a str or os\.PathLike, got "):
        Network.load(path)


def test_path_with_a_null_character_is_refused():
    with pytest.raises(ParameterError, match="'path' must not contain"):
        network().save("a\0b")
    with pytest.raises(ParameterError, match="'path' must not contain"):
        Network.load("a\0b")


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        Network.load(tmp_path / "file")


def test_missing_directory_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        network().save(tmp_path / "directory" / "file")


def test_directory_is_an_error_of_the_system(tmp_path):
    with pytest.raises(IsADirectoryError):
        network().save(tmp_path)
    with pytest.raises((IsADirectoryError, PermissionError)):  # the second on Windows
        Network.load(tmp_path)

    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_an_error_of_the_system(tmp_path):
    network().save(tmp_path / "file")
    (tmp_path / "file").chmod(0)

    with pytest.raises(PermissionError):
        Network.load(tmp_path / "file")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_link_is_followed_and_stays(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "latest").symlink_to(Path("runs") / "file")
    for seed in range(2):  # the first time it points to nothing
        Network((1, 1), seed=seed).save(tmp_path / "latest")

    expected = Network((1, 1), seed=1)
    actual = Network.load(tmp_path / "runs" / "file")

    assert same(actual, expected)
    assert (tmp_path / "latest").is_symlink()
    assert [os.listdir(tmp_path / "runs"), sorted(os.listdir(tmp_path))] == [["file"], ["latest", "runs"]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(FileExistsError, match="not a regular file"):
        network().save(tmp_path / "pipe")

    assert os.listdir(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_endless_file_is_refused():
    with pytest.raises(CheckpointError):
        Network.load("/dev/zero")


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_permissions_of_the_old_file_are_kept(tmp_path):
    network().save(tmp_path / "file")
    (tmp_path / "file").chmod(0o600)
    network().save(tmp_path / "file")

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_file_larger_than_the_memory_is_refused(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        file.truncate(2**42)  # sparse: 4 TiB of nothing

    with pytest.raises(ResourceError, match=r"^the file '.*file' needs"):
        Network.load(tmp_path / "file")


# --- damaged and hostile files ------------------------------------------------------------------------------------

DEEP = 100_000
NOT_OURS = np.frombuffer(b"hello", np.uint8)
BAD = {
    # not a zip
    "empty": (b"", "not a zip"),
    "one byte": (b"P", "not a zip"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "not a zip"),
    "npy": (member(PARAMS), "not a zip"),
    "pickle": (pickle.dumps({"params": [1.0]}), "not a zip"),
    # zips that are not as they should be
    "no members": (archive(), "'metadata' is missing"),
    "no metadata": (archive(("params.npy", member(PARAMS))), "'metadata' is missing"),
    "no params": (archive(("metadata.npy", text(ENVELOPE))), "does not hold a network"),
    "unknown array": (with_envelope(ENVELOPE, ("more.npy", member([1.0]))), "does not hold a network"),
    "not an array": (with_envelope(ENVELOPE, ("README", b"hello")), "'README' is not an array"),
    "directory": (with_envelope(ENVELOPE, ("directory/", b"")), "'directory/' is not an array"),
    "metadata twice": (with_envelope(ENVELOPE, ("metadata.npy", text(ENVELOPE))), "is there twice"),
    "params twice": (with_envelope(ENVELOPE, ("params.npy", member(PARAMS))), "is there twice"),
    "something before": (b"#!/bin/sh\n" + with_envelope(ENVELOPE), r"need \d+ bytes, the file has \d+"),
    "something after": (with_envelope(ENVELOPE) + b"more", r"need \d+ bytes, the file has \d+"),
    "overlapping members": (overlapping(), r"need \d+ bytes, the file has \d+"),
    "compressed": (
        archive(("metadata.npy", text(ENVELOPE)), ("params.npy", b""), compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "larger than the file": (
        patched(with_envelope(ENVELOPE), b"PK\x01\x02", 20, b"\xf0\xff\xff\xff" * 2),
        r"need \d+ bytes, the file has \d+",
    ),
    "two sizes": (patched(with_envelope(ENVELOPE), b"PK\x01\x02", 20, b"\xf0\xff\xff\xff"), ""),
    "encrypted": (patched(with_envelope(ENVELOPE), b"PK\x01\x02", 8, b"\x01\x00"), "encrypted"),
    "other content": (
        with_envelope(ENVELOPE).replace(CONTENT, (PARAMS + 1).tobytes()),
        "CRC-32",
    ),
    # arrays
    "not a .npy": (with_params(b"hello"), "magic"),
    "empty .npy": (with_params(b""), "magic"),
    "magic alone": (with_params(npy.magic(1, 0)), "EOF"),
    "version 2 of .npy": (with_params(member(PARAMS, (2, 0))), r"version \(2, 0\)"),
    "version 3 of .npy": (with_params(member(PARAMS, (3, 0))), r"version \(3, 0\)"),
    "header of 60,000 characters": (with_params(header("{" + " " * 60_000 + "}")), "expected 60002 bytes"),
    "deep header": (with_params(header("(" * 900)), ""),
    "deep signs": (with_params(header("-" * 900 + "1")), ""),
    "header that is code": (with_params(header("__import__('os').abort()\n")), ""),
    "header that is no dict": (with_params(header("[1, 2]\n")), "not a dictionary"),
    "missing key in header": (with_params(header("{'descr': '<f8'}\n")), "correct keys"),
    "pickled objects": (with_params(member(np.array([None, {}], object))), "got dtype '|O'"),
    "big-endian": (with_params(member(np.zeros(13, ">f8"))), "little-endian, got dtype '>f8'"),
    "float16": (with_params(member(np.zeros(13, np.float16))), "float32, float64, int64 or uint8"),
    "longdouble": (with_params(declared("<f16")), "got dtype|not a valid"),
    "complex": (with_params(member(np.zeros(13, complex))), "got dtype '<c16'"),
    "int32": (with_params(member(np.zeros(13, np.int32))), "got dtype '<i4'"),
    "bool": (with_params(member(np.zeros(13, bool))), r"got dtype '\|b1'"),
    "text array": (with_params(member(np.array(["a", "bc"]))), "got dtype '<U2'"),
    "dates": (with_params(member(np.zeros(13, "M8[s]"))), "got dtype '<M8"),
    "records": (with_params(member(np.zeros(13, "f4,f4"))), "got dtype '|V8'"),
    "subarrays": (with_params(declared("13<f8", shape=(1,))), "got dtype '|V104'"),
    "no dtype": (with_params(declared("nonsense")), "descr"),
    "Fortran order": (with_params(declared(order=True, shape=(13, 1))), "Fortran"),
    "order 1": (with_params(declared(order=1)), "fortran_order"),
    "one too few": (with_params(declared(shape=(14,))), r"104 bytes, .* shape \(14,\)"),
    "one too many": (with_params(declared(shape=(12,))), r"104 bytes, .* shape \(12,\)"),
    "one byte short": (with_params(declared()[:-1]), "103 bytes"),
    "72 TiB": (with_params(declared(shape=(10**13,))), "104 bytes"),
    "10^40 bytes": (with_params(declared(shape=(10**20, 10**20))), "104 bytes"),
    "2^64 + 13 elements": (with_params(declared(shape=(2**64 + 13,))), "104 bytes"),
    "zero of the huge": (with_params(declared(shape=(0, 10**30), content=b"")), ""),
    "negative": (with_params(declared(shape=(-13,))), "104 bytes"),
    "negative twice": (with_params(declared(shape=(-13, -1))), ""),
    "negative and zero": (with_params(declared(shape=(0, -1), content=b"")), ""),
    "a hundred dimensions": (with_params(declared(shape=(13, *[1] * 99))), ""),
    "shape of floats": (with_params(declared(shape=(13.0,))), "shape is not valid"),
    # JSON
    "float metadata": (archive(("metadata.npy", member(np.zeros(8)))), "1-D, uint8"),
    "2-D metadata": (archive(("metadata.npy", member(np.zeros((2, 2), np.uint8)))), "1-D, uint8"),
    "metadata of 2 MiB": (with_envelope(b" " * 2**21), "at most 1048576 bytes"),
    "no JSON": (with_envelope(b""), "Expecting value"),
    "half of a JSON": (with_envelope(json.dumps(ENVELOPE).encode()[:-1]), "delimiter"),
    "JSON and more": (with_envelope(json.dumps(ENVELOPE).encode() + b"1"), "Extra data"),
    "not UTF-8": (with_envelope(b'{"format": "\xff"}'), "utf-8"),
    "UTF-16": (with_envelope(json.dumps(ENVELOPE).encode("utf-16")), "utf-8"),
    "byte order mark": (with_envelope(json.dumps(ENVELOPE).encode("utf-8-sig")), "BOM"),
    "deep lists": (with_envelope(b"[" * DEEP), "more than 10 lists and objects inside each other"),
    "deep objects": (with_envelope(b'{"a":' * DEEP), "more than 10 lists and objects inside each other"),
    "deep behind a string": (with_envelope(rb'{"a\"]]]]]]\\":' + b"[" * 10), "more than 10 lists and objects"),
    "ten levels": (with_envelope(b"[" * 10 + b"]" * 10 + b'"[["'), "Extra data"),
    "integer of 6000 digits": (with_envelope(b'{"format":' + b"9" * 6000 + b"}"), "digits|limit"),
    "a list": (with_envelope([ENVELOPE]), "not that of fastbp"),
    "a number": (with_envelope(1), "not that of fastbp"),
    "another format": (with_envelope({**ENVELOPE, "format": "other"}), "not that of fastbp"),
    "no format": (with_envelope({"version": 1}), "not that of fastbp"),
    "key twice": (with_envelope(json.dumps(ENVELOPE).replace("{", '{"version": 1, ', 1).encode()), "twice"),
    "inner key twice": (
        with_envelope(json.dumps(ENVELOPE).replace('"kind"', '"bias": true, "kind"').encode()),
        "twice",
    ),
    "NaN": (with_envelope({**ENVELOPE, "fastbp": float("nan")}), "not finite"),
    "Infinity": (with_envelope({**ENVELOPE, "fastbp": float("-inf")}), "not finite"),
    "1e999": (with_envelope(json.dumps(ENVELOPE).replace('"0.1.0"', "1e999").encode()), "not finite"),
    "version 0": (with_envelope({**ENVELOPE, "version": 0}), "'version' must be an integer >= 1, got 0"),
    "version true": (with_envelope({**ENVELOPE, "version": True}), "'version' must be an integer >= 1, got True"),
    "version 1.0": (with_envelope({**ENVELOPE, "version": 1.0}), "'version' must be an integer >= 1, got 1.0"),
    "version missing": (with_envelope({"format": "fastbp"}), "'version' must be an integer >= 1, got None"),
    "unknown part": (with_envelope({**ENVELOPE, "more": 1}), "missing or unknown parts"),
    "missing part": (with_envelope({"format": "fastbp", "version": 1, "metadata": {}}), "missing or unknown parts"),
    "metadata a list": (with_envelope({**ENVELOPE, "metadata": []}), "missing or unknown parts"),
    # networks
    "no network": (with_metadata(kind=None), "does not hold a network"),
    "another kind": (with_metadata(kind="forest"), "does not hold a network"),
    "unknown key": (with_metadata(more=1), "does not describe its network"),
    "another dtype": (with_metadata(dtype="float32"), "does not describe its network"),
    "dtype of Python": (with_metadata(dtype="<f8"), "does not describe its network"),
    "no sizes": (with_metadata(sizes=None), "'sizes' is missing"),
    "one size": (with_metadata(sizes=[2]), "'sizes' must name at least inputs and outputs"),
    "sizes of zero": (with_metadata(sizes=[2, 0, 1]), r"'sizes\[1\]' must be an integer >= 1, got 0"),
    "negative sizes": (with_metadata(sizes=[-2, -3, -1]), r"'sizes\[0\]' must be an integer >= 1, got -2"),
    "sizes of floats": (with_metadata(sizes=[2.0, 3, 1]), r"'sizes\[0\]' must be an integer >= 1, got 2.0"),
    "huge sizes": (with_metadata(sizes=[10**9, 10**9, 1]), r"must be .* of shape \(1000000002000000001,\)"),
    "other sizes": (with_metadata(sizes=[3, 2, 1]), r"must be .* of shape \(11,\), got .* \(13,\)"),
    "2000 layers": (with_metadata(sizes=[1] * 2000), "at most 1000 layers"),
    "no bias": (with_metadata(bias=False), r"must be .* of shape \(9,\)"),
    "bias 1": (with_metadata(bias=1), "'bias' must be True or False, got 1"),
    "unknown activation": (with_metadata(activations=["os.system", "identity"]), "must be one of 'identity'"),
    "hidden softmax": (with_metadata(activations=["softmax", "identity"]), r"'activation\[0\]' must be one of"),
    "too few activations": (with_metadata(activations=["identity"]), r"one per hidden layer \(1\), got 0"),
    "no activations": (with_metadata(activations=[]), ""),
    "activations a name": (with_metadata(activations="relu"), "'activation' must be"),
    "activations a number": (with_metadata(activations=5), ""),
    "activations an object": (with_metadata(activations={"relu": 1, "identity": 2}), "does not describe"),
    "activation null": (with_metadata(activations=["relu", None]), "does not describe its network"),
    "activation a list": (with_metadata(activations=["relu", ["identity"]]), "'output' must be one of"),
    "output of another loss": (with_metadata(activations=["relu", "softmax"]), "'output' must be one of"),
    "unknown loss": (with_metadata(loss="builtins.eval"), "'loss' must be one of"),
    "loss a list": (with_metadata(loss=["squared_error"]), "'loss' must be one of"),
    "huber_delta 0": (with_metadata(huber_delta=0), "'huber_delta' must be a finite number > 0, got 0"),
    "params of integers": (with_params(member(np.zeros(13, np.int64))), "must be a float array"),
    "2-D params": (with_params(member(np.zeros((13, 1)))), r"of shape \(13,\), got ndarray of shape \(13, 1\)"),
    "NaN in params": (with_params(member([*[0.0] * 12, np.nan])), "1 bad of 13, the first at"),
    "infinite params": (with_params(member([*[0.0] * 12, np.inf])), "1 bad of 13, the first at"),
}


def test_file_made_by_hand_is_read(tmp_path):
    """Otherwise the files below might be refused for what they have in common."""
    expected = PARAMS.tolist()
    actual = load(tmp_path, with_params(declared())).params.tolist()

    assert actual == expected


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused(tmp_path, name):
    data, reason = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy and ast comment on some headers
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError, match=reason) as caught:
                load(tmp_path, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert str(caught.value).startswith(f"{str(tmp_path / 'file.npz')!r} is not a file that fastbp can load: ")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert peak < 5 * len(data) + 2**20


def test_later_version_asks_for_an_upgrade(tmp_path):
    data = archive(("metadata.npy", text({"format": "fastbp", "version": 2, "new": 1})), ("params.zst", b"new"))

    expected = "it has format version 2, this build reads version 1; upgrade fastbp"
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, data)

    assert str(caught.value).endswith(expected)


def test_zip_bomb_is_not_inflated(tmp_path):
    stream = io.BytesIO(with_envelope(ENVELOPE))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.npy", declared("|u1", shape=(10**7,), content=bytes(10**7)))

    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"need \d+ bytes, the file has \d+"):
        load(tmp_path, stream.getvalue())
    actual = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert actual < 2**20


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for data in [pickle.dumps(Bomb()), with_params(member(np.array([Bomb()] * 13, object)))]:
        with pytest.raises(CheckpointError):
            load(tmp_path, data)

    assert os.listdir(tmp_path) == ["file.npz"]


def test_error_keeps_its_cause(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, b"text")

    assert isinstance(caught.value.__cause__, zipfile.BadZipFile)
    assert isinstance(caught.value, FastbpError)
    assert isinstance(caught.value, ValueError)


# --- random damage ------------------------------------------------------------------------------------------------


def outcome(path, data):
    """What loading gives: the network or None for a CheckpointError; anything else is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy and ast comment on some headers
        try:
            return load(path, data)
        except CheckpointError:
            return None


def damaged(random, data):
    """The file after one to three accidents."""
    data = bytearray(data)
    for _ in range(random.randint(1, 3)):
        where, length = random.randrange(len(data) + 1), random.randint(1, 8)
        match random.choice(["truncate", "flip", "insert", "delete", "overwrite", "repeat", "swap"]):
            case "truncate":
                del data[where:]
            case "flip" if data:
                data[where - 1] ^= 1 << random.randrange(8)
            case "insert":
                data[where:where] = random.randbytes(length)
            case "delete":
                del data[where : where + length]
            case "overwrite":
                data[where : where + length] = random.choice(
                    [bytes(length), b"\xff" * length, random.randbytes(length)]
                )
            case "repeat":
                data[where:where] = data[where : where + 100]
            case "swap":
                data = data[where:] + data[:where]
    return bytes(data)


def test_file_cut_short_is_refused(tmp_path):
    data = saved(tmp_path)

    expected = []
    actual = [length for length in range(len(data)) if outcome(tmp_path, data[:length]) is not None]

    assert actual == expected


def test_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    data = saved(tmp_path)
    wrong, refused = [], 0
    for bit in range(0, 8 * len(data), 3):  # all bits take three times as long, and find the same
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        loaded = outcome(tmp_path, flipped)
        refused += loaded is None
        if loaded is not None and not same(loaded, network()):
            wrong.append(bit)

    assert wrong == []
    assert refused > len(data)  # dates and the like are read by nobody


def test_damaged_file_is_refused_or_the_same_network(tmp_path):
    data, accidents = saved(tmp_path), random.Random(0)
    loaded = [outcome(tmp_path, damaged(accidents, data)) for _ in range(600)]

    expected = 0
    actual = sum(result is not None and not same(result, network()) for result in loaded)

    assert actual == expected
    assert sum(result is None for result in loaded) > 400


def test_hostile_file_is_refused_or_a_network(tmp_path):
    """Damage inside the members, with the CRC-32 made to fit."""
    accidents, networks = random.Random(0), 0
    for _ in range(500):
        parts = {"metadata.npy": text(ENVELOPE), "params.npy": declared()}
        name = accidents.choice(list(parts))
        parts[name] = damaged(accidents, parts[name])
        loaded = outcome(tmp_path, archive(*parts.items()))
        if loaded is not None:
            networks += 1
            loaded.save(tmp_path / "again")  # which checks its parameters

    assert 0 < networks < 250


# --- trainings ----------------------------------------------------------------------------------------------------

X = np.linspace(-1, 1, 12).reshape(6, 2)
Y = np.array([0.0, 1, 0, 1, 1, 1])
TRAINING = fastbp.train(
    X, Y, 3, loss="binary_cross_entropy", optimizer=fastbp.SGD(momentum=0.9), class_weight={0: 2.0}, dropout=0.1,
    schedule=fastbp.ReduceOnPlateau(), validation=0.3, patience=9, epochs=4, seed=0, backend="numpy",
)  # fmt: skip


def parts(path):
    """Metadata and arrays of a real file."""
    TRAINING.save(path / "training")
    return checkpoint.read(path / "training")


def told(result):
    """All that a training is, but times."""
    metadata, arrays = result.network._to_file()
    arrays = {**arrays, **result.state.arrays, "last": result.state.params}
    return metadata, result.state.settings, {name: array.tobytes() for name, array in arrays.items()}


def resumed(path):
    return fastbp.resume(path, X, Y, epochs=0)


def test_training_comes_back(tmp_path):
    TRAINING.save(tmp_path / "training")

    expected = told(TRAINING)
    actual = told(resumed(tmp_path / "training"))

    assert actual == expected


SETTINGS = [
    *[{"optimizer": optimizer, "batch_size": None} for optimizer in OPTIMIZERS],
    *[{"schedule": schedule, "optimizer": "sgd"} for schedule in SCHEDULES],
    {"optimizer": fastbp.SGD(0.02, 0.9, True), "shuffle": False, "reduction": "sum", "l2": 0.1, "clip_norm": 2},
    {"class_weight": "balanced", "validation": 0.5, "watch": "score", "patience": 0, "min_delta": 0.25},
    {"dropout": (0.0, 0.5), "batch_size": 4, "seed": 2**32 - 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_every_setting_comes_back(settings, tmp_path):
    result = fastbp.train(
        X, Y, (3, 2), **{"loss": "binary_cross_entropy", "epochs": 2, "seed": 0, "backend": "numpy"} | settings
    )
    result.save(tmp_path / "training")

    expected = told(result)
    actual = told(resumed(tmp_path / "training"))

    assert actual == expected


def test_network_is_no_training(tmp_path):
    network().save(tmp_path / "file")

    with pytest.raises(CheckpointError, match="it does not hold a training"):
        resumed(tmp_path / "file")


def test_training_is_no_network(tmp_path):
    TRAINING.save(tmp_path / "file")

    with pytest.raises(CheckpointError, match="it does not hold a network, and nothing else"):
        Network.load(tmp_path / "file")


def test_training_with_bad_parameters_is_not_saved(tmp_path):
    bad = TRAINING._replace(network=TRAINING.network.copy())
    bad.network.params[3] = np.nan

    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        bad.save(tmp_path / "file")

    assert os.listdir(tmp_path) == []


def setting(**changes):
    """Damage to the settings."""
    return lambda metadata, arrays: metadata["settings"].update(changes)


def field(name, **changes):
    """Damage to an optimiser or a schedule."""
    return lambda metadata, arrays: metadata["settings"][name].update(changes)


def without(*path):
    """Damage that leaves something of the metadata out."""

    def damage(metadata, arrays):
        for key in path[:-1]:
            metadata = metadata[key]
        del metadata[path[-1]]

    return damage


def array(name, change):
    """Damage to an array, which becomes what the function makes of it."""

    def damage(metadata, arrays):
        arrays[name] = change(arrays[name])

    return damage


def cell(name, place, value):
    """Damage to one number of an array."""

    def damage(metadata, arrays):
        arrays[name][place] = value

    return damage


ANY = r"\w"
STORED = ("params", "last", *TRAINING.state.arrays)
BAD_TRAINING = {
    # metadata
    "another kind": (lambda metadata, arrays: metadata.update(kind="network"), "does not hold a training"),
    "no kind": (without("kind"), "does not hold a training"),
    "unknown key": (lambda metadata, arrays: metadata.update(more=1), "does not hold a training"),
    "no network": (without("network"), "does not hold a training"),
    "network a list": (lambda metadata, arrays: metadata.update(network=[1]), ANY),
    "network of another kind": (lambda metadata, arrays: metadata["network"].update(kind="training"), "hold a network"),
    "network of other sizes": (lambda metadata, arrays: metadata["network"].update(sizes=[2, 2, 1]), "of shape"),
    "settings a list": (lambda metadata, arrays: metadata.update(settings=[]), ANY),
    "settings of none": (lambda metadata, arrays: metadata.update(settings={}), "settings are missing"),
    **{f"no {name}": (without("settings", name), "settings are missing") for name in TRAINING.state.settings.__slots__},
    "unknown setting": (setting(more=1), "settings are missing, or there are others"),
    # settings
    "unknown optimizer": (field("optimizer", **{"class": "eval"}), "'eval' is missing"),
    "optimizer of no class": (without("settings", "optimizer", "class"), "'class' is missing"),
    "optimizer a name": (setting(optimizer="sgd"), ANY),
    "schedule for an optimizer": (setting(optimizer={"class": "Constant"}), "'optimizer' must be one of"),
    "optimizer for a schedule": (setting(schedule={"class": "SGD"}), "'schedule' must be one of"),
    "network for an optimizer": (field("optimizer", **{"class": "Network"}), "'Network' is missing"),
    "unknown field": (field("optimizer", more=1), "unexpected keyword"),
    "momentum 1": (field("optimizer", momentum=1), "'momentum' must be"),
    "learning_rate null": (field("optimizer", learning_rate=None), "'learning_rate' must be"),
    "nesterov 1": (field("optimizer", nesterov=1), "'nesterov' must be True or False"),
    "factor 2": (field("schedule", factor=2), "'factor' must be"),
    "patience of the schedule": (field("schedule", patience=-1), "'patience' must be"),
    "batch_size 0": (setting(batch_size=0), "'batch_size' must be"),
    "batch_size true": (setting(batch_size=True), "'batch_size' must be"),
    "shuffle 1": (setting(shuffle=1), "'shuffle' must be"),
    "mean null": (setting(mean=None), "'mean' must be"),
    "l2 -1": (setting(l2=-1), "'l2' must be"),
    "l2 a text": (setting(l2="0"), "'l2' must be"),
    "dropout 1": (setting(dropout=[1.0]), r"'dropout\[0\]' must be"),
    "dropout of two layers": (setting(dropout=[0.1, 0.1]), r"one per hidden layer \(1\), got 2"),
    "dropout a text": (setting(dropout="0.1"), "'dropout' must be"),
    "clip_norm -1": (setting(clip_norm=-1), "'clip_norm' must be"),
    "clip_norm null": (setting(clip_norm=None), "'clip_norm' must be"),
    "class_weight a name": (setting(class_weight="balance"), "'class_weight' must be"),
    "class_weight a number": (setting(class_weight=1), "'class_weight' must be"),
    "class_weight of no pairs": (setting(class_weight=[1, 2]), ANY),
    "class_weight of lists": (setting(class_weight=[[[0], 1]]), ANY),
    "class_weight below 0": (setting(class_weight=[[0, -1]]), r"'class_weight\[0\]' must be"),
    "class -1": (setting(class_weight=[[-1, 1]]), "'class_weight' must be"),
    "validation 1": (setting(validation=1), "'validation' must be"),
    "validation a list": (setting(validation=[[1.0], [1.0]]), "'validation' must be"),
    "patience -1": (setting(patience=-1), "'patience' must be"),
    "patience 0.5": (setting(patience=0.5), "'patience' must be"),
    "min_delta -1": (setting(min_delta=-1), "'min_delta' must be"),
    "watch a number": (setting(watch=1), "'watch' must be"),
    "unknown watch": (setting(watch="lost"), "'watch' must be"),
    "seed -1": (setting(seed=-1), "'seed' must be"),
    "seed null": (setting(seed=None), "'seed' must be"),
    "unknown backend": (setting(backend="os"), "'backend' must be"),
    "patience without best": (setting(patience=None), "'best' has shape"),
    # arrays
    **{
        f"without {name}": (lambda metadata, arrays, name=name: arrays.pop(name) is None, "missing")
        for name in STORED
    },
    "unknown array": (lambda metadata, arrays: arrays.update(more=np.zeros(3)), "arrays are missing, or there are oth"),
    **{f"{name} of another dtype": (array(name, np.float32), ANY) for name in STORED},
    **{f"{name} too long": (array(name, lambda a: np.append(a, a[:1])), ANY) for name in STORED[1:]},
    **{f"{name} too short": (array(name, lambda a: a[:-1]), ANY) for name in STORED[1:]},
    **{f"{name} in 2-D": (array(name, lambda a: a[None]), ANY) for name in STORED},
    **{f"{name} of nothing": (array(name, lambda a: a[:0]), ANY) for name in STORED},
    **{
        f"{name} not finite": (cell(name, 1, value), "finite")
        for name in ("params", "last", "first", "second", "best")
        for value in (np.nan, np.inf)
    },
    "negative mean of squares": (cell("second", 1, -1e-9), "'second' has values below 0"),
    "another epoch": (cell("position", EPOCH, 3), "has shape"),
    "negative epoch": (cell("position", EPOCH, -4), ANY),
    "huge epoch": (cell("position", EPOCH, 2**62), "has shape"),
    "middle of an epoch": (cell("position", ROW, 1), "'position' is not the end of an epoch"),
    "middle of a block": (cell("position", PANEL, 1), "'position' is not the end of an epoch"),
    "stale for longer than trained": (cell("position", STALE, 5), "'position' is not the end of an epoch"),
    "negative stale": (cell("position", STALE_RATE, -1), "'position' is not the end of an epoch"),
    **{
        f"sum of the middle of an epoch {place}": (cell("totals", place, 0.5), "not those of the end of an epoch")
        for place in (LOSS, ERROR, MISFIT, BATCH_WEIGHT, WEIGHT)
    },
    **{
        f"total {place} is {value}": (cell("totals", place, value), "not those of the end of an epoch")
        for place in (POWER1, POWER2, FACTOR)
        for value in (-0.1, 1.1, np.inf, np.nan)
    },
    **{f"total {place} is NaN": (cell("totals", place, np.nan), "not those of the end") for place in (BEST, BEST_RATE)},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training_is_refused(name, tmp_path):
    metadata, arrays = parts(tmp_path)
    damage, reason = BAD_TRAINING[name]
    damage(metadata, arrays)
    checkpoint.write(tmp_path / "training", metadata, arrays)
    with pytest.raises(CheckpointError, match=reason) as caught:
        resumed(tmp_path / "training")

    assert str(caught.value).startswith(f"{str(tmp_path / 'training')!r} is not a file that fastbp can load: ")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("learning_rate", [1e39, 1e-60])
def test_settings_that_the_precision_cannot_hold_are_refused(learning_rate, tmp_path):
    fastbp.train(X, Y, dtype="float32", epochs=1, backend="numpy").save(tmp_path / "training")
    metadata, arrays = checkpoint.read(tmp_path / "training")
    metadata["settings"]["optimizer"]["learning_rate"] = learning_rate
    checkpoint.write(tmp_path / "training", metadata, arrays)

    with pytest.raises(CheckpointError, match="'learning_rate' must be representable in float32"):
        resumed(tmp_path / "training")


def test_damaged_training_is_refused_or_the_same(tmp_path):
    TRAINING.save(tmp_path / "training")
    data, accidents, refused = (tmp_path / "training").read_bytes(), random.Random(0), 0
    for _ in range(300):
        (tmp_path / "training").write_bytes(damaged(accidents, data))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy and ast comment on some headers
                result = resumed(tmp_path / "training")
        except CheckpointError:
            refused += 1
        else:
            assert told(result) == told(TRAINING)

    assert 200 < refused < 300


VALUES = [None, True, 0, -1, 1, 3, 0.5, 2**70, 1e300, "", "sgd", "Adam", [], [0.5], [[0, 1]], {}, {"class": "Adam"}]
NUMBERS = [0, -1, 1, 3, 0.5, 1e300, -1e300, np.nan, np.inf]


def mutate(accidents, metadata, arrays):
    """One to three things of a training replaced by others."""
    for _ in range(accidents.randint(1, 3)):
        if accidents.random() < 0.5:
            part = accidents.choice([metadata, metadata["network"], *[metadata["settings"]] * 5])
            inner = [value for value in part.values() if isinstance(value, dict) and value]
            part = accidents.choice([part, *inner])
            part[accidents.choice([*part, "more"])] = accidents.choice(VALUES)
            if not all(isinstance(metadata.get(name), dict) for name in ("network", "settings")):
                return
        else:
            name = accidents.choice(list(arrays))
            match accidents.choice(["number", "cut", "type", "swap"]):
                case "number" if arrays[name].size:
                    with np.errstate(invalid="ignore"):
                        number = np.array(accidents.choice(NUMBERS)).astype(arrays[name].dtype)
                    arrays[name][accidents.randrange(arrays[name].size)] = number
                case "cut":
                    arrays[name] = arrays[name][: accidents.randrange(arrays[name].size + 1)]
                case "type":
                    with np.errstate(invalid="ignore", over="ignore"):
                        arrays[name] = arrays[name].astype(
                            accidents.choice([np.float32, np.float64, np.int64, np.uint8])
                        )
                case "swap":
                    arrays[name] = arrays[accidents.choice(list(arrays))]


def test_hostile_training_is_refused_or_trains_on(tmp_path):
    metadata, arrays = parts(tmp_path)
    accidents, trained, others = random.Random(0), 0, []
    for _ in range(400):
        changed, changed_arrays = copy.deepcopy(metadata), {name: array.copy() for name, array in arrays.items()}
        mutate(accidents, changed, changed_arrays)
        checkpoint.write(tmp_path / "training", changed, changed_arrays)
        try:
            fastbp.resume(tmp_path / "training", X, Y, epochs=2)
            trained += 1
        except (CheckpointError, DivergenceError):
            pass
        except (ParameterError, DataError) as error:  # settings are good, but not for these data
            others.append(str(error))

    assert 20 < trained < 200
    assert [error for error in others if not error.startswith(("'class_weight'", "'batch_size'", "'validation'"))] == []


# --- crashes ------------------------------------------------------------------------------------------------------


def record(monkeypatch, path):
    """The calls of a save: what they were for, and what stood in the files then."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle):
        status = os.fstat(handle)
        directory = stat.S_ISDIR(status.st_mode)
        calls.append(("fsync", os.path.samestat(status, os.stat(path.parent)) if directory else status.st_size))
        fsync(handle)

    def recorded_replace(source, target):
        calls.append(("replace", os.stat(source).st_size, os.fspath(target)))
        assert os.path.dirname(source) == os.path.dirname(target)
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", recorded_fsync)
    monkeypatch.setattr(checkpoint.os, "replace", recorded_replace)
    return calls


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be flushed there")
def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    size = len(saved(tmp_path))
    path = Path(os.path.realpath(tmp_path)) / "saved.npz"
    calls = record(monkeypatch, path)

    expected = [("fsync", size), ("replace", size, str(path)), ("fsync", True)]
    network().save(path)
    actual = calls

    assert actual == expected


def failing(error):
    def call(*arguments, **settings):
        raise error

    return call


class FullDisk(io.FileIO):
    """A file that takes ten bytes."""

    def write(self, data):
        super().write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")


FAULTS = {
    "open": ("open", failing(OSError(errno.ENOSPC, "full"))),
    "write": ("open", FullDisk),
    "fsync": ("os.fsync", failing(OSError(errno.EIO, "broken"))),
    "replace": ("os.replace", failing(PermissionError(errno.EACCES, "in use"))),
    "chmod": ("os.chmod", failing(PermissionError(errno.EPERM, "not yours"))),
    "Ctrl-C": ("os.fsync", failing(KeyboardInterrupt())),
    "no memory": ("os.replace", failing(MemoryError())),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch, fault):
    data = saved(tmp_path)
    name, broken = FAULTS[fault]
    with monkeypatch.context() as patch:
        patch.setattr(f"fastbp.checkpoint.{name}", broken, raising=False)
        with pytest.raises((OSError, KeyboardInterrupt, MemoryError)):
            Network((2, 3, 1), seed=1).save(tmp_path / "saved.npz")

    assert os.listdir(tmp_path) == ["saved.npz"]
    assert (tmp_path / "saved.npz").read_bytes() == data


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be flushed there")
@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.EBADF, False), (errno.EIO, True)])
def test_directory_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch, code, raised):
    fsync = os.fsync

    def refuse_directories(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, "no")
        fsync(handle)

    expected = code if raised else None
    actual = None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", refuse_directories)
        try:
            network().save(tmp_path / "file")
        except OSError as error:
            actual = error.errno

    assert actual == expected
    assert same(Network.load(tmp_path / "file"), network())


def test_directory_that_cannot_be_opened_is_no_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "open", failing(PermissionError()))
        network().save(tmp_path / "file")

    assert same(Network.load(tmp_path / "file"), network())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_not_saved(tmp_path, value):
    data = saved(tmp_path)
    diverged = network()
    diverged.params[3] = value

    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        diverged.save(tmp_path / "saved.npz")

    assert (tmp_path / "saved.npz").read_bytes() == data


UNREADABLE = {
    "int32": ({}, {"array": np.zeros(3, np.int32)}),
    "objects": ({}, {"array": np.array([None])}),
    "NaN": ({"value": float("nan")}, {}),
    "name taken": ({}, {"metadata": np.zeros(3)}),
    "too much JSON": ({"value": "x" * 2**20}, {}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_could_not_be_read_is_not_written(tmp_path, name):
    data = saved(tmp_path)

    with pytest.raises(ValueError, match=r"\w"):
        checkpoint.write(tmp_path / "saved.npz", *UNREADABLE[name])

    assert os.listdir(tmp_path) == ["saved.npz"]
    assert (tmp_path / "saved.npz").read_bytes() == data


# A process that saves two networks in turn, killed at a random moment; what it leaves must be one of them.
KILLS = """
import os, random, signal, sys, time
import fastbp
networks = [fastbp.Network((50, 50, 1), seed=seed) for seed in range(2)]
expected = {network.params.tobytes() for network in networks}
networks[0].save("file")
random.seed(0)
for kill in range(25):
    child = os.fork()
    if not child:
        while True:
            for network in networks:
                network.save("file")
    time.sleep(random.uniform(0.01, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert fastbp.Network.load("file").params.tobytes() in expected
left = [name for name in os.listdir() if name != "file"]
assert all(name.startswith(".file.") and name.endswith(".tmp") for name in left), left
"""

# A disk that fills up, as far as the system can play it: no file may grow beyond 1,000 bytes.
QUOTA = """
import os, resource
import fastbp
small, large = fastbp.Network((2, 3, 1), seed=0), fastbp.Network((50, 50, 1), seed=0)
small.save("file")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    large.save("file")
except OSError as error:
    print(error.errno)
assert os.listdir() == ["file"]
assert fastbp.Network.load("file").params.tobytes() == small.params.tobytes()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_process_leaves_a_whole_file(tmp_path):
    output_of("-c", KILLS, cwd=tmp_path, OPENBLAS_NUM_THREADS="1")  # fork() wants no threads


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_full_disk_leaves_the_old_file(tmp_path):
    expected = f"{errno.EFBIG}\n"
    actual = output_of("-c", QUOTA, cwd=tmp_path)

    assert actual == expected


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be replaced there")
def test_who_has_the_old_file_open_keeps_it(tmp_path):
    data = saved(tmp_path)
    with open(tmp_path / "saved.npz", "rb") as old:
        Network((5, 4, 3), seed=1).save(tmp_path / "saved.npz")
        actual = old.read()

    assert actual == data
    assert (tmp_path / "saved.npz").read_bytes() != data


# --- what stands at the path --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_pipe_without_a_writer_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code = """
import fastbp
try:
    fastbp.Network.load("pipe")
except fastbp.CheckpointError as error:
    print(error)
"""
    assert "not a regular file" in output_of("-c", code, cwd=tmp_path)


@pytest.mark.parametrize("ending", ["/", "/.", "//"])
def test_directory_is_not_made_a_file(tmp_path, ending):
    with pytest.raises(IsADirectoryError):
        network().save(f"{tmp_path / 'directory'}{ending}")

    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="names are UTF-16 there")
def test_path_that_cannot_be_a_name_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"^'path' must hold only characters"):
        network().save(tmp_path / "a\ud800")
    with pytest.raises(ParameterError, match=r"^'path' must hold only characters"):
        Network.load("a\ud800")


@pytest.mark.skipif(sys.platform == "win32", reason="names are UTF-16 there")
def test_name_of_any_bytes_is_a_path(tmp_path):
    name = os.fsdecode(b"a\xff")
    network().save(tmp_path / name)

    assert same(Network.load(tmp_path / name), network())


def test_path_that_fails_to_name_itself_is_refused():
    class Nameless(os.PathLike):
        def __fspath__(self):
            raise RuntimeError

    with pytest.raises(ParameterTypeError, match=r"^'path' must have a name"):
        network().save(Nameless())


def test_training_with_more_settings_than_a_file_holds_is_not_saved(tmp_path):
    weights = dict.fromkeys(range(2), 1.0) | dict.fromkeys(range(2, 60_000), 1 / 3)
    X, y = np.zeros((2, 1)), np.eye(2, 60_000)
    result = fastbp.train(X, y, loss="cross_entropy", class_weight=weights, epochs=0, backend="numpy")

    with pytest.raises(ParameterError, match=r"^'class_weight' must have fewer classes to be saved"):
        result.save(tmp_path / "file")

    assert os.listdir(tmp_path) == []
