"""Every system call of Linux 6.18, by what a job may do with it: name, number on x86_64, number on aarch64.

Each call stands in one table, and none by chance: `tests/adversarial/test_isolation_calls.py` makes every one that
takes a path or an identifier, in the sandbox, and looks what changed outside. A call that is newer than this list does
not exist in the sandbox (ENOSYS), so that libraries do what they did before there was one. Sources: asm/unistd_64.h of
x86_64, asm-generic/unistd.h, which aarch64 uses.
"""

from __future__ import annotations

Table = dict[str, tuple[int | None, int | None]]
"""From a call's name to its number on x86_64 and on aarch64; None where that machine has no such call."""
_MACHINES = ("x86_64", "aarch64")


def _table(text: str) -> Table:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = [entry.split() for entry in " ".join(lines).split(",") if entry.strip()]
    return {name: (_number(first), _number(second)) for name, first, second in entries}


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


# What every job may call. Landlock decides on the files.
ALLOWED = _table("""
    # memory of its own
    brk 12 214, mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, msync 26 227, mincore 27 232,
    madvise 28 233, mlock 149 228, mlock2 325 284, munlock 150 229, mlockall 151 230, munlockall 152 231,
    pkey_mprotect 329 288, pkey_alloc 330 289, pkey_free 331 290, mseal 462 462, map_shadow_stack 453 453,
    mbind 237 235, set_mempolicy 238 237, get_mempolicy 239 236, set_mempolicy_home_node 450 450, membarrier 324 283,
    memfd_create 319 279, arch_prctl 158 -,
    # descriptors that it holds
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
    preadv2 327 286, pwritev2 328 287, close 3 57, close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24, lseek 8 62,
    fstat 5 80, fstatfs 138 44, fchdir 81 50, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, pipe 22 -,
    pipe2 293 59, eventfd 284 -, eventfd2 290 19, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, timerfd_create 283 85, timerfd_settime 286 86,
    timerfd_gettime 287 87, signalfd 282 -, signalfd4 289 74, sendfile 40 71, splice 275 76, tee 276 77,
    vmsplice 278 75, copy_file_range 326 285, fsync 74 82, fdatasync 75 83, ftruncate 77 46, fallocate 285 47,
    fadvise64 221 223, readahead 187 213, sync_file_range 277 84, cachestat 451 451, getdents 78 -, getdents64 217 61,
    flock 73 32,
    # paths: Landlock decides on these
    open 2 -, openat 257 56, openat2 437 437, creat 85 -, truncate 76 45, rename 82 -, renameat 264 38,
    renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
    # paths: what these tell, anybody may know who may look up the name
    stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439,
    readlink 89 -, readlinkat 267 78, statfs 137 43, getcwd 79 17, chdir 80 49, umask 95 166,
    # itself
    exit 60 93, exit_group 231 94, futex 202 98, futex_waitv 449 449, futex_wake 454 454, futex_wait 455 455,
    futex_requeue 456 456, set_robust_list 273 99, rseq 334 293, set_tid_address 218 96, restart_syscall 219 128,
    rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
    rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -, nanosleep 35 101, clock_nanosleep 230 115,
    getitimer 36 102, setitimer 38 103, alarm 37 -, timer_create 222 107, timer_settime 223 110,
    timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, wait4 61 260, waitid 247 95,
    seccomp 317 277, landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446,
    uretprobe 335 -, uprobe 336 -,
    # questions
    time 201 -, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, times 100 153, getrusage 98 165,
    getrlimit 97 163, sysinfo 99 179, uname 63 160, getrandom 318 278, getcpu 309 168, sched_yield 24 124,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_getattr 315 275,
    sched_get_priority_max 146 125, sched_get_priority_min 147 126, sched_rr_get_interval 148 127,
    getpriority 140 141, ioprio_get 252 31, getpid 39 172, gettid 186 178, getppid 110 173, getpgrp 111 -,
    getpgid 121 155, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
    getgroups 115 158, getresuid 118 148, getresgid 120 150, capget 125 90,
""")
# What is allowed or refused by arguments (`isolation.seccomp`).
CHECKED = _table("""
    clone 56 220, kill 62 129, tgkill 234 131, prctl 157 167, prlimit64 302 261, fcntl 72 25, ioctl 16 29,
    sched_setaffinity 203 122, socket 41 198,
""")
# What only ranks may call, on sockets that can be TCP alone.
OF_TCP = _table("""
    connect 42 203, accept 43 202, accept4 288 242, bind 49 200, listen 50 201, sendto 44 206, recvfrom 45 207,
    sendmsg 46 211, recvmsg 47 212,
""")
# Harmless on a socket, which nobody but ranks and the driver of a GPU has.
ON_SOCKETS = _table("""
    getsockname 51 204, getpeername 52 205, setsockopt 54 208, getsockopt 55 209, shutdown 48 210,
""")
# What a job on the CPU is refused, and a job on a GPU keeps: nobody has tried the driver without it (ADR 11).
ON_A_GPU = _table("""
    fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, link 86 -, linkat 265 37, setpriority 141 140,
    ioprio_set 251 30, sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274, setpgid 109 154,
    setsid 112 157, setrlimit 160 164, personality 135 92, capset 126 91, tkill 200 130, rt_sigqueueinfo 129 138,
    rt_tgsigqueueinfo 297 240, pidfd_open 434 434, pidfd_send_signal 424 424, process_madvise 440 440,
    process_mrelease 448 448, inotify_init 253 -, inotify_init1 294 26, inotify_add_watch 254 27,
    inotify_rm_watch 255 28, io_setup 206 0, io_destroy 207 1, io_submit 209 2, io_cancel 210 3, io_getevents 208 4,
    io_pgetevents 333 292, remap_file_pages 216 234, get_robust_list 274 100, sync 162 81, syncfs 306 267,
    memfd_secret 447 447,
""")
# Its arguments lie in memory, where no filter sees them. The C library then uses clone.
ABSENT = _table("""
    clone3 435 435,
""")
# What no job may call.
DENIED = _table("""
    # files, without opening them
    chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -,
    fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6,
    fsetxattr 190 7, setxattrat 463 463, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16,
    removexattrat 466 466, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, getxattrat 464 464, listxattr 194 11,
    llistxattr 195 12, flistxattr 196 13, listxattrat 465 465, file_getattr 468 468, file_setattr 469 469,
    symlink 88 -, symlinkat 266 36, mknod 133 -, mknodat 259 33, name_to_handle_at 303 264, open_by_handle_at 304 265,
    fanotify_init 300 262, fanotify_mark 301 263, quotactl 179 60, quotactl_fd 443 443,
    # what processes share by a number or a name
    shmget 29 194, shmat 30 196, shmctl 31 195, shmdt 67 197, msgget 68 186, msgsnd 69 189, msgrcv 70 188,
    msgctl 71 187, semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192, mq_open 240 180, mq_unlink 241 181,
    mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184, mq_getsetattr 245 185, add_key 248 217,
    request_key 249 218, keyctl 250 219, socketpair 53 199, recvmmsg 299 243, sendmmsg 307 269,
    # other processes
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_getfd 438 438, kcmp 312 272,
    migrate_pages 256 238, move_pages 279 239, perf_event_open 298 241, bpf 321 280, userfaultfd 323 282,
    io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
    # namespaces and mounts
    unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428,
    open_tree_attr 467 467, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
    mount_setattr 442 442, statmount 457 457, listmount 458 458,
    # who it is
    setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147, setresgid 119 149,
    setfsuid 122 151, setfsgid 123 152, setgroups 116 159, lsm_get_self_attr 459 459, lsm_set_self_attr 460 460,
    lsm_list_modules 461 461,
    # the machine
    acct 163 89, adjtimex 159 171, clock_adjtime 305 266, clock_settime 227 112, settimeofday 164 170,
    sethostname 170 161, setdomainname 171 162, reboot 169 142, kexec_load 246 104, kexec_file_load 320 294,
    init_module 175 105, finit_module 313 273, delete_module 176 106, iopl 172 -, ioperm 173 -, modify_ldt 154 -,
    set_thread_area 205 -, get_thread_area 211 -, swapon 167 224, swapoff 168 225, syslog 103 116, vhangup 153 58,
    sysfs 139 -, ustat 136 -, lookup_dcookie 212 18,
    # calls that no kernel of today has
    _sysctl 156 -, uselib 134 -, create_module 174 -, get_kernel_syms 177 -, query_module 178 -, nfsservctl 180 42,
    getpmsg 181 -, putpmsg 182 -, afs_syscall 183 -, tuxcall 184 -, security 185 -, vserver 236 -,
    epoll_ctl_old 214 -, epoll_wait_old 215 -,
""")
ON_FILES: dict[str, int | None] = {
    "open": 1, "openat": 2, "openat2": None, "creat": None, "truncate": None, "ftruncate": None, "fallocate": None,
    "rename": None, "renameat": None, "renameat2": None, "mkdir": None, "mkdirat": None, "rmdir": None, "unlink": None,
    "unlinkat": None,
}  # fmt: skip
"""Allowed calls by which files are made, changed or removed, and which argument says so where one does."""
TABLES = (ALLOWED, CHECKED, OF_TCP, ON_SOCKETS, ON_A_GPU, ABSENT, DENIED)


def numbers(machine: str) -> dict[str, int]:
    """List every call that this machine has, with its number there."""
    column = _MACHINES.index(machine)
    every = {name: both[column] for table in TABLES for name, both in table.items()}
    return {name: number for name, number in every.items() if number is not None}
