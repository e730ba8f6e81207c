"""Domains that are made of data without domains of their own: each is a transformation of the same samples."""

from fedh2l_mpi.config import PartitionConfig
from fedh2l_mpi.config.data import DOMAINS, ROTATION_STEP_DEG
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.sample_form import PLURAL


def rotations(part: PartitionConfig, source: Source) -> list[float]:
    """Return the angle of every domain that is made [degrees].

    It is 0 alone for samples that are no images, and for images if the config gives neither key of the rotation.

    Raises
    ------
    UserError
        If the config wants rotations of data that have domains of their own, or that are no images.
    """
    given = {key: getattr(part, key) for key in ("domains", "rotation_step_deg")}
    for key, value in given.items():
        if value is not None and source.domains is not None:
            raise UserError(
                f"data.partition.{key}: got {value}, but the data have domains of their own "
                f"({', '.join(source.domains.names[:4])}{', ...' if len(source.domains.names) > 4 else ''}). "
                "Fix: set it to null."
            )
    if all(value is None for value in given.values()):
        return [0.0]
    if source.form.kind == "image":
        domains = DOMAINS if part.domains is None else part.domains
        step = ROTATION_STEP_DEG if part.rotation_step_deg is None else part.rotation_step_deg
        return [domain * step for domain in range(domains)]
    for key, value in given.items():
        if value not in (None, 0.0 if key == "rotation_step_deg" else 1):
            raise UserError(
                f"data.partition.{key}: got {value}, but {PLURAL[source.form.kind]} cannot be rotated. "
                "Fix: set it to null."
            )
    return [0.0]
