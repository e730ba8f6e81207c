"""Domains that are made of data without domains of their own: each is a transformation of the same samples."""

from dataclasses import dataclass

from fedh2l_mpi.config import PartitionConfig
from fedh2l_mpi.config.data import DOMAINS, ROTATION_STEP_DEG
from fedh2l_mpi.config.shift import SHIFTS, Shift, out_of_bounds
from fedh2l_mpi.data import shifts
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.sample_form import PLURAL, SampleForm


@dataclass(frozen=True)
class MadeDomains:
    """The domains that are made of a data set.

    Attributes
    ----------
    names : tuple of str
        One name for each domain.
    shifts : tuple of Shift
        Applied to each domain in their order, domain d by d times their steps; empty for one domain of the data as
        they are.
    """

    names: tuple[str, ...]
    shifts: tuple[Shift, ...] = ()

    @property
    def changes_samples(self) -> bool:
        """True if some domain differs from the data as they are."""
        return len(self.names) > 1 and any(shift.step for shift in self.shifts)


def made_domains(part: PartitionConfig, source: Source) -> MadeDomains | None:
    """Return the domains that the config makes of a data set; None for data with domains of their own.

    Without `data.partition.shift`, images are rotated. Other samples are one domain, and so are images if the config
    gives neither key of the rotation.

    Raises
    ------
    UserError
        If the config wants domains that cannot be made of these data.
    """
    given = {key: getattr(part, key) for key in ("domains", "rotation_step_deg", "shift")}
    if source.domains is not None:
        _refuse_natural(given, source.domains.names)
        return None
    domains = DOMAINS if part.domains is None else part.domains
    if part.shift is not None:
        _refuse_unfit(part.shifts, source.form, domains)
        return MadeDomains(tuple(shifts.name(part.shifts, domain) for domain in range(domains)), part.shifts)
    if all(value is None for value in given.values()):
        return MadeDomains(("all",))
    if source.form.kind == "image":
        rotation = Shift("rotation", ROTATION_STEP_DEG if part.rotation_step_deg is None else part.rotation_step_deg)
        names = tuple(f"rotated {rotation.amount(domain):g} deg" for domain in range(domains))
        return MadeDomains(names, (rotation,))
    for key, value in given.items():
        if value not in (None, 0.0 if key == "rotation_step_deg" else 1):
            fitting = _fitting(source.form)
            remedy = f", or make them by data.partition.shift: {', '.join(fitting)}" if fitting else ""
            raise UserError(
                f"data.partition.{key}: got {value}, but {PLURAL[source.form.kind]} cannot be rotated. "
                f"Fix: set it to null{remedy}."
            )
    return MadeDomains(("all",))


def _refuse_natural(given: dict[str, object], names: tuple[str, ...]) -> None:
    for key, value in given.items():
        if value is not None:
            raise UserError(
                f"data.partition.{key}: got {value}, but the data have domains of their own "
                f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}). Fix: set it to null."
            )


def _refuse_unfit(wanted: tuple[Shift, ...], form: SampleForm, domains: int) -> None:
    for position, shift in enumerate(wanted):
        where, fitting = f"data.partition.shift.{position}", _fitting(form)
        if form.kind not in SHIFTS[shift.kind].samples:
            known = f"Kinds that fit: {', '.join(fitting)}" if fitting else "No kind fits. Fix: set shift to null"
            raise UserError(f"{where}: {shift.kind} does not fit {PLURAL[form.kind]}. {known}.")
        if shift.kind == "colour" and form.shape[0] < 2:
            raise UserError(f"{where}: colour needs images of 2 or more channels, but the data are {form}.")
        if wrong := out_of_bounds(shift, domains):
            raise UserError(f"{where}: {wrong}. Fix: lower the step, or data.partition.domains.")


def _fitting(form: SampleForm) -> list[str]:
    return [name for name, kind in SHIFTS.items() if form.kind in kind.samples]
