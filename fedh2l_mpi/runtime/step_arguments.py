"""Arguments of a recorded step: which of them go to its memory, and which choose the recorded step."""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from fedh2l_mpi.runtime.step_recording import NotRepeatableError


class _OfOneRound:
    """Stand-in for a fact of one round in a recorded step, which would repeat it in every round: no use is allowed."""

    def __getattr__(self, name: str) -> Any:
        self._refuse()

    def _refuse(self, *_: Any) -> Any:
        raise NotRepeatableError("it uses a fact of the round, such as now.index, that is no argument of its own")

    __index__ = __int__ = __float__ = __bool__ = __len__ = __iter__ = __getitem__ = __str__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __mod__ = __pow__ = __rpow__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __eq__ = __ne__ = _refuse
    __hash__ = None  # type: ignore[assignment]


OF_ONE_ROUND: Any = _OfOneRound()


def is_composite(value: Any) -> bool:
    """Return True for an argument that consists of tensors: it has `tensors` and `with_tensors`."""
    return hasattr(value, "with_tensors")


def kind_of(read: Any) -> Hashable:
    """Return what a recorded step takes for granted of an argument: shapes of tensors, or the value itself."""
    if isinstance(read, Tensor):
        return ("tensor", read.shape, read.stride(), read.dtype)
    if is_composite(read):
        return (type(read), read.facts(), *((name, kind_of(value)) for name, value in read.tensors().items()))
    if read is None or isinstance(read, bool | int | float | str | tuple):
        # True equals 1, and 1 equals 1.0.
        return (type(read), read)
    raise NotRepeatableError(f"one of its arguments is a {type(read).__name__}, not a tensor or a number")


def refuse_closure(step: Callable[..., None]) -> None:
    """Refuse a step that takes values from around it, because a recorded step would never see new ones.

    Objects such as the method and the participant are allowed.
    """
    code = getattr(step, "__code__", None)
    if code is None:
        raise NotRepeatableError("it is no plain function")
    cells = zip(code.co_freevars, getattr(step, "__closure__", None) or (), strict=True)
    around = [(name, cell.cell_contents) for name, cell in cells]
    around += [("a default value", value) for value in getattr(step, "__defaults__", None) or ()]
    for name, value in around:
        if is_composite(value) or isinstance(value, Tensor | bool | int | float | str | tuple | list | dict | set):
            raise NotRepeatableError(f"it takes {name!r} from around it, which must be an argument")
