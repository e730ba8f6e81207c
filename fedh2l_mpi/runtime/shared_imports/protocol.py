"""Protocol between a proxy and the import server after the proxy has sent its state.

The proxy sends the numbers of the signals that it receives, one byte each. The server answers with messages.
"""

import contextlib
import signal
import socket
import struct
from collections.abc import Iterator

# A kind, then the length of a text that follows, or a number.
HEAD = struct.Struct("!cq")
# The number is the rank's pid (STARTED) or its exit status (ENDED). The text of the other two is the reason.
STARTED, ENDED, NOT_SHARED, FAULT = b"S", b"E", b"N", b"F"
WITH_TEXT = (NOT_SHARED, FAULT)
Message = tuple[bytes, int, str]
NOTHING: Message = (b"", 0, "")

# Signals that are not forwarded: faults of the process itself, and signals about its own children or window.
OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
OWN |= {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGPIPE, signal.SIGXFSZ}
STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


def forwarded_signals() -> list[int]:
    """Return the signals that a proxy forwards to its rank.

    Signals with a handler installed from C, for example by a profiler, are left out. Python shows such a handler as
    None, and cannot restore it.
    """
    return [number for number in signal.valid_signals() - OWN if signal.getsignal(number) is not None]


def send(connection: socket.socket, kind: bytes, what: int | str) -> None:
    """Send a message with a number or a text to a proxy. Nothing happens if the proxy has ended."""
    text = what.encode() if isinstance(what, str) else b""
    number = len(text) if isinstance(what, str) else what
    with contextlib.suppress(OSError):
        connection.sendall(HEAD.pack(kind, number) + text)


def parse_messages(received: bytearray) -> Iterator[Message]:
    """Yield kind, number and text of every complete message in `received`, and remove it from there."""
    while len(received) >= HEAD.size:
        kind, number = HEAD.unpack_from(received)
        end = HEAD.size + (number if kind in WITH_TEXT else 0)
        if len(received) < end:
            return
        text = received[HEAD.size : end].decode()
        del received[:end]
        yield kind, number, text
