"""Flags of a GPU's arithmetic: PyTorch has them without a GPU, too; what they do there was not seen."""

import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from fedh2l_mpi.runtime import arithmetic

BACKENDS = torch.backends
GPU = torch.device("cuda:1")
# The flags of torch.backends, by name. An error stands for a contradiction of old and new flags.
NAMES = [
    *("cudnn.deterministic", "cudnn.benchmark", "cudnn.allow_tf32", "cuda.matmul.allow_tf32"),
    *("cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision", "cuda.matmul.fp32_precision"),
    *("cudnn.fp32_precision", "fp32_precision", "mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision"),
]


def read(name: str) -> object:
    owner: object = BACKENDS
    try:
        for part in name.split("."):
            owner = getattr(owner, part)
    except RuntimeError:
        return "contradiction"
    return owner


def flags() -> dict[str, object]:
    """Every flag that a run on a GPU could change."""
    cuda = BACKENDS.cuda
    return {name: read(name) for name in NAMES} | {
        "debug mode": torch.get_deterministic_debug_mode(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()),
    }


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    """A warning about old names is an error; the flags are left as they were."""
    before = flags()
    with warnings.catch_warnings(action="error"), arithmetic.restored():
        yield
    assert flags() == before


@pytest.mark.parametrize(("precision", "is_tf32"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_tf32_is_used_where_it_is_asked_for_and_nowhere_else(precision, is_tf32):
    # PyTorch's own default: convolutions, but not products.
    assert (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32) == (True, False)
    before = set(sys.modules)
    arithmetic.set_up(GPU, precision)
    found = flags()
    assert {found[name] for name in NAMES if name.endswith("allow_tf32")} == {is_tf32}
    spelled = {found[f"{name}.fp32_precision"] for name in ("cudnn.conv", "cudnn.rnn", "cuda.matmul")}
    assert spelled == {"tf32" if is_tf32 else "ieee"}
    # A CPU computes as before.
    assert (found["mkldnn.matmul.fp32_precision"], found["mkldnn.conv.fp32_precision"]) == ("none", "none")
    assert (found["cudnn.deterministic"], found["cudnn.benchmark"], found["debug mode"]) == (True, False, 1)
    assert (found["fills"], found["attention"]) == (False, (False, False, False))
    assert set(sys.modules) == before, "a start would take a second longer"


def test_on_a_cpu_nothing_is_set():
    before = flags()
    for precision in ("float32", "tf32", "bfloat16"):
        arithmetic.set_up(torch.device("cpu"), precision)
    assert flags() == before


def _old_convolutions() -> None:
    BACKENDS.cudnn.allow_tf32 = False


def _old_products() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = True


def _new_convolutions() -> None:
    # The old name of the same flag cannot be read now.
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def _kernels() -> None:
    BACKENDS.cudnn.benchmark = True
    BACKENDS.cudnn.deterministic = True
    BACKENDS.cuda.enable_flash_sdp(False)
    torch.set_deterministic_debug_mode("error")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize(
    "own",
    [
        lambda: None,
        _old_convolutions,
        _old_products,
        _new_convolutions,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        _kernels,
    ],
)
def test_a_caller_gets_flags_of_their_own_back_also_after_an_error(own: Callable[[], None], precision):
    own()
    before = flags(), torch.get_float32_matmul_precision() if own is not _new_convolutions else None

    def fails() -> None:
        with arithmetic.restored():
            arithmetic.set_up(GPU, precision)
            assert flags() != before[0]
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert (flags(), torch.get_float32_matmul_precision() if own is not _new_convolutions else None) == before


def test_a_pytorch_with_the_old_names_alone_gets_those(monkeypatch):
    monkeypatch.setattr(arithmetic, "_owners", lambda: ())
    with arithmetic.restored():
        arithmetic.set_up(GPU, "float32")
        assert (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32) == (False, False)
        arithmetic.set_up(GPU, "tf32")
        assert (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32) == (True, True)
    assert (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32) == (True, False)
    # This PyTorch has the new names, so they are put back here.
    monkeypatch.undo()
    BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize(
    ("environ", "in_use", "value", "in_time"),
    [
        ({}, False, ":4096:8", True),
        # It helps nobody any more, except a later process.
        ({}, True, ":4096:8", False),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, True, ":16:8", True),
        ({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, False, ":0:0", True),
    ],
)
def test_cublas_is_asked_before_cuda_is_in_use(monkeypatch, environ, in_use, value, in_time):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    assert arithmetic.fix_workspace(environ) is in_time
    assert environ == {"CUBLAS_WORKSPACE_CONFIG": value}
