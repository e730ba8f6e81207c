"""The arrays of a run that its config asks for, in addition to those that every run has."""

from fedh2l_mpi.metrics import Columns, Field

ACCURACY_LOCAL = Field(
    "accuracy_local", "f8", "1", "accuracy on test samples of the participant's own data, its own distribution"
)


def columns_of(has_local_test: bool) -> Columns:
    """Return the arrays by round that evaluation adds.

    Parameters
    ----------
    has_local_test : bool
        True if some participant is tested on samples of its own distribution.
    """
    return Columns(by_participant=(ACCURACY_LOCAL,) if has_local_test else ())
