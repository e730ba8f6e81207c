"""`--share-imports`: one import of torch and the rest for all ranks of a node, instead of one for each.

Every process that the launcher started stays behind as a small *proxy*: it hands all that makes it that process
(arguments, environment, open files, CPUs) to a child of one *import server* on the node, which has imported everything
once and, being single-threaded, can be forked. The child is the rank; the proxy passes on the signals that it gets, and
ends as the rank ends. Nobody is left behind: a rank dies with its proxy and with the server.

Everything here needs the standard library only, and little of it: sixteen proxies would pay for more sixteen times.
"""

import os
import sys
from collections.abc import Callable

from fedh2l_mpi.runtime.shared_imports import process_state, proxy, rendezvous, server
from fedh2l_mpi.runtime.shared_imports.parent import ParentProcess

OPTION = "--share-imports"


# Of a server that ends before it answers: it may just have seen its last rank end, or have been killed.
ATTEMPTS = 3


def begin(is_run: Callable[[], bool]) -> ParentProcess:
    """Where this process comes from; it is a rank with everything imported if the node's imports can be shared.

    Returns in ranks only: what the launcher has started never returns if it becomes a proxy.

    Parameters
    ----------
    is_run : callable
        Whether the command line asks for a run, and not for something that a process does alone.
    """
    if not sys.platform.startswith("linux"):
        return ParentProcess(refused="that needs Linux")
    ranks = rendezvous.ranks_on_node(os.environ)
    if ranks is None:
        known = ", ".join(rendezvous.KNOWN_BY)
        return ParentProcess(refused=f"nothing in the environment tells how many ranks are on this node ({known})")
    if ranks == 1:
        return ParentProcess()
    if rendezvous.long_addresses_are_cut(os.environ):
        return ParentProcess(
            refused="under srun --mpi=pmi2 on several nodes, ranks of MPICH might not find each other then"
        )
    if bound := [name for name in rendezvous.BINDS_THREADS if name in os.environ]:
        return ParentProcess(refused=f"{bound[0]} is set, by which a library binds threads when it is loaded; unset it")
    if rendezvous.parent_is_a_rank(os.environ):
        return ParentProcess(
            refused=f"pid {os.getppid()}, such as a script, starts this rank and stays; let it exec python"
        )
    for _ in range(ATTEMPTS):
        try:
            listener, connection = rendezvous.connect_or_listen(rendezvous.find_address())
        except rendezvous.CannotShareError as error:
            return ParentProcess(refused=str(error))
        if listener is not None:
            if os.fork() == 0:
                # Nothing of this rank's may stay open in the server: launchers wait for the last one who holds it.
                connection.close()
                return server.serve(listener, ranks, is_run)
            listener.close()
        answer = proxy.run_as_proxy(connection, process_state.capture())
        connection.close()
        if answer is not None:
            return ParentProcess(refused=answer)
    return ParentProcess(refused="the process that was to import for this node ended before it could be asked")


__all__ = ["OPTION", "ParentProcess", "begin"]
