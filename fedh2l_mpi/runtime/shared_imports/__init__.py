"""`--share-imports`: import torch and the other libraries once per node, instead of once per rank.

One *import server* per node imports everything. It is single-threaded, so it can be forked safely. Every process that
the launcher started becomes a small *proxy*. The proxy sends its state (arguments, environment, open files, CPUs) to
the server, which forks a child with this state: the rank. The proxy forwards its signals to the rank, and exits with
the rank's exit status. A rank is killed if its proxy or the server ends, so no process is left over.

These modules import little, and only from the standard library, because every proxy needs that memory.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from fedh2l_mpi.runtime.shared_imports import process_state, proxy, rendezvous, server
from fedh2l_mpi.runtime.shared_imports.parent import ParentProcess

OPTION, VARIABLE = "--share-imports", "FEDH2L_SHARE_IMPORTS"
# auto: where it saves something and is known to work, and without a word elsewhere.
AUTO, ALWAYS, NEVER = MODES = ("auto", "always", "never")
# Two ranks start as quickly without a server.
FEW_RANKS = 2
# A server may end before it answers, because its last rank has just ended or it was killed. Then try again.
ATTEMPTS = 3


def with_value(words: Sequence[str]) -> list[str]:
    """Return command-line words in which the option without a value has the value that this means, `always`.

    Otherwise the word after it, such as the path of a config, could be taken for its value.
    """
    joined, rest = [], iter(words)
    for word in rest:
        following = next(rest, None) if word == OPTION else None
        if word != OPTION:
            joined.append(word)
        elif following in MODES:
            joined.append(f"{OPTION}={following}")
        else:
            joined += [f"{OPTION}={ALWAYS}", *([following] if following is not None else [])]
    return joined


def mode_of(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the mode that the command line asks for, or else the environment; `auto` if neither does.

    A value that is no mode is returned as it is; the command line's parser refuses it.
    """
    given = [word.partition("=")[2] for word in with_value(words) if word.startswith(f"{OPTION}=")]
    return given[-1] if given else environ.get(VARIABLE, AUTO)


def begin(is_run: Callable[[], bool], mode: str = ALWAYS) -> ParentProcess:
    """Share the imports of this node if possible, and return the parent of this process.

    It returns in ranks only. A process of the launcher that becomes a proxy never returns.

    Parameters
    ----------
    is_run : callable
        Returns True if the command line asks for a run, and not for a command of a single process.
    mode : {"auto", "always"}
        With `auto`, imports are shared only where this saves something and is known to work.
    """
    if not sys.platform.startswith("linux"):
        return ParentProcess(refused="this needs Linux")
    ranks = rendezvous.ranks_on_node(os.environ)
    if ranks is None:
        known = ", ".join(rendezvous.KNOWN_BY)
        return ParentProcess(refused=f"the environment does not say how many ranks are on this node ({known})")
    if ranks == 1:
        return ParentProcess()
    if mode == AUTO and (ranks <= FEW_RANKS or not rendezvous.is_known_to_work(os.environ)):
        return ParentProcess()
    if rendezvous.long_addresses_are_cut(os.environ):
        return ParentProcess(
            refused="under srun --mpi=pmi2 on several nodes, ranks of MPICH may fail to find each other"
        )
    if bound := [name for name in rendezvous.BINDS_THREADS if name in os.environ]:
        return ParentProcess(refused=f"{bound[0]} is set, so libraries bind threads when they are loaded. Unset it.")
    if rendezvous.parent_is_a_rank(os.environ):
        return ParentProcess(
            refused=f"pid {os.getppid()}, such as a script, started this rank and waits. Use `exec python` there."
        )
    for _ in range(ATTEMPTS):
        try:
            listener, connection = rendezvous.connect_or_listen(rendezvous.find_address())
        except rendezvous.CannotShareError as error:
            return ParentProcess(refused=str(error))
        if listener is not None:
            if os.fork() == 0:
                # Launchers wait until all copies of their pipes are closed, so the server must close this rank's files.
                connection.close()
                return server.serve(listener, ranks, is_run)
            listener.close()
        answer = proxy.run_as_proxy(connection, process_state.capture())
        connection.close()
        if answer is not None:
            return ParentProcess(refused=answer)
    return ParentProcess(refused="the import server of this node ended before it answered")


__all__ = ["ALWAYS", "AUTO", "MODES", "NEVER", "OPTION", "VARIABLE", "ParentProcess", "begin", "mode_of", "with_value"]
