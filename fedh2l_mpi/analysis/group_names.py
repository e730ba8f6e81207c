"""Order compared groups, and give them the names that a paper has for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedh2l_mpi.analysis import grouping
from fedh2l_mpi.errors import UserError, did_you_mean


def ordered(asked: Sequence[str], labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the groups' indices: those that are asked for first, then the others in their own order.

    Parameters
    ----------
    asked : sequence of str
        Labels, or values that distinguish groups, such as a method; several may be joined by commas.

    Raises
    ------
    UserError
        If a name is that of no group.
    """
    wanted = [name for item in asked for name in ([item] if item in labels else _split(item))]
    values = [
        {label, *(grouping.text(value, None) for value in own.values())}
        for label, own in zip(labels, settings, strict=True)
    ]
    known = list(dict.fromkeys([*labels, *(name for each in values for name in sorted(each))]))
    for name in wanted:
        if name not in known:
            raise UserError(f"--order: got {name!r}. Known: {'; '.join(known)}{did_you_mean(name, known)}")
    return sorted(range(len(labels)), key=lambda i: [name not in values[i] for name in wanted])


def renamed(asked: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return the labels with other names for whole labels, or for parts of them, which commas separate.

    Parameters
    ----------
    asked : sequence of str
        Each `OLD=NEW`; the last equality sign separates the two.

    Raises
    ------
    UserError
        If an old name is in no label, or two groups would have one name.
    """
    names: dict[str, str] = {}
    known = list(dict.fromkeys([*labels, *(part for label in labels for part in label.split(", "))]))
    for item in asked:
        old, sign, new = item.rpartition("=")
        if not sign or not old.strip() or not new.strip():
            raise UserError(f"--names: got {item!r}, must be OLD=NEW, such as fedh2l=FedH2L.")
        if old not in known:
            raise UserError(f"--names: got {old!r}. Known: {'; '.join(known)}{did_you_mean(old, known)}")
        names[old] = new.strip()
    found = [names.get(label) or ", ".join(names.get(part, part) for part in label.split(", ")) for label in labels]
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise UserError(f"--names: two groups would be called {twice[0]!r}. Fix: give each a name of its own.")
    return found


def _split(item: str) -> list[str]:
    return [name.strip() for name in item.split(",") if name.strip()]
