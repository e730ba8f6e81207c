"""Check a metrics file's arrays, attributes and config against the schema."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.analysis.validation.findings import OF_ARRAY, Report
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.config.text_files import read_text
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import ADDED, SCHEMA_VERSION, Columns, Field
from fedh2l_mpi.metrics.file_arrays import DAMAGE, is_absent, reason
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.safe_hdf5 import ATTRIBUTE_BYTES, SafeAttributes, SafeFile
from fedh2l_mpi.runtime.terminal import harmless

if TYPE_CHECKING:
    import h5py

SHA256 = re.compile(r"[0-9a-f]{64}")


def check_file(run: Run, report: Report) -> None:
    """Check schema version, state and seed-set digest."""
    version = run.metrics.attributes.get("schema_version")
    if version == SCHEMA_VERSION:
        report.ok("file", f"a metrics file of fedh2l_mpi, schema {version}")
    for problem in run.problems:
        if problem.startswith("has schema"):
            report.error("file", problem)
    level = report.ok if run.state == "complete" else report.note
    level("file", f"the run is {run.condition}" if run.state == "complete" else f"the run {_was(run)}")
    digest = run.metrics.attributes.get("seed_set_digest")
    if isinstance(digest, str) and SHA256.fullmatch(digest):
        report.ok("file", f"seed_set_digest {digest[:12]}... is one")
    else:
        report.error("file", f"attribute 'seed_set_digest': got {digest!r}, must be 64 hexadecimal digits")


def add_problems(run: Run, report: Report) -> None:
    """Add the reader's problems, unless a check has already reported an error of the same array."""
    reported = [finding.what for finding in report.findings if finding.level == "error"]
    for problem in run.problems:
        array = OF_ARRAY.match(problem)
        if problem not in reported and not (array and any(what.startswith(array[0]) for what in reported)):
            report.error("damage", problem)


def _was(run: Run) -> str:
    return f"{'is' if run.state == 'running' else 'has'} {run.condition}"


def check_schema(path: Path, closed: bool, report: Report, columns: Columns) -> None:
    """Check names, shapes, types, units and dimensions of all arrays in the file."""
    wrong: list[str] = []
    reworded: list[str] = []
    try:
        file, _ = open_for_reading(path)
    except DAMAGE as error:
        report.error("arrays", f"cannot be read as HDF5: {reason(error)}")
        return
    with file:
        sizes = {scale.name: _length(file, scale.name) for scale in columns.scales}
        fields = {**{scale.name: scale for scale in columns.scales}, **columns.fields}
        missing_since_added = [name for name in fields if name in ADDED and is_absent(file, name)]
        for name, wanted in fields.items():
            if name in missing_since_added:
                continue
            try:
                array = file[name]
                meaning = _text_attribute(array, "long_name")
                dims = columns.dimensions.get(name, (name,))
                wrong += _wrong_in_array(array, meaning, wanted, dims, sizes, closed)
            except DAMAGE as error:
                wrong.append(f"array {name!r} is missing or damaged: {reason(error)}")
            else:
                reworded += [name] if meaning and meaning != wanted.long_name else []
    report.verdict("arrays", wrong, f"{len(fields) - len(missing_since_added)} arrays with their dimensions and units")
    if reworded:
        report.note("arrays", f"another version wrote the long_name of {', '.join(reworded)}")
    if missing_since_added:
        report.note("arrays", f"an older version recorded no {', '.join(missing_since_added)}")


def _wrong_in_array(
    array: "h5py.Dataset",
    meaning: Any,
    wanted: Field,
    dims: Sequence[str],
    sizes: Mapping[str, int | None],
    closed: bool,
) -> list[str]:
    import h5py

    wrong = []
    name = wanted.name
    kind = np.dtype(wanted.dtype)
    is_as_wanted = array.dtype.kind == kind.kind and (kind.kind == "S" or array.dtype == kind)
    if not is_as_wanted:
        wrong.append(f"array {name!r}: got type {array.dtype}, must be {wanted.dtype}")
    if len(array.shape) != len(dims):
        wrong.append(f"array {name!r}: got {len(array.shape)} dimensions, must be {len(dims)}: {', '.join(dims)}")
        return wrong
    for dim, length in zip(dims, array.shape, strict=True):
        size = sizes[dim]
        # A kill may leave growing arrays with lengths that differ by a round; the rounds that all have count.
        if size is not None and length != size and (closed or dim not in ("round", "edge")):
            wrong.append(f"array {name!r}: got length {length} along {dim}, must be {size}")
    if name in sizes and not h5py.h5ds.is_scale(array.id):
        wrong.append(f"array {name!r}: must be a dimension scale")
    units = _text_attribute(array, "units")
    if units != wanted.units:
        wrong.append(f"array {name!r}, attribute 'units': got {units!r}, must be {wanted.units!r}")
    if not meaning:
        wrong.append(f"array {name!r}, attribute 'long_name': got {meaning!r}, must be {wanted.long_name!r}")
    return wrong


def _text_attribute(array: "h5py.Dataset", name: str) -> Any:
    got = SafeAttributes(array).get(name)
    return got.decode(errors="replace") if isinstance(got, bytes) else got


def _length(file: SafeFile, name: str) -> int | None:
    try:
        return int(file[name].shape[0])
    except DAMAGE:
        return None


def check_config(run: Run, report: Report) -> Config | None:
    """Return the config if it is valid, and check that it belongs to this file."""
    recorded = run.metrics.attributes.get("config")
    if not run.config:
        # This problem is already reported.
        return None
    try:
        config = loading.load_stored(run.config)
    except UserError as error:
        report.error("config", f"attribute 'config' is not a valid config: {' '.join(str(error).split())}")
        config = None
    if config is not None:
        attributes = run.metrics.attributes
        differing = [
            f"config has {key} {wanted}, the file has {what} {got}"
            for key, wanted, what, got in (
                ("participants", config.participants, "participants:", run.participants),
                ("seed", config.seed, "attribute 'seed':", attributes.get("seed")),
                ("rounds", config.rounds, "attribute 'rounds_planned':", attributes.get("rounds_planned")),
            )
            if wanted is not None and got != wanted
        ]
        report.verdict("config", differing, "a valid config, of these participants, rounds and seed")
    directory = RunDirectory(run.file.parent)
    if run.file.name == directory.metrics.name and directory.config.exists():
        try:
            same = harmless(read_text(directory.config, ATTRIBUTE_BYTES)) == recorded
        except (OSError, ValueError) as error:
            report.note("config", f"{directory.config.name} next to the file cannot be read: {reason(error)}")
            return config
        if same:
            report.ok("config", f"{directory.config.name} next to the file is the same")
        else:
            report.error("config", f"{directory.config.name} next to the file differs from the attribute 'config'")
    return config
