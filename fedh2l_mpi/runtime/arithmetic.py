"""Arithmetic of a GPU: the number format of products and convolutions, and kernels that give the same bits each time.

PyTorch has both as global flags, with defaults that a run does not want: convolutions in TF32, and kernels that add in
any order. A run sets them when it knows its device, before its first model; `restored` returns a caller's own flags. On
a CPU nothing is set, because PyTorch's CPU kernels are deterministic and compute float32 as such.

What is set here follows PyTorch's documentation. It has not been verified on a GPU.

Source: PyTorch's notes "Reproducibility" and "CUDA semantics", and the documentation of
`torch.use_deterministic_algorithms`.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

# cuBLAS reads this once, when a process first uses it. With these sizes it adds in the same order every time.
WORKSPACE, SIZES = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# Kernels of fused attention; the backward pass of each adds in any order while other kernels are only warned of.
FUSED_ATTENTION = ("flash", "mem_efficient", "cudnn")
_MEMORY: Any = torch.utils.deterministic


def fix_workspace(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Ask cuBLAS for the same bits every time, unless the environment has a setting of the user's own.

    It is called before a process uses CUDA. The variable stays, because cuBLAS reads it once for a whole process.

    Returns
    -------
    bool
        False if CUDA is in use already, so that cuBLAS may have started without the setting.
    """
    if WORKSPACE in environ:
        return True
    environ[WORKSPACE] = SIZES
    return not torch.cuda.is_initialized()


def set_up(device: torch.device, precision: str) -> None:
    """Set PyTorch's flags for a run on a GPU; on a CPU, leave them as they are.

    Operations that have no deterministic kernel still run, and PyTorch warns of each. By its documentation, none of
    this package's own architectures and losses has one; some of torchvision's have.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        `optimizer.precision`. TF32 is on for `tf32` only: what `bfloat16` leaves in float32 is there for its digits.
    """
    if device.type != "cuda":
        return
    _set_tf32(precision == "tf32")
    torch.backends.cudnn.deterministic = True
    # Benchmarks choose the fastest kernel of the moment, which may be another one in the next run.
    torch.backends.cudnn.benchmark = False
    # The same as use_deterministic_algorithms, which also imports 800 modules of torch.compile.
    torch.set_deterministic_debug_mode("warn")
    # It would fill every new tensor, which finds mistakes in kernels only.
    _MEMORY.fill_uninitialized_memory = False
    for kind in FUSED_ATTENTION:
        _set_attention(kind, False)


@dataclass(frozen=True)
class _Flags:
    """PyTorch's flags that `set_up` may change."""

    is_deterministic: bool
    benchmarks: bool
    debug_mode: int
    fills: bool
    attention: tuple[bool, ...]
    tf32: tuple[Any, ...]

    @classmethod
    def now(cls) -> "_Flags":
        return cls(
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.get_deterministic_debug_mode(),
            _MEMORY.fill_uninitialized_memory,
            tuple(getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in FUSED_ATTENTION),
            _tf32(),
        )

    def put_back(self) -> None:
        torch.backends.cudnn.deterministic = self.is_deterministic
        torch.backends.cudnn.benchmark = self.benchmarks
        torch.set_deterministic_debug_mode(self.debug_mode)
        _MEMORY.fill_uninitialized_memory = self.fills
        for kind, is_on in zip(FUSED_ATTENTION, self.attention, strict=True):
            _set_attention(kind, is_on)
        _put_tf32_back(self.tf32)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore PyTorch's flags at the end, if they have changed."""
    before = _Flags.now()
    try:
        yield
    finally:
        if _Flags.now() != before:
            before.put_back()


def _set_attention(kind: str, is_on: bool) -> None:
    getattr(torch.backends.cuda, f"enable_{kind}_sdp")(is_on)


# PyTorch 2.9 has new names for TF32, and then raises an error where only the new or only the old ones are set. So both
# are set here, the old ones first.


def _owners() -> tuple[Any, ...]:
    """Owners of the new flag `fp32_precision` for CUDA; none before PyTorch 2.9."""
    cudnn: Any = torch.backends.cudnn
    return (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul) if hasattr(cudnn, "conv") else ()


def _kept() -> tuple[Any, ...]:
    """The owners, and the one of a CPU's products, which the old flag of CUDA's products changes too."""
    mkldnn: Any = torch.backends.mkldnn
    return (*_owners(), mkldnn.matmul) if _owners() else ()


def _set_tf32(is_on: bool) -> None:
    with _silent():
        torch.backends.cudnn.allow_tf32 = is_on
        torch.backends.cuda.matmul.allow_tf32 = is_on
    for owner in _owners():
        owner.fp32_precision = "tf32" if is_on else "ieee"


def _tf32() -> tuple[Any, ...]:
    """Old flags, of which None means that a caller's new flags contradict it; then the new flags."""
    old: list[Any] = []
    for read in (lambda: torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            with _silent():
                old.append(read())
        except RuntimeError:
            old.append(None)
    return (*old, *(owner.fp32_precision for owner in _kept()))


def _put_tf32_back(flags: tuple[Any, ...]) -> None:
    in_convolutions, in_products, *new = flags
    with _silent():
        if in_convolutions is not None:
            torch.backends.cudnn.allow_tf32 = in_convolutions
        if in_products is not None:
            torch.set_float32_matmul_precision(in_products)
    for owner, precision in zip(_kept(), new, strict=True):
        owner.fp32_precision = precision


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # PyTorch 2.9 and later may warn of the old names.
    with warnings.catch_warnings(action="ignore"):
        yield
