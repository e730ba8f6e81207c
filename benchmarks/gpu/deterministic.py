"""The program's command line with PyTorch's deterministic algorithms, which a run does not ask for itself.

    python -m benchmarks.gpu.deterministic [ARGUMENTS OF fedh2l_mpi]

GPU_CHECK_IEEE=1 also switches off TF32.
"""

import os
import runpy
import sys

# cuBLAS reads this when it starts; later it has no effect.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch


def main() -> None:
    """Set the flags, then become `python -m fedh2l_mpi`."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if os.environ.get("GPU_CHECK_IEEE") == "1":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    # PyTorch flags some operations whose CUDA kernels do add in a fixed order; warnings let them run.
    torch.use_deterministic_algorithms(True, warn_only=True)
    sys.argv[0] = "fedh2l_mpi"
    runpy.run_module("fedh2l_mpi", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
