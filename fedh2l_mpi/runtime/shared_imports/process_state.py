"""All that makes a process the rank that its launcher started, given from the proxy to the server's child."""

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

from fedh2l_mpi.runtime.shared_imports.rendezvous import DEVICES

# The kernel takes 253 in a message.
FILES_AT_ONCE = 250
LENGTH = struct.Struct("!Q")
STREAMS = ("stdin", "stdout", "stderr")
CATCHABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
DEVICE_FOLDERS = {"/dev": ("nvidia", "kfd"), "/dev/dri": ("renderD",)}

ProcessState = dict[str, Any]


class PeerGoneError(Exception):
    """The other end has gone before it had said everything."""


def capture() -> ProcessState:
    """What this process is made of, as JSON can hold it; its open files are named, and sent beside it."""
    files = []
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        # The one that listed them is gone; what this program has opened itself does not survive an exec.
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
        "devices": devices(),
    }


def devices() -> ProcessState:
    """Which GPUs this process is told of, and which device files it may open: a cgroup forbids the others."""
    found = {name: os.environ[name] for name in DEVICES if name in os.environ}
    opened = []
    for folder, beginnings in DEVICE_FOLDERS.items():
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
            if name.startswith(beginnings):
                with contextlib.suppress(OSError):
                    os.close(os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
                    opened.append(f"{folder}/{name}")
    return {**found, "device files": opened}


def send(connection: socket.socket, facts: ProcessState) -> None:
    """Hand `facts`, the files named in them, and the working directory over.

    Raises
    ------
    ConnectionError
        If the other end has gone.
    OSError
        If the kernel passes something not on, such as more files than a user may have under way.
    """
    text = json.dumps(facts).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)
    # A directory that is gone has no path any more.
    directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
    numbers = [*facts["files"], directory]
    try:
        for first in range(0, len(numbers), FILES_AT_ONCE):
            some = array.array("i", numbers[first : first + FILES_AT_ONCE])
            connection.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)])
    finally:
        os.close(directory)


def receive(connection: socket.socket) -> tuple[ProcessState, list[int]]:
    """What `send` sent: facts, and numbers of this process for the files in their order, the directory last.

    Raises
    ------
    PeerGoneError
        If the other end closes, or says nothing for as long as `connection` waits.
    """
    (size,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    facts = json.loads(_exactly(connection, size))
    received: list[int] = []
    while len(received) < len(facts["files"]) + 1:
        try:
            # One byte at a time: files come with the byte that they were sent with.
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
    """Become the process that `facts` are of, with its files, not its CPUs; every other file of ours is closed."""
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
    """Close every open file of this process but these."""
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in keep:
            with contextlib.suppress(OSError):
                os.close(number)


def rename_process(name: str) -> str:
    """The name that `ps` and `top` show of this process so far; from now on, `name`."""
    with open("/proc/self/comm", "r+") as comm:
        before = comm.read().strip()
        comm.seek(0)
        comm.write(name)
    return before


def _place_files(wanted: list[int], received: list[int]) -> None:
    """Give received files the numbers that they had, and close all others."""
    above = max([0, *received, *wanted]) + 1
    # Out of the way first: one's number may be another's place.
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above) for number in received]
    close_files(keep=tuple(moved))
    for number, source in zip(wanted, moved, strict=True):
        os.dup2(source, number)
        os.close(source)


def _stream(stream: Any) -> ProcessState | None:
    """How a standard stream encodes and buffers; None if there is none."""
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
    """A standard stream over file `number`, as Python makes them at its start."""
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
    """No two ranks draw the same from the global generators; the program itself draws from none of them."""
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
