"""Which system calls a sandbox may make: the default profile of containers.

An allow-list, no wider than what container engines have by default, in the form that OCI
configs have (runtime-spec, config-linux.md, "Seccomp").  What is known and not in it fails with
EPERM, what is not known with ENOSYS, so that programs fall back on what they used before.

Narrower than others on purpose: keyrings, namespaces of one's own, mounts and io_uring are closed.
"""

import errno
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from lazyfs.sandbox.specs.syscalls import ARCHITECTURES, known_names

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
EQUAL, MASKED = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"
WORD = 0xFFFFFFFF
# clone(2), unshare(2): CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET; unshare has -TIME too.
NEW_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
NEW_TIME = 0x80
# ioctl(2): these put characters into a terminal as if somebody had typed them.
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
AF_VSOCK = 40  # the machine's hypervisor, past all network namespaces
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, its variants, and "which is it?"

_ALLOWED = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2
dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid
geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list
getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link
linkat listen listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64
madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv
msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl
semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid
setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr
setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signal signalfd signalfd4 sigaction
sigpending sigprocmask sigreturn sigsuspend socketcall socketpair splice stat stat64 statfs statfs64
statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill
truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat utimensat_time64 utimes
vfork vmsplice wait4 waitid waitpid write writev
arch_prctl modify_ldt
"""
# What a capability opens.
_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie "
    "mount mount_setattr move_mount open_tree perf_event_open pivot_root quotactl quotactl_fd "
    "setdomainname sethostname setns syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
# Programs ask for these and use the older call where there is none.
_ABSENT = frozenset(["clone3"])
_CONDITIONAL = frozenset(["clone", "unshare", "ioctl", "personality", "socket"])


def default_profile(capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Return the profile for a sandbox that may have *capabilities*, as OCI configs have it.

    *machine* is uname(2)'s word; one that is not known gets the numbers of libseccomp's default.
    """
    allowed = set(_ALLOWED.split())
    for name in capabilities:
        allowed.update(_BY_CAPABILITY.get(name, "").split())
    absent = _ABSENT - allowed
    refused = known_names() - allowed - absent - _CONDITIONAL
    profile: dict[str, Any] = {
        "defaultAction": ERRNO,
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": [
            {"names": sorted(allowed), "action": ALLOW},
            {"names": sorted(refused), "action": ERRNO, "errnoRet": errno.EPERM},
            *_conditions(allowed),
        ],
    }
    if not profile["architectures"]:
        del profile["architectures"]
    return profile


def _conditions(allowed: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what depends on arguments.  No two entries of a call meet the same arguments."""
    if "clone" not in allowed:
        yield from _without_bits("clone", NEW_NAMESPACES)
    if "unshare" not in allowed:
        yield from _without_bits("unshare", (NEW_TIME, *NEW_NAMESPACES))
    yield from _all_but("ioctl", 1, (TIOCSTI, TIOCLINUX), errno.EPERM)
    yield from _all_but("socket", 0, (AF_VSOCK,), errno.EAFNOSUPPORT)
    for value in PERSONALITIES:
        yield {
            "names": ["personality"],
            "action": ALLOW,
            "args": [{"index": 0, "value": value, "op": EQUAL}],
        }


def _without_bits(name: str, bits: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Allow *name* where none of *bits* is in its first argument; refuse it where one is.

    The lowest bit that is there decides, so that the entries exclude each other.
    """
    below = 0
    for bit in sorted(bits):
        yield _masked(name, 0, below | bit, bit, errno.EPERM)
        below |= bit
    yield _masked(name, 0, below, 0)


def _all_but(name: str, index: int, values: Collection[int], code: int) -> Iterator[dict[str, Any]]:
    """Allow *name* but where the argument at *index*, of 32 bits, is one of *values*.

    The kernel looks at the lower half only.  libseccomp's "not equal" looks at all 64 bits, which
    a program gets past with any bit of the upper half.
    """
    for value in values:
        yield _masked(name, index, WORD, value, code)
    waiting = [(0, 0)]  # prefixes: which bits are given, and what they are
    while waiting:
        mask, found = waiting.pop()
        if not any(value & mask == found for value in values):
            yield _masked(name, index, mask, found)
        elif mask != WORD:
            bit = ((mask >> 1) | 1 << 31) & ~mask
            waiting += [(mask | bit, found), (mask | bit, found | bit)]


def _masked(name: str, index: int, mask: int, value: int, code: int = 0) -> dict[str, Any]:
    condition = {"index": index, "value": mask, "valueTwo": value, "op": MASKED}
    entry: dict[str, Any] = {"names": [name], "action": ERRNO if code else ALLOW}
    if code:
        entry["errnoRet"] = code
    return entry | {"args": [condition]}
