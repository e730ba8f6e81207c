"""Data of a user's own function: call it, check what it returns, and make a data set of it.

Every rank calls the function. What it returns must be the same on all, which the digest of the data set shows.

Shape letters: N rows, C classes, D domains, K channels or features.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi import rng
from fedh2l_mpi.data import statistics
from fedh2l_mpi.data.data_set import DataSet
from fedh2l_mpi.data.row_table import Rows, RowTable
from fedh2l_mpi.data.sources import NaturalDomains, Source
from fedh2l_mpi.errors import UserError, did_you_mean, shown
from fedh2l_mpi.runtime import plugins

# Most classes and domains; a larger number is a mistake in the labels.
MOST_CLASSES = 1 << 20


def open_own(key: str, name: str, options: Mapping[str, Any], share: float) -> Source:
    """Return the data set that a user's function gives.

    Parameters
    ----------
    key : str
        What names the function, for messages: `data.name`, or a word of the command line.
    name : str
        The function, as `package.module:function`.
    options : mapping
        Its keyword arguments.
    share : float
        Share of every class that is kept for testing if there is no test part.

    Raises
    ------
    UserError
        If the function cannot be called, or what it returns is no data set.
    """
    plugin = plugins.Plugin(key, name)
    function = plugins.load_class(key, name)
    if not callable(function):
        raise UserError(f"{key}: {name!r} must be a function that returns a fedh2l_mpi.DataSet, got {shown(function)}.")
    _check_arguments(plugin, function, options)
    with plugins.reporting("the function fails", plugin), rng.global_generators(0):
        returned = function(**options)
    if not isinstance(returned, DataSet):
        raise UserError(
            f"{key}: {name!r} returned {type(returned).__name__}, must be a fedh2l_mpi.DataSet. Fix: return "
            "fedh2l_mpi.DataSet(x_train, y_train, ...)."
        )
    return as_source(plugin, returned, share)


def as_source(plugin: plugins.Plugin, given: DataSet, share: float) -> Source:
    """Return a checked data set as a source.

    Raises
    ------
    UserError
        If its parts do not fit together.
    """
    prefix = f"{plugin.key}: {plugin.name!r}"
    train, labels = _part(prefix, plugin, "train", given.x_train, given.y_train)
    classes = _numbered(f"{prefix}: y_train", "class", labels, given.class_names, len(train))
    table = RowTable.of(train, classes.numbers, given.kind, given.vocabulary)
    domains = None
    if given.domain_train is not None:
        domains = _numbered(f"{prefix}: domain_train", "domain", given.domain_train, given.domain_names, len(train))
    test, test_domains = _test_part(prefix, plugin, given, table, classes, domains)
    natural = NaturalDomains(domains.all_names(), domains.numbers, test_domains) if domains else None
    form, is_compact = table.form.form, table.gives_bytes
    full_scale = 255.0 if is_compact else 1.0
    mean, std = _normalisation(prefix, given, table, natural, share if test is None else None, full_scale)
    return Source(
        plugin.name,
        classes.total,
        form,
        full_scale,
        mean,
        std,
        train=table,
        test=test,
        domains=natural,
        is_compact=is_compact,
        class_names=classes.names,
    )


def _test_part(
    prefix: str,
    plugin: plugins.Plugin,
    given: DataSet,
    train: RowTable,
    classes: "Numbered",
    domains: "Numbered | None",
) -> tuple[RowTable | None, NDArray[np.int64] | None]:
    """Return the test table and the domain of each of its rows; None for what the data do not have."""
    if given.x_test is None:
        for name in ("y_test", "domain_test"):
            if getattr(given, name) is not None:
                raise UserError(f"{prefix}: x_test is missing, but there is {name}.")
        return None, None
    rows, labels = _part(prefix, plugin, "test", given.x_test, given.y_test)
    numbers = _known(f"{prefix}: y_test", "class", labels, classes, len(rows))
    test = RowTable.of(rows, numbers, given.kind, given.vocabulary)
    if (test.form, test.gives_bytes) != (train.form, train.gives_bytes):
        raise UserError(
            f"{prefix}: x_test has {test.form.form} ({test.first.dtype}), but x_train has {train.form.form} "
            f"({train.first.dtype}). Both parts need one shape and type."
        )
    if (given.domain_test is None) != (domains is None):
        missing = "domain_test" if given.domain_test is None else "domain_train"
        raise UserError(f"{prefix}: {missing} is missing. Give the domains of both parts, or of none.")
    if domains is None:
        return test, None
    return test, _known(f"{prefix}: domain_test", "domain", given.domain_test, domains, len(rows))


class Numbered(NamedTuple):
    """Classes or domains of some rows by number, int64 (N,), how many there are, and their names if they have any."""

    numbers: NDArray[np.int64]
    total: int
    names: tuple[str, ...]

    def all_names(self) -> tuple[str, ...]:
        """Return the names; the numbers as texts if there are none."""
        return self.names or tuple(map(str, range(self.total)))


def _check_arguments(plugin: plugins.Plugin, function: Any, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    # Some functions written in C have no signature.
    except (TypeError, ValueError):
        return
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = [name for name, one in signature.parameters.items() if one.kind not in positional]
    for name, value in options.items():
        if name not in known and not takes_any:
            raise UserError(
                f"data.options.{name}: got {shown(value)}, but {plugin.name!r} has no such argument"
                f"{did_you_mean(name, known)}. Known: {', '.join(known) or 'none'}."
            )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"data.options: {plugin.name!r}: {error}. Fix: give it in data.options.") from None


def _part(prefix: str, plugin: plugins.Plugin, part: str, x: Any, y: Any) -> tuple[Rows, Any]:
    """Return the samples of a part and its labels, which a reader of pairs gives itself."""
    what = f"{prefix}: x_{part}"
    rows = Rows.of(what, plugin, x, gives_pairs=y is None)
    if y is not None:
        return rows, y
    if isinstance(rows.values, np.ndarray):
        raise UserError(f"{prefix}: y_{part} is missing. Give the class of every sample of x_{part}.")
    return rows, [np.asarray(label).item() if np.size(label) == 1 else label for label in rows.labels()]


def _array(what: str, noun: str, values: Any, count: int) -> NDArray[Any]:
    """Return numbers or names of classes or domains as an array (N,).

    Raises
    ------
    UserError
        If they are neither integers nor texts, or more or fewer than the samples.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(list(values) if isinstance(values, tuple) else values)
    except ValueError as error:
        raise UserError(f"{what} is no array: {' '.join(str(error).split())}.") from None
    if array.dtype == object and array.ndim == 1 and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.ndim != 1:
        raise UserError(f"{what} has the shape {array.shape}. Allowed: one {noun} for each sample, ({count},).")
    if len(array) != count:
        raise UserError(f"{what} has {len(array)} entries, but there are {count} samples. Give one for each sample.")
    if array.dtype.kind not in "iubU":
        raise UserError(
            f"{what} is of type {array.dtype}. Allowed: integers from 0, or texts. Fix: convert it, for example by "
            ".astype(int)."
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _numbered(what: str, noun: str, values: Any, names: Sequence[str] | None, count: int) -> Numbered:
    """Return the numbers of classes or domains of the training samples.

    Raises
    ------
    UserError
        If a number is outside the names, or, without names, a number below the largest one has no sample.
    """
    array = _array(what, noun, values, count)
    given = None if names is None else tuple(map(str, names))
    if given is not None and len(set(given)) != len(given):
        raise UserError(f"{what}: {noun}_names has a name twice: {', '.join(given)}.")
    if array.dtype.kind == "U":
        given = given or tuple(sorted(set(array.tolist())))
        numbered = Numbered(np.empty(0, dtype=np.int64), len(given), given)
        return numbered._replace(numbers=_known(what, noun, array, numbered, count))
    largest = int(array.max())
    total = len(given) if given is not None else largest + 1
    if total > MOST_CLASSES:
        raise UserError(f"{what} has the {noun} {largest}. Allowed: 0 to {MOST_CLASSES - 1}.")
    numbered = Numbered(_known(what, noun, array, Numbered(array, total, given or ()), count), total, given or ())
    missing = np.flatnonzero(np.bincount(numbered.numbers, minlength=total) == 0)
    if len(missing) and (given is None or noun == "domain"):
        raise UserError(
            f"{what}: {noun} {missing[0]} of 0 to {total - 1} has no training sample. Number them from 0 without gaps"
            + (f", or give {noun}_names." if noun == "class" else ".")
        )
    return numbered


def _known(what: str, noun: str, values: Any, known: Numbered, count: int) -> NDArray[np.int64]:
    """Return numbers of classes or domains, all of which are known.

    Raises
    ------
    UserError
        If one is not known.
    """
    array = _array(what, noun, values, count)
    if array.dtype.kind == "U":
        number = {name: index for index, name in enumerate(known.names)}
        unknown = next((row for row, name in enumerate(array.tolist()) if name not in number), None)
        if unknown is not None:
            names = ", ".join(map(shown, known.names[:8])) or f"numbers 0 to {known.total - 1}"
            raise UserError(f"{what}: row {unknown} is {shown(str(array[unknown]))}. Known: {names}.")
        return np.array([number[name] for name in array.tolist()], dtype=np.int64)
    wrong = np.flatnonzero((array < 0) | (array >= known.total))
    if len(wrong):
        raise UserError(f"{what}: row {wrong[0]} is {array[wrong[0]]}. Allowed: 0 to {known.total - 1}.")
    return array


def _normalisation(
    prefix: str, given: DataSet, table: RowTable, natural: NaturalDomains | None, share: float | None, full_scale: float
) -> statistics.Statistics:
    """Return mean and deviation by channel: those that are given, or those of the training samples."""
    form = table.form.form
    computed: statistics.Statistics | None = None
    found = []
    for index, (name, value) in enumerate((("mean", given.mean), ("std", given.std))):
        if value is None or form.kind == "tokens":
            if computed is None:
                rows = statistics.training_rows(table.labels, natural, share)
                computed = statistics.of_rows(table, rows, form, full_scale)
            found.append(computed[index])
            continue
        try:
            numbers = tuple(map(float, np.atleast_1d(np.asarray(value, dtype=np.float64))))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) not in (1, form.shape[0]) or not all(map(math.isfinite, numbers)):
            raise UserError(f"{prefix}: {name} is {shown(value)}. Allowed: 1 or {form.shape[0]} finite numbers.")
        if name == "std" and min(numbers) <= 0:
            raise UserError(f"{prefix}: std is {shown(value)}. Allowed: numbers above 0.")
        found.append(numbers)
    return found[0], found[1]
