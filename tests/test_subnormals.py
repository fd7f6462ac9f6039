"""Subnormal numbers count as 0 inside the kernels, and nowhere else: not in Python, NumPy or another thread."""

import _thread
import signal
import threading

import numba
import numpy as np
import pytest

import fastbp
from fastbp import jit, simd
from fastbp.simd import flush_subnormals, put_back

DTYPES = ["float64", "float32"]
X, y = np.linspace(-1, 1, 40).reshape(20, 2), np.linspace(0, 1, 20)


@numba.njit(**jit.OPTIONS)
def control_word():
    word = flush_subnormals()
    put_back(word)
    return word & ~63  # on x86 the lowest six bits say what has happened since NumPy last cleared them


def quarter_of_the_least(dtype):
    return (np.array([np.finfo(dtype).smallest_normal], dtype) / np.dtype(dtype).type(4)).item()


@pytest.fixture(autouse=True)
def word_stays():
    """No test of this file leaves another control word, or a NumPy that loses small numbers."""
    before = control_word()
    yield
    assert control_word() == before
    assert all(quarter_of_the_least(dtype) > 0 for dtype in DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_and_prediction(dtype):
    result = fastbp.train(X, y, hidden=4, epochs=5, dtype=dtype, seed=0)
    result.network.predict(X)
    result.network.loss_and_gradient(X, y)


def test_divergence():
    with pytest.raises(fastbp.DivergenceError):
        fastbp.train(X, y, hidden=4, optimizer="sgd", learning_rate=1e300, seed=0)


def test_callback_sees_python_s_own_word():
    expected, actual = control_word(), []

    def callback(state):
        actual.append((control_word(), quarter_of_the_least("float64") > 0))

    fastbp.train(X, y, epochs=3, seed=0, callback=callback)

    assert actual == [(expected, True)] * 3


def test_error_in_a_callback():
    with pytest.raises(ZeroDivisionError):
        fastbp.train(X, y, epochs=3, seed=0, callback=lambda state: 1 / 0)


def test_ctrl_c():
    fastbp.train(X, y, hidden=64, epochs=0, seed=0)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this with it ignored

    def interrupted():
        threading.Timer(0.1, _thread.interrupt_main).start()
        fastbp.train(X, y, hidden=64, epochs=10**7, seed=0)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_threads():
    words = [control_word()]

    def work():
        words.append(control_word())
        fastbp.train(X, y, hidden=64, epochs=200, seed=0)
        words.append(control_word())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        words.append(control_word())
        assert quarter_of_the_least("float64") > 0

    assert len(words) > len(threads)
    assert len(set(words)) == 1


@pytest.mark.skipif(simd.FLUSHING_BITS is None, reason="no control word of this CPU is known")
@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_takes_them_for_zero(dtype):
    network = fastbp.Network((1, 1), bias=False, init="zeros", dtype=dtype)
    network.params[:] = 4
    actual = network.predict(np.array([[quarter_of_the_least(dtype)]], dtype))

    assert actual == 0


@pytest.mark.skipif(simd.FLUSHING_BITS is None, reason="no control word of this CPU is known")
@pytest.mark.parametrize(
    "optimizer", [fastbp.SGD(momentum=0.5), "adam", fastbp.AdamW(weight_decay=1e-5), "rmsprop"], ids=str
)
def test_dying_momenta_become_zero(optimizer):
    """The first step is so long that the output is 1 in the working precision and its delta 0."""
    optimizer = fastbp.checks.optimizer(optimizer, 1e3)
    result = fastbp.train(
        np.ones((4, 2)), np.ones(4), output="sigmoid", optimizer=optimizer, epochs=120_000, batch_size=None, seed=0,
        dtype="float32",
    )  # fmt: skip
    arrays = result.state.arrays

    assert result.loss[-1] == 0
    for name in ("first", "second"):
        sizes = np.abs(arrays[name])
        assert (sizes[sizes > 0] >= np.finfo(np.float32).smallest_normal).all()
    assert not arrays["first"].any()
    assert result.network.params.any()
