"""`doctor`: one page that says whether a run would work here, and what to mend if not."""

from fedh2l_mpi.doctor.examination import connected, examine

__all__ = ["connected", "examine"]
