"""The system calls that a program in the sandbox may make, as a filter compiled by libseccomp.

It is a list of what Python, numpy and ordinary programs need. All else fails as if the kernel did
not have it, so that a program takes another way or gets an OSError.
"""

import errno
import functools
import tempfile

try:
  import pyseccomp
except (ImportError, RuntimeError, OSError):  # not Linux, or libseccomp itself is missing
  pyseccomp = None

_ALLOWED = """
brk madvise mincore mlock mlock2 mmap mprotect mremap msync munlock munmap membarrier
pkey_alloc pkey_free pkey_mprotect
access chdir chmod close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
flistxattr flock fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr
ioctl lchown lgetxattr link linkat
listxattr llistxattr lseek lstat mkdir mkdirat newfstatat open openat openat2 pread64 preadv preadv2
pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir
sendfile stat statfs statx symlink symlinkat sync_file_range truncate umask unlink
unlinkat utime utimensat utimes write writev
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 pipe pipe2
poll ppoll pselect6 select
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
sendmmsg sendmsg sendto setsockopt shutdown
alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
timerfd_gettime timerfd_settime times
arch_prctl capget execve exit exit_group fork futex futex_waitv get_robust_list get_thread_area
getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getrandom
getresgid getresuid getrlimit getrusage getsid gettid getuid pidfd_open pidfd_send_signal prctl
prlimit64 restart_syscall riscv_flush_icache rseq sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_yield set_robust_list set_thread_area set_tid_address setpgid setpriority
setrlimit setsid sysinfo uname vfork wait4 waitid waitpid
kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill
""".split()
_AF_UNIX = 1
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_NEW_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x70000000


@functools.cache
def call_filter() -> str:
  """The filter's instructions as hexadecimal digits, "" if this machine has no libseccomp.

  clone3 fails because a filter cannot read its arguments; libc then falls back to clone.
  """
  if pyseccomp is None:
    return ""
  rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.ENOSYS))
  for name in _ALLOWED:
    try:
      rules.add_rule(pyseccomp.ALLOW, name)
    except OSError:
      pass  # this machine or this version of libseccomp has no such call
  no_namespace = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _NEW_NAMESPACES, 0)
  rules.add_rule(pyseccomp.ALLOW, "clone", no_namespace)
  for name in ("socket", "socketpair"):
    rules.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(0, pyseccomp.EQ, _AF_UNIX))
  with tempfile.TemporaryFile() as file:
    rules.export_bpf(file)
    file.seek(0)
    return file.read().hex()
