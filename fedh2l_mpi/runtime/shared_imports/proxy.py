"""Proxy: the process that the launcher started. It forwards signals to its rank, and exits like the rank."""

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

# The name that `ps` and `top` show.
NAME = "fedh2l-proxy"


def run_as_proxy(connection: socket.socket, facts: ProcessState) -> str | None:
    """Let the server fork this rank, and act as its proxy until it ends. Then this process exits, too.

    It returns only if imports cannot be shared: the reason, or None if the server ended without an answer. Then this
    process is unchanged, has received the signals sent meanwhile, and must run the rank itself.
    """
    wakeup_in, wakeup_out = socket.socketpair()
    wakeup_out.setblocking(False)
    # Set the wake-up file before the handlers; otherwise a signal in between would be lost.
    wakes = signal.set_wakeup_fd(wakeup_out.fileno(), warn_on_full_buffer=False)
    caught = [number for number in protocol.forwarded_signals() if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _do_nothing) for number in caught}
    owed = bytearray()
    messages = _receive_messages(connection, wakeup_in, owed)
    kind, number, text = _answer(connection, facts, messages)
    if kind == protocol.STARTED:
        process_state.rename_process(NAME)
        # The rank has these files now. Close them here, because launchers wait until all copies are closed.
        process_state.close_files(keep=(2, connection.fileno(), wakeup_in.fileno(), wakeup_out.fileno()))
        _exit_like(number, messages)
    # Block signals that arrive from here on until the old handlers are back.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    for caught_number, handler in before.items():
        signal.signal(caught_number, handler)
    signal.set_wakeup_fd(wakes)
    wakeup_out.close()
    while numbers := wakeup_in.recv(4096):
        owed += numbers
    wakeup_in.close()
    for owed_number in set(owed):
        os.kill(os.getpid(), owed_number)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return text if kind == protocol.NOT_SHARED else None


def _answer(connection: socket.socket, facts: ProcessState, messages: Iterator[Message]) -> Message:
    """Send this rank's state to the server, and return its answer, or the reason why sending failed."""
    try:
        process_state.send(connection, facts)
    except ConnectionError:
        return protocol.NOTHING
    except OSError as error:
        # Return at once, because the server cannot answer before it has received everything.
        return protocol.NOT_SHARED, 0, f"this rank's files cannot be sent to the import server: {error.strerror}"
    return next(messages, protocol.NOTHING)


def _exit_like(rank: int, messages: Iterator[Message]) -> NoReturn:
    """Wait until the rank ends, and exit with its status, so that the launcher sees the rank's own end."""
    kind, status, text = next(messages, protocol.NOTHING)
    if kind != protocol.ENDED:
        _fail(text or f"the import server of this node has ended, and pid {rank} with it")
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        # The rank has written a core dump if the user wanted one, so the proxy must write none.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)


def _receive_messages(connection: socket.socket, wakeup_in: socket.socket, owed: bytearray) -> Iterator[Message]:
    """Yield the server's messages, and forward signals to it meanwhile.

    Signals that this process has not handled itself are added to `owed`. If there will be no rank, they are for this
    process.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(wakeup_in, select.POLLIN)
    received = bytearray()
    while True:
        ready = {number for number, _ in poll.poll()}
        if wakeup_in.fileno() in ready:
            numbers = wakeup_in.recv(4096)
            with contextlib.suppress(OSError):
                connection.sendall(numbers)
            owed += bytes(number for number in numbers if number not in protocol.STOPS)
            if any(number in protocol.STOPS for number in numbers):
                # Stop like a process without a handler. SIGCONT to the proxy is forwarded to the rank.
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
    """Print an error, and exit."""
    with contextlib.suppress(OSError):
        os.write(2, f"fedh2l_mpi: error: {text}\n".encode())
    os._exit(EXIT_FAULT)


def _do_nothing(number: int, frame: object) -> None:
    """Do nothing: the signal is in the wake-up file."""
