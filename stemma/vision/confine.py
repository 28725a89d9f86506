"""The system calls that a decoding child gives up: opening sockets and starting processes or programs.

A seccomp filter, installed through ``prctl`` without any library. On machines it is not written for, and under kernels
without filters, it does nothing, and the child keeps its other bounds.
"""

from __future__ import annotations

import ctypes
import platform
import struct

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_REFUSE = 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM

_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32_BIT = 0x40000000

# machine -> (audit architecture, numbers of socket, socketpair, clone, fork, vfork, execve, execveat, ptrace, clone3)
_CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, (41, 53, 56, 57, 58, 59, 322, 101, 435)),
    "aarch64": (0xC00000B7, (198, 199, 220, 221, 281, 117, 435)),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_network_and_processes() -> bool:
    """Install the filter for this process, for good. Needs PR_SET_NO_NEW_PRIVS. Returns whether it stands."""
    known = _CALLS.get(platform.machine())
    if known is None:
        return False
    architecture, calls = known
    steps = [
        (_LOAD_WORD, 0, 0, 4),  # the architecture
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, 0),  # the number of the call
        (_JUMP_AT_LEAST, len(calls) + 1, 0, _X32_BIT),
        *((_JUMP_EQUAL, len(calls) - index, 0, call) for index, call in enumerate(calls)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = b"".join(struct.pack("<HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
