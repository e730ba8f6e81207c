"""Capture the state of a proxy, send it to the import server, and restore it in the server's child.

The state is everything that makes a process the rank that its launcher started.
"""

import array
import contextlib
import fcntl
import io
import json
import os
import random
import signal
import socket
import struct
import sys
from typing import Any

# The kernel allows 253 files in a message.
FILES_AT_ONCE = 250
LENGTH = struct.Struct("!Q")
STREAMS = ("stdin", "stdout", "stderr")
CATCHABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
DEVICE_FOLDERS = {"/dev": ("nvidia", "kfd"), "/dev/dri": ("renderD",)}

ProcessState = dict[str, Any]


class PeerGoneError(Exception):
    """The other end closed the connection before it sent everything."""


def capture() -> ProcessState:
    """Return the state of this process as JSON values. Open files are listed by number, and sent separately."""
    files = []
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        # The descriptor of the listing itself is closed by now. Files that Python opened are not inheritable.
        with contextlib.suppress(OSError):
            if os.get_inheritable(number):
                files.append(number)
    return {
        "proxy": os.getpid(),
        "launcher": os.getppid(),
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "environ": dict(os.environ),
        "cpus": sorted(os.sched_getaffinity(0)),
        "ignored": [int(number) for number in CATCHABLE if signal.getsignal(number) == signal.SIG_IGN],
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "streams": {name: _stream(getattr(sys, name)) for name in STREAMS},
        "files": files,
        "device_files": device_files(),
    }


def device_files() -> list[str]:
    """Return the GPU device files that this process's cgroup lets it open; a server's child has the server's cgroup."""
    opened = []
    for folder, beginnings in DEVICE_FOLDERS.items():
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
            if name.startswith(beginnings):
                with contextlib.suppress(OSError):
                    os.close(os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
                    opened.append(f"{folder}/{name}")
    return opened


def send(connection: socket.socket, facts: ProcessState) -> None:
    """Send the state, the files listed in it, and the working directory.

    Raises
    ------
    ConnectionError
        If the other end has closed the connection.
    OSError
        If the kernel refuses to pass a file, for example because too many files are in transit.
    """
    text = json.dumps(facts).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)
    # Send the directory itself, because a removed directory has no path.
    directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
    numbers = [*facts["files"], directory]
    try:
        for first in range(0, len(numbers), FILES_AT_ONCE):
            some = array.array("i", numbers[first : first + FILES_AT_ONCE])
            connection.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)])
    finally:
        os.close(directory)


def receive(connection: socket.socket) -> tuple[ProcessState, list[int]]:
    """Receive what `send` sent: the state, and descriptors of the files in their order, the directory last.

    Raises
    ------
    PeerGoneError
        If the other end closes the connection, or sends nothing within the timeout of `connection`.
    """
    (size,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    facts = json.loads(_exactly(connection, size))
    received: list[int] = []
    while len(received) < len(facts["files"]) + 1:
        try:
            # Receive one byte at a time, because files arrive with the byte with which they were sent.
            got, rights, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(FILES_AT_ONCE * 4))
        except OSError:
            got, rights = b"", []
        for _, _, data in rights:
            some = array.array("i")
            some.frombytes(data[: len(data) - len(data) % some.itemsize])
            received += some
        if not got or not rights:
            for number in received:
                os.close(number)
            raise PeerGoneError
    return facts, received


def restore(facts: ProcessState, received: list[int]) -> None:
    """Give this process the received state except the CPUs, and close every other file."""
    directory = received[-1]
    os.fchdir(directory)
    _place_files(facts["files"], received[:-1])
    os.environ.clear()
    os.environ.update(facts["environ"])
    sys.argv[:] = facts["argv"]
    sys.orig_argv[:] = facts["orig_argv"]
    for name in STREAMS:
        setattr(sys, name, _opened(STREAMS.index(name), facts["streams"][name]))
        setattr(sys, f"__{name}__", getattr(sys, name))
    _fresh_random_numbers()
    for number in CATCHABLE:
        if number in facts["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) is not None:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, facts["blocked"])


def close_files(keep: tuple[int, ...] = ()) -> None:
    """Close every open file of this process except these."""
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in keep:
            with contextlib.suppress(OSError):
                os.close(number)


def rename_process(name: str) -> str:
    """Set the name that `ps` and `top` show for this process, and return the old name."""
    with open("/proc/self/comm", "r+") as comm:
        before = comm.read().strip()
        comm.seek(0)
        comm.write(name)
    return before


def _place_files(wanted: list[int], received: list[int]) -> None:
    """Give the received files their original numbers, and close all other files."""
    above = max([0, *received, *wanted]) + 1
    # Move the files to high numbers first, because the number of one may be the target of another.
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above) for number in received]
    close_files(keep=tuple(moved))
    for number, source in zip(wanted, moved, strict=True):
        os.dup2(source, number)
        os.close(source)


def _stream(stream: Any) -> ProcessState | None:
    """Return the encoding and buffering of a standard stream; None if there is no stream."""
    if stream is None:
        return None
    return {
        "encoding": stream.encoding,
        "errors": stream.errors,
        "line_buffering": stream.line_buffering,
        "write_through": stream.write_through,
        "unbuffered": isinstance(stream.buffer, io.RawIOBase),
    }


def _opened(number: int, how: ProcessState | None) -> Any:
    """Create a standard stream over file `number`, like Python does at start-up."""
    if how is None:
        return None
    mode = "r" if number == 0 else "w"
    raw = io.FileIO(number, mode, closefd=False)
    raw.name = f"<{STREAMS[number]}>"
    buffered = io.BufferedReader if number == 0 else io.BufferedWriter
    buffer: Any = raw if how["unbuffered"] else buffered(raw)
    made = io.TextIOWrapper(
        buffer,
        encoding=how["encoding"],
        errors=how["errors"],
        newline="\n",
        line_buffering=how["line_buffering"],
        write_through=how["write_through"],
    )
    made.mode = mode  # type: ignore[misc]
    return made


def _fresh_random_numbers() -> None:
    """Seed the global generators afresh, so that no two ranks share their numbers. The program uses none of them."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        try:
            part = connection.recv(min(missing, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise PeerGoneError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
