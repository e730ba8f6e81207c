"""Compare the program with a bare PyTorch loop on the same GPU: one table of steps a second.

    python -m benchmarks.gpu [--out FILE] [--only TEXT]
    python -m benchmarks.gpu --device cpu --tiny     # does the command work? its numbers mean nothing

Without a GPU it prints `no GPU`. `benchmarks/gpu/README.md` explains the columns.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Parse the command line, measure all cases, and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the command without a GPU")
    parser.add_argument("--tiny", action="store_true", help="small pictures and few steps, to try the command itself")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this text in their names")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write, with all that was measured")
    options = parser.parse_args()
    if options.device == "cpu":
        # Runs choose their device by devices.kind=auto.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU")
        return 0

    from benchmarks.gpu import ratios
    from fedh2l_mpi.runtime import arithmetic

    # The bare loop uses CUDA before the first run does.
    arithmetic.fix_workspace()
    rows: list[ratios.Row] = []
    rounds = ratios.TINY_ROUNDS if options.tiny else ratios.ROUNDS
    if options.device == "cpu":
        # As a run has by default.
        torch.set_num_threads(1)
    for case in ratios.cases(options.tiny):
        if options.only in case.name:
            measured = ratios.measure(case, options.device, rounds)
            print("\n".join(ratios.lines(measured, judges=options.device == "cuda")[1 if rows else 0 :]), flush=True)
            rows += measured
    print(f"\nmeasured on {_device(options.device)}; targets are for one H100")
    if options.out is not None:
        facts = {"device": _device(options.device), "torch": torch.__version__, "cuda": torch.version.cuda}
        found = {**facts, "tiny": options.tiny, "rows": ratios.as_json(rows)}
        options.out.write_text(json.dumps(_without_nan(found), indent=1) + "\n")
    return 1 if any(row.failure for row in rows) else 0


def _device(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else "a CPU"


def _without_nan(value: Any) -> Any:
    """Return the value with null in place of NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    sys.exit(main())
