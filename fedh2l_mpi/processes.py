"""What Linux tells of a process of this machine."""


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent, ...; the 22nd, the start in ticks, is item 19.

    Raises
    ------
    OSError
        If there is no such process.

    Source: proc(5); the name, in field 2, may hold anything.
    """
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].decode().split()
