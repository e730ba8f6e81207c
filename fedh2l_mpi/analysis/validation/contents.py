"""Check a metrics file's contents as other programs see them: digest, dimension scales, h5dump."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.analysis.validation.findings import Report
from fedh2l_mpi.metrics import look
from fedh2l_mpi.metrics.digests import content_digest
from fedh2l_mpi.metrics.file_arrays import DAMAGE, is_absent, reason
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.runtime.processes import run_program
from fedh2l_mpi.runtime.safe_hdf5 import RefusedError

# Time limit of another program; all of them read headers only, so the file's size does not matter.
PROGRAM_SECONDS = 30


def check_content(run: Run, report: Report) -> None:
    """Compare the digest of the contents with the recorded one."""
    recorded = run.metrics.attributes.get("content_digest")
    if not run.metrics.closed:
        report.note("content", "the file was not closed, so it has no content_digest to compare with")
    elif not recorded:
        report.note("content", "an older version recorded no content_digest")
    else:
        try:
            file, _ = open_for_reading(run.file)
            with file:
                got = content_digest(file)
        except DAMAGE as error:
            report.error("content", f"content_digest cannot be computed: {reason(error)}")
            return
        wrong = f"content_digest: got {got[:12]}..., must be {str(recorded)[:12]}...; a value has changed since"
        report.verdict("content", [wrong] if got != recorded else [], f"content_digest {got[:12]}... matches")


def check_scales(run: Run, report: Report) -> None:
    """Check, in a separate process, that the dimension scales are attached.

    HDF5 stores references to them in its global heap, its only structure without a checksum. If the heap is damaged,
    HDF5 may loop forever.
    """
    code = "import sys; from fedh2l_mpi.analysis.validation import contents; contents.print_unattached(sys.argv[1])"
    ended = _ended([sys.executable, "-c", code, str(run.file)])
    if isinstance(ended, _Failure):
        report.error("programs", f"dimension scales cannot be followed: {ended}")
    else:
        report.verdict("programs", ended.splitlines(), "every dimension has its scale attached")


def print_unattached(path: str) -> None:
    """Print a line for each dimension whose attached scale is missing or wrong."""
    file, _ = open_for_reading(Path(path))
    for name, dims in look(Path(path)).dimensions.items():
        if is_absent(file, name):
            continue
        for axis, dim in enumerate(dims):
            try:
                attached = [scale.name for scale in file[name].dims[axis].values()]
            except DAMAGE as error:
                print(f"array {name!r}: scales of dimension {axis} are damaged: {reason(error)}")
            else:
                if attached != [f"/{dim}"]:
                    print(f"array {name!r}: got scales {attached} for dimension {axis}, must be {dim!r} alone")


def check_h5dump(run: Run, report: Report) -> None:
    """Check that h5dump reads the file."""
    program = shutil.which("h5dump")
    if program is None:
        report.note("programs", "h5dump was not tried: it is not installed")
        return
    if not run.metrics.closed:
        report.note(
            "programs", "h5dump was not tried: the file was not closed. After a kill, h5clear -s makes it readable"
        )
        return
    refused = _refused(run.file)
    if refused:
        # h5dump follows links, and would wait for a pipe or print the values of another file.
        report.note("programs", f"h5dump was not tried: {refused[0]!r} is not plain data inside the file")
        return
    wrong = []
    for options in (["-H"], ["-d", "round"]):
        ended = _ended([program, *options, str(run.file)])
        wrong += [f"h5dump {' '.join(options)}: {ended}"] if isinstance(ended, _Failure) else []
    report.verdict("programs", wrong, "h5dump reads the file")


def _refused(path: Path) -> list[str]:
    """Return the names in a file that SafeFile refuses to read."""
    refused = []
    file, _ = open_for_reading(path)
    with file:
        for name in file:
            try:
                _ = file[name]
            except RefusedError:
                refused.append(name)
            except DAMAGE:
                # h5dump will say so, too.
                continue
    return refused


class _Failure(str):
    """Description of a program's failure."""


def _ended(command: Sequence[str]) -> str:
    """Return the output of a program, or a _Failure."""
    try:
        ended = run_program(command, PROGRAM_SECONDS)
    except subprocess.TimeoutExpired:
        return _Failure(f"still running after {PROGRAM_SECONDS} s")
    except OSError as error:
        return _Failure(f"cannot be started: {error.strerror}")
    if ended.returncode:
        printed = ended.stderr.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        return _Failure(f"exit code {ended.returncode}: {printed[0]}")
    return ended.stdout.decode(errors="replace")
