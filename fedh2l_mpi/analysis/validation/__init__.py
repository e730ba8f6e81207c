"""Check a metrics file against its schema, and its numbers for consistency, however damaged the file is.
Shape letters: R rounds of a block, P participants, D domains, K confidence bins, C classes, E edges.
"""

from collections.abc import Sequence
from pathlib import Path

from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.analysis.validation.contents import check_content, check_h5dump, check_scales
from fedh2l_mpi.analysis.validation.findings import Finding, Report
from fedh2l_mpi.analysis.validation.schema import add_problems, check_config, check_file, check_schema
from fedh2l_mpi.analysis.validation.values import check_graphs, check_participants, check_rounds, check_values
from fedh2l_mpi.errors import UserError

__all__ = ["Finding", "text", "validate"]


def validate(path: Path, programs: bool = True) -> list[Finding]:
    """Run all checks on a run directory or a metrics file; damage in the file becomes a finding, never an exception.

    Parameters
    ----------
    programs : bool
        True: other programs read the file, too: h5dump, and one that follows dimension scales.
    """
    try:
        run = load_run(path)
    except UserError as error:
        return [Finding("error", str(error).removeprefix(f"{path}: "))]
    report = Report()
    with run.metrics.opened():
        check_file(run, report)
        check_schema(run.file, run.metrics.closed, report, run.metrics.columns)
        config = check_config(run, report)
        check_rounds(run, config, report)
        check_participants(run, config, report)
        graphs = check_graphs(run, config, report)
        check_values(run, config, graphs, report)
        check_content(run, report)
        if programs:
            check_scales(run, report)
            check_h5dump(run, report)
        add_problems(run, report)
    return report.findings


def text(path: Path, findings: Sequence[Finding], quiet: bool = False) -> str:
    """Write the verdict, and the findings by group; if `quiet`, only the verdict and the errors."""
    errors = sum(finding.level == "error" for finding in findings)
    lines = []
    for group in dict.fromkeys(finding.group for finding in findings):
        shown = [finding for finding in findings if finding.group == group and (finding.level == "error" or not quiet)]
        lines += [f"  {group}", *(f"    {finding.level:<5}  {finding.what}" for finding in shown)] if shown else []
    verdict = "valid" if errors == 0 else f"not valid: {errors} error{'s' if errors > 1 else ''}"
    return "\n".join([f"{path}: {verdict}", *lines]) + "\n"
