"""The seccomp profile does what its comments say, on a process that loads it.

libseccomp builds the filter as a container runtime does. A child loads it and tries: io_uring and
what a network program needs must work, new namespaces, mounts and tracing must not. With a program
after the profile's name that program is run under it, its exit code is ours:

    seccomp_profile.py PROFILE [PROGRAM ARGUMENT...]
"""

import ctypes
import ctypes.util
import errno
import json
import os
import socket
import subprocess
import sys

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
ACTIONS = {"SCMP_ACT_ALLOW": lambda _: ALLOW, "SCMP_ACT_ERRNO": lambda code: ERRNO | code}
COMPARE = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
# Numbers are the same on amd64 and arm64.
IO_URING_SETUP = 425
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER = 0x10000000


class Argument(ctypes.Structure):
    _fields_ = [("index", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def library():
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    seccomp = ctypes.CDLL(name, use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    seccomp.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Argument)
    ]
    return seccomp


def build(seccomp, profile):
    """Returns the filter and the names that this library does not know."""
    context = seccomp.seccomp_init(ACTIONS[profile["defaultAction"]](profile["defaultErrnoRet"]))
    unknown = []
    for rule in profile["syscalls"]:
        action = ACTIONS[rule["action"]](rule.get("errnoRet", 0))
        arguments = [
            # MASKED_EQ: libseccomp wants the mask first, the profile says it as `value`.
            Argument(a["index"], COMPARE[a["op"]], a["value"], a.get("valueTwo", 0))
            for a in rule.get("args", [])
        ]
        array = (Argument * len(arguments))(*arguments)
        for name in rule["names"]:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                unknown.append(name)
                continue
            code = seccomp.seccomp_rule_add_array(context, action, number, len(arguments), array)
            if code:
                raise OSError(-code, f"seccomp_rule_add {name}")
    return context, unknown


def load(seccomp, context):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = seccomp.seccomp_load(context)
    if code:
        raise OSError(-code, "seccomp_load")
    return libc


def attempts(libc):
    """(what, whether it may work, whether it did)"""

    def refused(result):
        return result == -1 and ctypes.get_errno() == errno.EPERM

    parameters = ctypes.create_string_buffer(120)
    result = libc.syscall(IO_URING_SETUP, 2, parameters)
    yield "io_uring", True, not refused(result)
    pair = socket.socketpair()
    pair[0].send(b"x")
    yield "sockets", True, pair[1].recv(1) == b"x"
    yield "processes", True, subprocess.run(["true"], check=False).returncode == 0
    yield "new namespaces", False, not refused(libc.unshare(CLONE_NEWUSER))
    yield "mount", False, not refused(libc.mount(b"none", b"/nowhere", b"tmpfs", 0, None))
    yield "ptrace", False, not refused(libc.ptrace(0, 0, 0, 0))
    yield "bpf", False, not refused(libc.syscall(321 if os.uname().machine == "x86_64" else 280, 0, 0, 0))
    yield "keyctl", False, not refused(libc.syscall(250 if os.uname().machine == "x86_64" else 219, 0, 0, 0))


def child(action):
    process = os.fork()
    if process == 0:
        try:
            os._exit(action())
        except Exception as error:  # noqa: BLE001 - nobody else would report it
            print(error)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(path, *program):
    with open(path) as file:
        profile = json.load(file)
    names = [name for rule in profile["syscalls"] for name in rule["names"]]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        print(f"named twice: {sorted(twice)}")
        return 1
    seccomp = library()
    if seccomp is None:
        print("NOT CHECKED: no libseccomp here to load the profile with")
        return 0
    # io_uring may be switched off on this machine; that is not the profile's doing.
    libc = ctypes.CDLL(None, use_errno=True)
    before = libc.syscall(IO_URING_SETUP, 2, ctypes.create_string_buffer(120))
    here = not (before == -1 and ctypes.get_errno() == errno.EPERM)
    if before >= 0:
        os.close(before)

    context, unknown = build(seccomp, profile)
    if unknown:
        print(f"names that this libseccomp does not know (newer or misspelt): {unknown}")
        return 1

    def run():
        loaded = load(seccomp, context)
        if program:
            os.execvp(program[0], program)
        wrong = 0
        for what, may, did in attempts(loaded):
            if what == "io_uring" and not here:
                print("NOT CHECKED: io_uring is switched off on this machine")
                continue
            verdict = "ok  " if may == did else "FAIL"
            wrong += may != did
            print(f"{verdict} {what}: {'works' if did else 'refused'}")
        sys.stdout.flush()
        return wrong

    return 1 if child(run) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
