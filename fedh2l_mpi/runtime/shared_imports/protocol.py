"""What a proxy and the server say to each other once a rank has been handed over.

The proxy sends the numbers of the signals that it gets, a byte each; the server answers in words.
"""

import contextlib
import signal
import socket
import struct
from collections.abc import Iterator

# A kind, then the length of a text that follows, or a number.
HEAD = struct.Struct("!cq")
# With the rank's pid; with the status that it ended with; with why.
STARTED, ENDED, NOT_SHARED, FAULT = b"S", b"E", b"N", b"F"
WITH_TEXT = (NOT_SHARED, FAULT)
Message = tuple[bytes, int, str]
NOTHING: Message = (b"", 0, "")

# Those that a fault of the process itself raises, and those that mean its own children or its window.
OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
OWN |= {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGPIPE, signal.SIGXFSZ}
STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


def forwarded_signals() -> list[int]:
    """The signals that a proxy passes on to its rank.

    Not those whose handler was installed from C, such as by a profiler that was loaded before Python: Python calls it
    None, and cannot put it back.
    """
    return [number for number in signal.valid_signals() - OWN if signal.getsignal(number) is not None]


def send(connection: socket.socket, kind: bytes, what: int | str) -> None:
    """Say a word, with its number or its text, to a proxy; one that has gone does not hear it."""
    text = what.encode() if isinstance(what, str) else b""
    number = len(text) if isinstance(what, str) else what
    with contextlib.suppress(OSError):
        connection.sendall(HEAD.pack(kind, number) + text)


def parse_messages(received: bytearray) -> Iterator[Message]:
    """Kind, number and text of every word that has been received to its end; it is then no longer in `received`."""
    while len(received) >= HEAD.size:
        kind, number = HEAD.unpack_from(received)
        end = HEAD.size + (number if kind in WITH_TEXT else 0)
        if len(received) < end:
            return
        text = received[HEAD.size : end].decode()
        del received[:end]
        yield kind, number, text
