"""What a grader's process may not do. Only the standard library, for it runs before anything of the user's.

Limits hold for whatever the process starts, too. They guard a run against a grader's mistakes, and its network against
code that somebody copied from somewhere; they are no jail: a grader reads the files that its stage reads.
"""

import ctypes
import os
import platform
import re
import resource
import struct
import sys

FILE_BYTES = 256 * 2**20  # of one file
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_KEY|ACCESS_KEY", re.I)

# linux/prctl.h, linux/seccomp.h, linux/audit.h, and the system calls' numbers.
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER, _CHILD_SUBREAPER = 38, 22, 2, 36
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_EACCES, _ENOSYS = 13, 38
_ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # audit number, that of socket()
_IO_URING_SETUP = 425  # makes sockets without socket()
_X32 = 0x40000000
_AF_UNIX, _AF_NETLINK = 1, 16


def environment(network: bool) -> dict[str, str]:
    """The stage's environment; where nothing may go out, without what looks like a secret."""
    return {name: value for name, value in os.environ.items() if network or not _SECRET.search(name)}


def enter(memory_bytes: int, network: bool) -> None:
    """Limit this process and all that it will start.

    Args:
        memory_bytes: Of data that a process writes to. What several of them take together is watched from outside.
        network: Whether connections may be opened. Without leave, they are refused by the kernel on Linux (x86-64 and
            ARM), elsewhere by Python.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    if sys.platform == "linux":
        _lower(resource.RLIMIT_DATA, memory_bytes)
        # What a grader starts and leaves behind stays its child, and is found when it is ended.
        ctypes.CDLL(None, use_errno=True).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    if not network and not _filter_sockets():
        sys.addaudithook(_refuse_connections)


def _lower(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (limit, limit))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter_sockets() -> bool:
    """Have the kernel refuse sockets but those within the machine; whether it does."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    architecture, socket = _ARCHITECTURES[platform.machine()]

    # Of struct seccomp_data: system call at 0, architecture at 4, first argument's lower half at 16 (little-endian).
    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def jump(kind: int, value: int, if_so: int, if_not: int) -> bytes:
        return struct.pack("HBBI", kind, if_so, if_not, value)

    def answer(value: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, value)

    equal, at_least = 0x15, 0x35
    program = b"".join(
        [
            load(4),
            jump(equal, architecture, 0, 8),  # another architecture's calls have other numbers
            load(0),
            jump(at_least, _X32, 6, 0),
            jump(equal, _IO_URING_SETUP, 6, 0),
            jump(equal, socket, 0, 3),
            load(16),
            jump(equal, _AF_UNIX, 1, 0),
            jump(equal, _AF_NETLINK, 0, 1),
            answer(_ALLOW),
            answer(_REFUSE | _EACCES),
            answer(_REFUSE | _ENOSYS),
        ]
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    kept = ctypes.create_string_buffer(program, len(program))
    told = _Program(len(program) // 8, ctypes.cast(kept, ctypes.c_char_p))
    return (
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and libc.prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(told), 0, 0) == 0
    )


def _refuse_connections(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError(_EACCES, "a grader has no network")
