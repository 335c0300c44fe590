/*
 * The rest of the extension: system calls that Python 3.11 has none for, or only behind imports
 * that cost more than the whole start of the master. Thin: no state, no policy. Each returns a
 * value >= 0, or -errno.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#include "spawn.h"
#include "syscalls.h"

static int result_of(int result)
{
	return result < 0 ? -errno : result;
}

const char *lowsuper_step_name(int step)
{
	static const char *const names[] = {
		[LOWSUPER_STEP_NONE] = "none",
		[LOWSUPER_STEP_PLAN] = "plan",
		[LOWSUPER_STEP_FORK] = "fork",
		[LOWSUPER_STEP_CGROUP] = "cgroup",
		[LOWSUPER_STEP_SETSID] = "setsid",
		[LOWSUPER_STEP_FDS] = "fds",
		[LOWSUPER_STEP_RLIMITS] = "rlimits",
		[LOWSUPER_STEP_CHDIR] = "chdir",
		[LOWSUPER_STEP_SETGROUPS] = "setgroups",
		[LOWSUPER_STEP_SETRESGID] = "setresgid",
		[LOWSUPER_STEP_SETRESUID] = "setresuid",
		[LOWSUPER_STEP_PDEATHSIG] = "pdeathsig",
		[LOWSUPER_STEP_UMASK] = "umask",
		[LOWSUPER_STEP_SIGNALS] = "signals",
		[LOWSUPER_STEP_EXECVE] = "execve",
		[LOWSUPER_STEP_OOM_SCORE] = "oom_score",
		[LOWSUPER_STEP_NICE] = "nice",
		[LOWSUPER_STEP_NO_NEW_PRIVS] = "no_new_privs",
		[LOWSUPER_STEP_CAPS] = "caps",
		[LOWSUPER_STEP_NAMESPACES] = "namespaces",
		[LOWSUPER_STEP_HOSTNAME] = "hostname",
		[LOWSUPER_STEP_SOURCES] = "mounts",
		[LOWSUPER_STEP_ROOT] = "root",
		[LOWSUPER_STEP_PROC] = "proc",
		[LOWSUPER_STEP_MOUNTS] = "mounts",
		[LOWSUPER_STEP_LOG] = "log",
		[LOWSUPER_STEP_NETNS] = "netns",
		[LOWSUPER_STEP_FENCE] = "fence",
	};
	_Static_assert(sizeof names / sizeof *names == LOWSUPER_STEP_COUNT, "a name per step");

	return step >= 0 && step < LOWSUPER_STEP_COUNT ? names[step] : "unknown";
}

/*
 * The raw wait status of a child that ended, which is gone then, or with `leave` stays a zombie;
 * -EAGAIN while it lives, -ECHILD if it is not ours. Never waits: epoll can report the number of a pidfd that was closed and now
 * belongs to another, living child. See waitid(2); P_PIDFD: Linux 5.4.
 */
int lowsuper_reap(int pidfd, int leave)
{
	siginfo_t info = { .si_pid = 0 };
	const int flags = WEXITED | WNOHANG | (leave ? WNOWAIT : 0);

	if (waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, flags))
		return -errno;
	if (info.si_pid == 0)
		return -EAGAIN;
	if (info.si_code == CLD_EXITED)
		return (info.si_status & 0xff) << 8;
	return (info.si_status & 0x7f) | (info.si_code == CLD_DUMPED ? 0x80 : 0);
}

/* The pid of some child that ended and was not reaped yet; 0: none. See waitid(2). */
int lowsuper_peek_child(void)
{
	siginfo_t info = { .si_pid = 0 };

	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT))
		return errno == ECHILD ? 0 : -errno;
	return info.si_pid;
}

/* See pidfd_send_signal(2); with `group` to its process group: Linux 6.9, -EINVAL before. */
int lowsuper_send_signal(int pidfd, int signo, int group)
{
	return result_of(
		sys_pidfd_send_signal(pidfd, signo, group ? PIDFD_SIGNAL_PROCESS_GROUP : 0));
}

/* See PIDFD_GET_INFO in the kernel's linux/pidfd.h; Linux 6.13, the exit status since 6.15. */
int lowsuper_exit_info(int pidfd, struct lowsuper_exit_info *info)
{
	struct {
		uint64_t mask;
		uint64_t cgroup_id;
		uint32_t ids[11];
		int32_t exit_code;
	} raw = { .mask = 1u << 2 | 1u << 3 }; /* PIDFD_INFO_CGROUPID, PIDFD_INFO_EXIT */
	_Static_assert(sizeof raw == 64, "PIDFD_INFO_SIZE_VER0");

	memset(info, 0, sizeof *info);
	if (ioctl(pidfd, _IOWR(0xff, 11, raw), &raw))
		return -errno;
	if (raw.mask & 1u << 2)
		info->cgroup_id = raw.cgroup_id;
	if (raw.mask & 1u << 3) {
		info->has_status = 1;
		info->status = raw.exit_code;
	}
	return 0;
}

