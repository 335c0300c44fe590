/*
 * System calls that glibc 2.36 has no wrapper for. As in glibc: -1 and errno.
 */
#ifndef LOWSUPER_SYSCALLS_H
#define LOWSUPER_SYSCALLS_H

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* These numbers are the same on every architecture (Linux 5.0 and later use one table). */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#endif
#ifndef SYS_fsconfig
#define SYS_fsconfig 431
#endif
#ifndef SYS_fsmount
#define SYS_fsmount 432
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4u
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef PIDFD_SIGNAL_PROCESS_GROUP
#define PIDFD_SIGNAL_PROCESS_GROUP 4u
#endif

/* See pidfd_open(2); Linux 5.3. */
static inline int sys_pidfd_open(int pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* See pidfd_send_signal(2); Linux 5.1, flags since 6.9. */
static inline int sys_pidfd_send_signal(int pidfd, int signo, unsigned flags)
{
	return (int)syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, flags);
}

/* See close_range(2); Linux 5.9, CLOSE_RANGE_CLOEXEC since 5.11. */
static inline int sys_close_range(unsigned first, unsigned last, unsigned flags)
{
	return (int)syscall(SYS_close_range, first, last, flags);
}

/* See openat2(2); Linux 5.6. */
struct sys_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};

static inline int sys_openat2(int dir_fd, const char *path, const struct sys_open_how *how)
{
	return (int)syscall(SYS_openat2, dir_fd, path, how, sizeof *how);
}

#endif
