"""What stays of a process that the launcher started: it passes signals on to its rank, and ends as that ends."""

import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Iterator
from typing import NoReturn

from fedh2l_mpi.errors import EXIT_FAULT
from fedh2l_mpi.runtime.shared_imports import process_state, protocol
from fedh2l_mpi.runtime.shared_imports.process_state import ProcessState
from fedh2l_mpi.runtime.shared_imports.protocol import Message

# As `ps` and `top` show it.
NAME = "fedh2l-proxy"


def run_as_proxy(connection: socket.socket, facts: ProcessState) -> str | None:
    """Have the server fork this rank, and stand in for it until it ends: then this process has ended, too.

    Returns only if imports cannot be shared, why, or None if the server has ended without a word. This process is as it
    was then, has got the signals that were sent to it meanwhile, and has to be the rank itself.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    # Before the handlers: none may go unheard in between.
    wakes = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    caught = [number for number in protocol.forwarded_signals() if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _noted) for number in caught}
    owed = bytearray()
    said = _said(connection, heard, owed)
    kind, number, text = _answer(connection, facts, said)
    if kind == protocol.STARTED:
        process_state.rename_process(NAME)
        # The rank has them now; who waits for the last to close one must not wait for us.
        process_state.close_files(keep=(2, connection.fileno(), heard.fileno(), told.fileno()))
        _end_with(number, said)
    # What comes from here on waits until it is answered as before.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    for caught_number, handler in before.items():
        signal.signal(caught_number, handler)
    signal.set_wakeup_fd(wakes)
    told.close()
    while numbers := heard.recv(4096):
        owed += numbers
    heard.close()
    for owed_number in set(owed):
        os.kill(os.getpid(), owed_number)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return text if kind == protocol.NOT_SHARED else None


def _answer(connection: socket.socket, facts: ProcessState, said: Iterator[Message]) -> Message:
    """What the server says when this rank is handed over to it; in its place, why that has not been possible."""
    try:
        process_state.send(connection, facts)
    except ConnectionError:
        return protocol.NOTHING
    except OSError as error:
        # Not waited for: the server cannot answer before it has everything, or sees the end of the connection.
        return protocol.NOT_SHARED, 0, f"this rank's files cannot be handed over: {error.strerror}"
    return next(said, protocol.NOTHING)


def _end_with(rank: int, said: Iterator[Message]) -> NoReturn:
    """Wait until the rank ends, and end as it did: the launcher is to see what it would have seen."""
    kind, status, text = next(said, protocol.NOTHING)
    if kind != protocol.ENDED:
        _fail(text or f"the process that imported for this node has ended, and pid {rank} with it")
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        # The rank has left a core if one was wanted.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)


def _said(connection: socket.socket, heard: socket.socket, owed: bytearray) -> Iterator[Message]:
    """What the server says, one by one; meanwhile, signals are passed on to it.

    Those that this process has not acted on itself are added to `owed`: without a rank, they mean this process.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(heard, select.POLLIN)
    received = bytearray()
    while True:
        ready = {number for number, _ in poll.poll()}
        if heard.fileno() in ready:
            numbers = heard.recv(4096)
            with contextlib.suppress(OSError):
                connection.sendall(numbers)
            owed += bytes(number for number in numbers if number not in protocol.STOPS)
            if any(number in protocol.STOPS for number in numbers):
                # As a process that does not catch it would; whoever continues us continues the rank, too.
                os.kill(os.getpid(), signal.SIGSTOP)
        if connection.fileno() in ready:
            try:
                part = connection.recv(4096)
            except ConnectionResetError:
                part = b""
            if not part:
                return
            received += part
            yield from protocol.parse_messages(received)


def _fail(text: str) -> NoReturn:
    """End with an error."""
    with contextlib.suppress(OSError):
        os.write(2, f"fedh2l_mpi: error: {text}\n".encode())
    os._exit(EXIT_FAULT)


def _noted(number: int, frame: object) -> None:
    """The wake-up file has it."""
