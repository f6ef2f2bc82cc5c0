"""The system calls that no program in a sandbox may make, as a BPF program for the kernel.

Refused: sockets of any kind but a pair of connected streams (an end of a datagram pair can send to any
address of the host), other processes' memory, new namespaces, mounts, kernel keys and modules, memory that no
limit counts. Where the host's processes or files are in the same namespace (Landlock, which covers opening
files only), also changing modes, owners and times of files, acting on another process by its id, and all that
hides an open file from the watch on the disk: a process that cannot be looked at, a thread with files of its
own, a file on its way through a socket. Leaves out architectures whose numbers are not below.
"""

import errno
import platform
import struct

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers as (x86_64, aarch64); None where the architecture has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "acct": (163, 89), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
}  # fmt: skip
_REFUSED_ON_SHARED_FILES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "process_madvise": (440, 440),
    "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
_SIGNALS: dict[str, tuple[int | None, int | None]] = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
}  # fmt: skip
# Allowed on the calling process alone: the number, and which argument has to be 0 (the process's id).
_ON_ITSELF: dict[str, tuple[int | None, int | None, int]] = {
    "prlimit64": (302, 261, 0), "sched_setaffinity": (203, 122, 0), "sched_setscheduler": (144, 119, 0),
    "sched_setparam": (142, 118, 0), "sched_setattr": (314, 274, 0), "setpriority": (141, 140, 1),
    "ioprio_set": (251, 30, 1),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_PRCTL, _CLOSE_RANGE = (157, 167), (436, 436)
_SET_DUMPABLE, _CLOSE_RANGE_UNSHARE = 4, 2
_CLONE_THREAD, _CLONE_FILES = 0x10000, 0x400
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPES = 1, 1, 5, 0xF
_NEW_NAMESPACES = 0x7E020080  # the CLONE_NEW* flags of clone(2)
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
    """True if this machine's system call numbers are known here."""
    return platform.machine() in _ARCH


def program(*, shared: bool = False, signals: bool = True) -> bytes:
    """The filter. shared: the host's files and processes are in reach; signals: whether it may send any."""
    column = list(_ARCH).index(platform.machine())
    refused = dict(_REFUSED)
    if shared:
        refused |= _REFUSED_ON_SHARED_FILES
    if not signals:
        refused |= _SIGNALS
    code = [
        _op(_LOAD, 4),
        _op(_EQUAL, _ARCH[platform.machine()], 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, 0),
        _op(_AT_LEAST, _X32, 0, 1),
        _op(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    for numbers in refused.values():
        if (number := numbers[column]) is not None:
            code += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _ERRNO | errno.EPERM)]
    # The flags of clone3 lie in memory that a filter cannot read; without it the C library uses clone.
    code += [_op(_EQUAL, _CLONE3[column], 0, 1), _op(_RETURN, _ERRNO | errno.ENOSYS)]
    code += _clone(_CLONE[column]) + _socketpair(_SOCKETPAIR[column])
    if shared:
        code += _unless(_PRCTL[column], 0, _op(_EQUAL, _SET_DUMPABLE, 0, 1))
        code += _unless(_CLOSE_RANGE[column], 2, _op(_ANY_BIT, _CLOSE_RANGE_UNSHARE, 0, 1))
    for numbers in _ON_ITSELF.values() if shared else ():
        number, argument = numbers[column], numbers[2]
        if number is not None:
            code += _unless(number, argument, _op(_EQUAL, 0, 1, 0))
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _clone(number: int) -> list[bytes]:
    """Refuse new namespaces, and a thread whose open files are not its process's."""
    return [
        _op(_EQUAL, number, 0, 6),
        _op(_LOAD, 16),
        _op(_ANY_BIT, _NEW_NAMESPACES, 2, 0),
        _op(_ANY_BIT, _CLONE_THREAD, 0, 2),
        _op(_ANY_BIT, _CLONE_FILES, 1, 0),
        _op(_RETURN, _ERRNO | errno.EPERM),
        _op(_RETURN, _ALLOW),
    ]


def _socketpair(number: int) -> list[bytes]:
    """Refuse pairs but those of unix(7) that stay connected: a datagram's end takes any address."""
    return [
        _op(_EQUAL, number, 0, 8),
        _op(_LOAD, 16),
        _op(_EQUAL, _AF_UNIX, 0, 4),
        _op(_LOAD, 24),
        _op(_AND, _SOCK_TYPES),
        _op(_EQUAL, _SOCK_STREAM, 2, 0),
        _op(_EQUAL, _SOCK_SEQPACKET, 1, 0),
        _op(_RETURN, _ERRNO | errno.EPERM),
        _op(_RETURN, _ALLOW),
    ]


def _unless(number: int, argument: int, test: bytes) -> list[bytes]:
    """Refuse call `number` by the low half of an argument; `test` jumps over one step to allow it."""
    return [
        _op(_EQUAL, number, 0, 4),
        _op(_LOAD, 16 + 8 * argument),
        test,
        _op(_RETURN, _ERRNO | errno.EPERM),
        _op(_RETURN, _ALLOW),
    ]


def _op(code: int, operand: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, on_true, on_false, operand)
