"""The classes of all errors that fastbp raises on purpose."""

from __future__ import annotations

from typing import Any


class FastbpError(Exception):
    """Any error that fastbp raises on purpose; `name` is that of the argument at fault, None if there is not one.

    >>> error = ParameterError("must be an integer >= 1, got 0", name="epochs")
    >>> error.name, str(error)
    ('epochs', "'epochs' must be an integer >= 1, got 0")
    """

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message if name is None else f"{name!r} {message}")
        self.name = name


class ParameterError(FastbpError, ValueError):
    """A setting is of the right type but out of its range."""


class ParameterTypeError(FastbpError, TypeError):
    """An argument is of the wrong type."""


class DataError(FastbpError, ValueError):
    """X, y or another array has the wrong shape, dtype or values."""


class ResourceError(MemoryError, FastbpError):
    """The request needs more memory than the machine has."""

    # MemoryError comes first, since Python lets nobody else make its instances: tools that pickle errors in their own
    # way would fail.
    __init__ = FastbpError.__init__


class CheckpointError(FastbpError, ValueError):
    """A file is damaged, of a later version, or not one that fastbp has saved."""


class DivergenceError(FastbpError, ArithmeticError, ValueError):
    """Loss or weights ceased to be finite in `epoch`, counted from 1; `result` ends with the last finite weights."""

    def __init__(self, epoch: int, result: Any = None) -> None:
        super().__init__(
            f"loss or weights ceased to be finite in epoch {epoch}: 'learning_rate' is too large for this training, "
            "or X, y or the first weights are; numbers near 1 are safe"
        )
        self.name = "learning_rate"
        self.epoch = epoch
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epoch, self.result), self.__dict__  # the default would pass the message as the epoch
