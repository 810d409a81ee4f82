"""Rights that a process of the sandbox gives up before it runs code that a model wrote.

Sources: Linux manual pages mount(2), pivot_root(2), mount_setattr(2), capabilities(7), landlock(7),
seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import TypedDict

LIBC = ctypes.CDLL(None, use_errno=True)

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 2, -100, 0x8000, 1
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
SECCOMP_MODE_FILTER, EPERM, ENOSYS, CLONE_THREAD = 2, 1, 38, 0x10000

# System calls by name: their numbers on x86_64 and on aarch64 (-1: the architecture has none).
CLONE, CLONE3 = (56, 220), (435, 435)
MOUNT_SETATTR, PIVOT_ROOT, CAPSET = (442, 442), (155, 41), (126, 91)
LANDLOCK = ((444, 444), (445, 445), (446, 446))
REFUSED = {
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    "open_by_handle_at": (304, 265),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

# Access rights of Landlock, by the version of its interface that introduced them.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # number of rights
READ_RIGHTS = 0b1101  # execute, read a file, list a folder
TCP_RIGHTS, SCOPES = 0b11, 0b11


class Rights(TypedDict):
    """The sandbox as its parent describes it.

    `root` is the folder that becomes the root (empty: it is the root already), `visible` what is seen
    there, `folder` the only writable place, `tmpfs_bytes` and `tmpfs_files` its size (0: not mounted).
    """

    root: str
    visible: list[str]
    links: dict[str, str]
    folder: str
    tmpfs_bytes: int
    tmpfs_files: int
    cpu_s: int
    memory_bytes: int
    file_bytes: int


def number(call: tuple[int, int]) -> int:
    """Return the number of a system call on this machine; -1 where it is not known."""
    return {"x86_64": call[0], "aarch64": call[1]}.get(platform.machine(), -1)


def checked(result: int, action: str) -> None:
    """Raise OSError if a call of libc failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{action}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount, or change a mount. Raises OSError."""
    words = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags))
    checked(LIBC.mount(*words, data.encode() or None), f"mount {target}")


def enter(rights: Rights) -> None:
    """Enter the sandbox: a read-only root of the visible paths, limits, no capabilities, filters."""
    os.umask(0o077)
    if rights["root"]:
        change_root(rights)
    if rights["tmpfs_bytes"]:
        size = f"size={rights['tmpfs_bytes']},nr_inodes={rights['tmpfs_files']},mode=700"
        mount("tmpfs", rights["folder"], "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.chdir(rights["folder"])
    limit(rights)
    if sys.platform != "linux":
        return
    drop_capabilities()
    checked(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    checked(LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    devices = [path for path in rights["visible"] if path.startswith("/dev/")]
    readable = ["/", *devices] if rights["tmpfs_bytes"] else rights["visible"]
    restrict_files(readable, rights["folder"])
    filter_calls()


def change_root(rights: Rights) -> None:
    """Make `root` a small tmpfs, bind the visible paths into it, turn it read-only and make it the root."""
    root = rights["root"]
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    for path in rights["visible"]:
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mount(path, target, "", MS_BIND | MS_REC)
        make_read_only(target, is_device=path.startswith("/dev/"))
    for link, target in rights["links"].items():
        os.symlink(target, root + link)
    os.makedirs(root + rights["folder"], exist_ok=True)
    os.chdir(root)
    old = os.path.join(root, "old")
    os.mkdir(old)
    checked(LIBC.syscall(number(PIVOT_ROOT), root.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    checked(LIBC.umount2(b"/old", MNT_DETACH), "umount /old")
    os.rmdir("/old")
    make_read_only("/", is_device=False, recursive=False)


def make_read_only(path: str, *, is_device: bool, recursive: bool = True) -> None:
    """Turn a mount, with all below it, read-only. A device stays writable."""
    if is_device:
        return
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    call = number(MOUNT_SETATTR)
    size = ctypes.c_size_t(len(attributes))
    checked(
        LIBC.syscall(call, AT_FDCWD, path.encode(), flags, attributes, size), f"{path} read-only"
    )


def limit(rights: Rights) -> None:
    """Set the kernel's limits, which cannot be raised again."""
    import resource

    def bound(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    bound(resource.RLIMIT_CPU, rights["cpu_s"])
    bound(resource.RLIMIT_FSIZE, rights["file_bytes"])
    bound(resource.RLIMIT_NOFILE, 32)
    bound(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # macOS refuses a limit of memory, and counts processes per user
        bound(resource.RLIMIT_AS, rights["memory_bytes"])
        bound(resource.RLIMIT_NPROC, 256)
        bound(resource.RLIMIT_MSGQUEUE, 0)


def drop_capabilities() -> None:
    """Give up every capability, also those that a later program could regain."""
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the first number that the kernel does not know, or no right to drop: none to lose
    header = struct.pack("Ii", 0x20080522, 0)
    checked(LIBC.syscall(number(CAPSET), header, bytes(24)), "capset")


def restrict_files(readable: list[str], folder: str) -> None:
    """Restrict files by Landlock to reading `readable` and writing `folder`, where the kernel has it."""
    create, add, restrict = (number(call) for call in LANDLOCK)
    version = LIBC.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    rights = (1 << max(count for since, count in FILE_RIGHTS.items() if since <= version)) - 1
    fields = [rights]
    if version >= 4:
        fields.append(TCP_RIGHTS)
    if version >= 6:
        fields.append(SCOPES)
    wanted = struct.pack("Q" * len(fields), *fields)
    rules = LIBC.syscall(create, wanted, ctypes.c_size_t(len(wanted)), 0)
    checked(rules, "landlock")
    for path in [*readable, folder]:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if path == folder else READ_RIGHTS & rights
        if path.startswith("/dev/"):
            allowed = 0b110  # read and write
        elif not os.path.isdir(path):
            allowed &= 0b101
        rule = struct.pack("=Qi", allowed, opened)
        checked(LIBC.syscall(add, rules, 1, rule, 0), f"landlock {path}")
        os.close(opened)
    checked(LIBC.syscall(restrict, rules, 0), "landlock")
    os.close(rules)


def filter_calls() -> None:
    """Refuse, by seccomp, other processes, programs, sockets, shared memory, and rarer system calls."""
    architecture = AUDIT_ARCH.get(platform.machine())
    if architecture is None:
        return
    load, equal, at_least, any_bit, result = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS
    calls = sorted({number(call) for call in REFUSED.values()} - {-1})
    lines: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (result, 0, 0, refuse),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 0, 1, X32_BIT),
        (result, 0, 0, refuse),
    ]
    for call in calls:
        lines += [(equal, 0, 1, call), (result, 0, 0, refuse)]
    lines += [
        (equal, 0, 1, number(CLONE3)),  # its flags lie in memory, which a filter cannot read:
        (result, 0, 0, absent),  # glibc then uses clone
        (equal, 0, 3, number(CLONE)),
        (load, 0, 0, 16),  # the low half of the first argument: the flags
        (any_bit, 1, 0, CLONE_THREAD),
        (result, 0, 0, refuse),
        (result, 0, 0, allow),
    ]
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(lines), ctypes.addressof(buffer))
    checked(LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")
