"""Settings of the process that runs one part, and the findings that the part reports.

`check` starts every part in its own process and passes the settings through the environment.
"""

import contextlib
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Parts run in the repository's root, where `check` was started.
ROOT = Path.cwd()
DEVICE = os.environ.get("GPU_CHECK_DEVICE", "cpu")
ON_GPU = DEVICE == "cuda"
TINY = os.environ.get("GPU_CHECK_TINY") == "1"
MNIST = os.environ.get("GPU_CHECK_MNIST") or None
SCRATCH = Path(os.environ.get("GPU_CHECK_SCRATCH") or tempfile.mkdtemp(prefix="gpu-check-"))
# The part `vision` writes this pack of photographs; the part `memory` reads it.
PACK = SCRATCH / "photographs.h5"

PASS, FAIL, INFO, SKIP = "PASS", "FAIL", "INFO", "SKIP"


class Report:
    """The findings of one part.

    Every new finding rewrites the part's file, so that a part that is stopped loses none.

    Parameters
    ----------
    part : str
        Name of the part.
    path : Path or None
        JSON file for the findings; None: they are printed only.
    """

    def __init__(self, part: str, path: Path | None) -> None:
        self.part, self._path = part, path
        self._rows: list[dict[str, Any]] = []

    def add(self, finding: str, verdict: str, detail: str, **numbers: Any) -> None:
        """Add one line to the table; `numbers` go to the JSON file only."""
        self._rows.append({"part": self.part, "finding": finding, "verdict": verdict, "detail": detail, **numbers})
        if self._path is not None:
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._rows, default=str))
            partial.replace(self._path)
        print(f"{verdict}  {self.part:9} {finding:34} {detail}", flush=True)

    def check(self, finding: str, holds: bool, detail: str, **numbers: Any) -> None:
        """Add a line that passes or fails."""
        self.add(finding, PASS if holds else FAIL, detail, **numbers)

    @contextlib.contextmanager
    def failure_of(self, finding: str) -> Iterator[None]:
        """Report an exception of the body as a failure, and let the part continue."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            first_line = (str(error).splitlines() or [""])[0]
            self.add(finding, FAIL, f"{type(error).__name__}: {first_line}"[:160])


def stop_children_on_term(children: "set[Any]") -> None:
    """On SIGTERM, kill the process groups of `children` and leave at once."""

    def stop(number: int, frame: object) -> None:
        for child in list(children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
