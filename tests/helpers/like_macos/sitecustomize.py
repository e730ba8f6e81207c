"""Take away from Python what macOS lacks. It is in effect in every program that has this folder in PYTHONPATH.

It does not imitate macOS: libraries and the kernel are those of Linux. A program that needs a file, a function or a
constant of Linux fails as it would there.
"""

import os
import resource
import select
import signal
import socket
import sys
import sysconfig
import time
import types

GONE = ("/proc", "/sys", "/dev/shm")
MISSING = {
    os: [name for name in dir(os) if name.startswith(("sched_", "SCHED_", "eventfd", "EFD_", "memfd", "MFD_", "GRND_"))]
    + ["getresuid", "getresgid", "posix_fadvise", "posix_fallocate", "fdatasync", "copy_file_range", "splice"]
    + ["getrandom", "pipe2", "preadv2", "O_PATH", "O_TMPFILE", "O_DIRECT", "O_NOATIME", "O_LARGEFILE"],
    signal: ["SIGPWR", "SIGSTKFLT", "SIGPOLL", "SIGRTMIN", "SIGRTMAX", "sigwaitinfo", "sigtimedwait"],
    select: [name for name in dir(select) if "epoll" in name.lower()],
    socket: ["SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_PEERCRED", "SO_PASSCRED"],
    resource: ["prlimit", "RUSAGE_THREAD", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_MSGQUEUE", "RLIMIT_SIGPENDING"],
    time: [name for name in dir(time) if name in ("CLOCK_BOOTTIME", "CLOCK_TAI")],
}


def _is_gone(path: object) -> bool:
    text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
    return any(text == folder or text.startswith(f"{folder}/") for folder in GONE)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir", "os.chdir") and arguments and _is_gone(arguments[0]):
        raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))
    if event == "socket.bind" and isinstance(arguments[1], str | bytes) and arguments[1][:1] in ("\0", b"\0"):
        raise FileNotFoundError(2, "No such file or directory")
    if event == "ctypes.dlsym" and arguments[1] in ("prctl", "syscall"):
        raise AttributeError(f"dlsym: symbol {arguments[1]} not found")


def _without(function):  # type: ignore[no-untyped-def]
    def stat(path, *arguments, **options):  # type: ignore[no-untyped-def]
        if _is_gone(os.fspath(path) if isinstance(path, os.PathLike) else path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return function(path, *arguments, **options)

    return stat


for _module, _names in MISSING.items():
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
os.stat, os.lstat, os.access = _without(os.stat), _without(os.lstat), _without(os.access)
# Before the platform changes, because the values are those of this build.
sysconfig.get_config_vars()
sys.addaudithook(_refuse)
# A module of the standard library that only macOS has.
_proxies = types.ModuleType("_scproxy")
_proxies._get_proxies, _proxies._get_proxy_settings = dict, dict  # type: ignore[attr-defined]
sys.modules["_scproxy"] = _proxies
sys.platform = "darwin"