/* Block `signals` (bit n - 1: signal n) and return a descriptor that tells them. See signalfd(2). */
int lowsuper_signalfd(uint64_t signals)
{
	sigset_t set;

	sigemptyset(&set);
	for (int signo = 1; signo <= 64; signo++)
		if (signals >> (signo - 1) & 1 && sigaddset(&set, signo))
			return -errno;
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return -errno;
	return result_of(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

/* How many signals were read, 0: none waits. */
int lowsuper_signalfd_read(int fd, struct lowsuper_signal *signals, int count)
{
	int done = 0;

	while (done < count) {
		struct signalfd_siginfo info;
		ssize_t size = read(fd, &info, sizeof info);

		if (size < 0 && errno == EAGAIN)
			break;
		if (size != (ssize_t)sizeof info)
			return size < 0 ? -errno : -EIO;
		signals[done++] = (struct lowsuper_signal){
			.signo = (int32_t)info.ssi_signo,
			.pid = (int32_t)info.ssi_pid,
			.uid = (int32_t)info.ssi_uid,
			.code = info.ssi_code,
		};
	}
	return done;
}

/* See timerfd_create(2). */
int lowsuper_timerfd(void)
{
	return result_of(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
}

/* Absolute CLOCK_MONOTONIC time; a time in the past fires at once, 0 disarms. */
int lowsuper_timerfd_settime(int fd, int64_t at_ns)
{
	const struct itimerspec at = {
		.it_value = { .tv_sec = at_ns / 1000000000, .tv_nsec = at_ns % 1000000000 },
	};

	return result_of(timerfd_settime(fd, TFD_TIMER_ABSTIME, &at, NULL));
}

/* See inotify(7). */
int lowsuper_inotify(void)
{
	return result_of(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
}

int lowsuper_inotify_add(int fd, const char *path, uint32_t mask)
{
	return result_of(inotify_add_watch(fd, path, mask));
}

int lowsuper_inotify_remove(int fd, int watch)
{
	return result_of(inotify_rm_watch(fd, watch));
}

int lowsuper_openat2(int dir_fd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	const struct sys_open_how how = { .flags = flags, .mode = mode, .resolve = resolve };

	return result_of(sys_openat2(dir_fd, path, &how));
}

/* See PR_SET_CHILD_SUBREAPER(2const); Linux 3.4. */
int lowsuper_set_child_subreaper(int on)
{
	return result_of(prctl(PR_SET_CHILD_SUBREAPER, (unsigned long)on, 0, 0, 0));
}

/* Of this process, and of what it executes. See PR_CAP_AMBIENT(2const); Linux 4.3. */
int lowsuper_raise_ambient(int cap)
{
	return result_of(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, (unsigned long)cap, 0, 0));
}

int lowsuper_close_range(uint32_t first, uint32_t last, uint32_t flags)
{
	return result_of(sys_close_range(first, last, flags));
}

/* See PR_SET_PDEATHSIG(2const). Gone after a change of the user id. */
int lowsuper_set_pdeathsig(int signo)
{
	return result_of(prctl(PR_SET_PDEATHSIG, (unsigned long)signo, 0, 0, 0));
}

/* See unshare(2). */
int lowsuper_unshare(uint32_t flags)
{
	return result_of(unshare((int)flags));
}

/* See setns(2). */
int lowsuper_setns(int fd, uint32_t kind)
{
	return result_of(setns(fd, (int)kind));
}

/* See pivot_root(2). */
int lowsuper_pivot_root(const char *new_root, const char *put_old)
{
	return result_of((int)syscall(SYS_pivot_root, new_root, put_old));
}

/* See mount(2). Empty texts for `type` and `data`: NULL. */
int lowsuper_mount(const char *source, const char *target, const char *type, uint64_t flags,
		   const char *data)
{
	return result_of(mount(source, target, *type ? type : NULL, flags, *data ? data : NULL));
}

/* See umount2(2). */
int lowsuper_umount(const char *path, int flags)
{
	return result_of(umount2(path, flags));
}

/* See open_tree(2); Linux 5.2. */
int lowsuper_open_tree(int dir_fd, const char *path, uint32_t flags)
{
	return result_of((int)syscall(SYS_open_tree, dir_fd, path, flags));
}

/* See move_mount(2); Linux 5.2. */
int lowsuper_move_mount(int from_fd, const char *from, int to_fd, const char *to, uint32_t flags)
{
	return result_of((int)syscall(SYS_move_mount, from_fd, from, to_fd, to, flags));
}

/* See mount_setattr(2); Linux 5.12. */
int lowsuper_mount_setattr(int dir_fd, const char *path, uint32_t flags, uint64_t set,
			   uint64_t propagation)
{
	const struct {
		uint64_t set, clear, propagation, user_ns;
	} attributes = { .set = set, .propagation = propagation };

	return result_of((int)syscall(SYS_mount_setattr, dir_fd, path, flags, &attributes,
				      sizeof attributes));
}

/* See fsopen(2); Linux 5.2. */
int lowsuper_fsopen(const char *type)
{
	return result_of((int)syscall(SYS_fsopen, type, 1u)); /* FSOPEN_CLOEXEC */
}

/* See fsconfig(2); Linux 5.2. Without a key or value: NULL. */
int lowsuper_fsconfig(int fd, uint32_t command, const char *key, const char *value, int aux)
{
	return result_of((int)syscall(SYS_fsconfig, fd, command, key, value, aux));
}

/* See fsmount(2); Linux 5.2. */
int lowsuper_fsmount(int fd, uint32_t attributes)
{
	return result_of((int)syscall(SYS_fsmount, fd, 1u, attributes)); /* FSMOUNT_CLOEXEC */
}
