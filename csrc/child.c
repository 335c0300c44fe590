/*
 * Stage 2 of a spawn: from a plan to a daemon. An ordinary single-threaded process with memory of
 * its own runs the table of steps below and execs; a step that fails ends it with one record.
 *
 * To add a step: its number in spawn.h, its name in calls.c, a function and a row here, in order.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper.h"
#include "syscalls.h"

struct step {
	enum lowsuper_step id;
	/* 0, or -1 and errno; sets `arg` to the index of what failed where there are several. */
	int (*run)(struct task *task, int32_t *arg);
};

static int write_record(const struct task *task, enum lowsuper_step step, int err, int32_t arg)
{
	const struct lowsuper_error record = { .step = (int32_t)step, .err = err, .arg = arg };

	/* If nobody reads it any more the master is dead, and nobody is left to be told. */
	return write(task->head.error_fd, &record, sizeof record) < 0 ? -1 : 0;
}

void task_fail(const struct task *task, enum lowsuper_step step, int err, int32_t arg)
{
	write_record(task, step, err, arg);
	_exit(127);
}

/*
 * First, before this process can fork: whatever it starts is then in the leaf too. The master
 * holds the pidfd, which covers a kill that comes before. See cgroups(7).
 */
static int step_cgroup(struct task *task, int32_t *arg)
{
	struct pollfd master = { .fd = task->head.master_fd, .events = POLLIN };
	int fd;
	ssize_t written;

	(void)arg;
	if (task->head.leaf_fd < 0)
		return 0;
	fd = openat(task->head.leaf_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	written = write(fd, "0", 1);
	if (written < 0)
		return -1;
	close(fd);
	/* Race: the next master, who looked for us in the leaf before this, has started another. */
	if (poll(&master, 1, 0) > 0) {
		errno = ESRCH;
		return -1;
	}
	/* A way to the host for whoever is in another root. */
	close(task->head.leaf_fd);
	task->head.leaf_fd = -1;
	return 0;
}

/*
 * A session, and so a process group, of the daemon's own: a ^C at the master's terminal is not
 * for it, and the master can signal its group. See setsid(2).
 */
static int step_setsid(struct task *task, int32_t *arg)
{
	(void)task;
	(void)arg;
	return setsid() < 0 ? -1 : 0;
}

/* Move `*fd` to `first` or above, where no target is. */
static int move_fd(int *fd, int first)
{
	int moved;

	if (*fd < 0)
		return 0;
	moved = fcntl(*fd, F_DUPFD_CLOEXEC, first);
	if (moved < 0)
		return -1;
	*fd = moved;
	return 0;
}

/* O_NOCTTY: the leader of a new session would get a terminal that it opens. See open(2). */
static int open_path(const char *path, const struct lowsuper_fd *entry, int first)
{
	int fd = open(path, entry->flags | O_CLOEXEC | O_NOCTTY, entry->mode);
	int moved = fd;

	if (fd < 0 || fd >= first)
		return fd;
	if (move_fd(&moved, first))
		return -1;
	close(fd);
	return moved;
}

/* As root, alone in this process: what hangs here, on a dead file server, hangs nobody else. */
static int step_log(struct task *task, int32_t *arg)
{
	const struct lowsuper_plan *plan = task->plan;
	uid_t real, effective, saved;

	if (!(plan->flags & LOWSUPER_HAS_LOG))
		return 0;
	if (getresuid(&real, &effective, &saved))
		return -1;
	task->log_fd = lowsuper_log_open(
		task->log, plan->flags & LOWSUPER_HAS_UID ? plan->uid : effective,
		LOWSUPER_LOG_APPEND, arg);
	if (task->log_fd >= 0)
		return 0;
	errno = -task->log_fd;
	return -1;
}

/*
 * The daemon's descriptors. All sources move above the highest target first, since a source may
 * be another's target; then everything is marked close-on-exec, and dup2 makes the targets without
 * that mark. Nothing is closed: the error pipe must last until the execve.
 * See fcntl(2), close_range(2): Linux 5.11.
 */
static int step_fds(struct task *task, int32_t *arg)
{
	struct lowsuper_fd *const fds = task->fds;
	char **path = task->paths;
	int first = 3;

	for (uint32_t i = 0; i < task->plan->fds; i++)
		if (fds[i].target >= first)
			first = fds[i].target + 1;
	*arg = -1;
	if (move_fd(&task->head.error_fd, first) || move_fd(&task->head.master_fd, first))
		return -1;
	for (uint32_t i = 0; i < task->plan->fds; i++) {
		*arg = (int32_t)i;
		if (fds[i].fd == LOWSUPER_FD_LOG)
			fds[i].fd = task->log_fd;
		if (fds[i].fd >= 0) {
			if (move_fd(&fds[i].fd, first))
				return -1;
		} else {
			fds[i].fd = open_path(*path++, &fds[i], first);
			if (fds[i].fd < 0)
				return -1;
		}
	}
	*arg = -1;
	if (sys_close_range(0, ~0u, CLOSE_RANGE_CLOEXEC))
		return -1;
	for (uint32_t i = 0; i < task->plan->fds; i++) {
		*arg = (int32_t)i;
		if (dup2(fds[i].fd, fds[i].target) < 0)
			return -1;
	}
	return 0;
}

/* Write a decimal number to a file below /proc/self. No stdio in this program. */
static int write_number(const char *path, int value)
{
	char text[12];
	char *at = text + sizeof text;
	unsigned rest = value < 0 ? 0u - (unsigned)value : (unsigned)value;
	const int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (fd < 0)
		return -1;
	do {
		*--at = (char)('0' + rest % 10);
		rest /= 10;
	} while (rest);
	if (value < 0)
		*--at = '-';
	written = write(fd, at, (size_t)(text + sizeof text - at));
	/* What close(2) would say is not asked for: it leaves errno alone when it works. */
	close(fd);
	return written < 0 ? -1 : 0;
}

/* While we are still root: only CAP_SYS_RESOURCE lowers it. See proc_pid_oom_score_adj(5). */
static int step_oom_score(struct task *task, int32_t *arg)
{
	(void)arg;
	if (!(task->plan->flags & LOWSUPER_HAS_OOM_SCORE))
		return 0;
	return write_number("/proc/self/oom_score_adj", task->plan->oom_score);
}

/*
 * After setsid, which made an autogroup of our own where the kernel has that: a nice value then
 * counts only among the processes of the session, so the session gets it as well. Without
 * CAP_SYS_ADMIN it may be set once in 0.1 s on the whole machine (EAGAIN). See sched(7).
 */
static int step_nice(struct task *task, int32_t *arg)
{
	int tries = 200;

	(void)arg;
	if (!(task->plan->flags & LOWSUPER_HAS_NICE))
		return 0;
	if (setpriority(PRIO_PROCESS, 0, task->plan->nice))
		return -1;
	while (write_number("/proc/self/autogroup", task->plan->nice)) {
		if (errno == ENOENT)
			return 0; /* this kernel has none */
		if (errno != EAGAIN || !--tries)
			return -1;
		poll(NULL, 0, 20);
	}
	return 0;
}

/*
 * While we are still root: only root may raise a hard limit. After the mounts, which need
 * descriptors. See setrlimit(2).
 */
static int step_rlimits(struct task *task, int32_t *arg)
{
	for (uint32_t i = 0; i < task->plan->limits; i++) {
		const struct lowsuper_limit *limit = &task->limits[i];
		const struct rlimit value = {
			.rlim_cur = limit->soft < 0 ? RLIM_INFINITY : (rlim_t)limit->soft,
			.rlim_max = limit->hard < 0 ? RLIM_INFINITY : (rlim_t)limit->hard,
		};

		*arg = (int32_t)i;
		if (setrlimit((__rlimit_resource_t)limit->resource, &value))
			return -1;
	}
	return 0;
}

/* As root, like uWSGI: the directory may be closed to the daemon's user. See chdir(2). */
static int step_chdir(struct task *task, int32_t *arg)
{
	(void)arg;
	return task->chdir ? chdir(task->chdir) : 0;
}

#define CAPS 64

static int keeps_cap(const struct lowsuper_plan *plan, int cap)
{
	return (int)(plan->caps[cap / 32] >> cap % 32 & 1);
}

/*
 * The bounding set, while we still have CAP_SETPCAP: what is not in it comes back by no execve, of
 * a set-user-ID program or by root, that the daemon or its children ever make. Each is looked at,
 * so that one that is missing, or that this kernel does not know (EINVAL), is named.
 * See capabilities(7), PR_CAPBSET_DROP(2const).
 */
static int step_bounding(struct task *task, int32_t *arg)
{
	if (!(task->plan->flags & LOWSUPER_HAS_CAPS))
		return 0;
	for (int cap = 0; cap < CAPS; cap++) {
		const int has = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);

		*arg = cap;
		if (keeps_cap(task->plan, cap)) {
			if (has < 0)
				return -1;
			if (!has) {
				errno = EPERM;
				return -1;
			}
		} else if (has > 0 && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) {
			return -1;
		}
	}
	return 0;
}

/*
 * Leaving uid 0 would empty the permitted set, out of which step_caps takes what is kept. The
 * execve ends this. See PR_SET_KEEPCAPS(2const).
 */
static int step_keep_caps(struct task *task, int32_t *arg)
{
	const struct lowsuper_plan *plan = task->plan;

	*arg = -1;
	if (!(plan->flags & LOWSUPER_HAS_CAPS) || !(plan->caps[0] | plan->caps[1]))
		return 0;
	return prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
}

/* Groups before the uid, which takes the right to change them away. See setgroups(2). */
static int step_setgroups(struct task *task, int32_t *arg)
{
	(void)arg;
	if (!(task->plan->flags & LOWSUPER_HAS_GROUPS))
		return 0;
	return setgroups(task->plan->groups, task->groups);
}

/* Read back: -1 means "do not change" to the kernel, and root must not stay by mistake. */
static int step_setresgid(struct task *task, int32_t *arg)
{
	const gid_t gid = task->plan->gid;
	gid_t real, effective, saved;

	(void)arg;
	if (!(task->plan->flags & LOWSUPER_HAS_GID))
		return 0;
	if (setresgid(gid, gid, gid) || getresgid(&real, &effective, &saved))
		return -1;
	if (real == gid && effective == gid && saved == gid)
		return 0;
	errno = EINVAL;
	return -1;
}

/* See setresuid(2), capabilities(7): leaving uid 0 empties the capability sets. */
static int step_setresuid(struct task *task, int32_t *arg)
{
	const uid_t uid = task->plan->uid;
	uid_t real, effective, saved;

	(void)arg;
	if (!(task->plan->flags & LOWSUPER_HAS_UID))
		return 0;
	if (setresuid(uid, uid, uid) || getresuid(&real, &effective, &saved))
		return -1;
	if (real == uid && effective == uid && saved == uid)
		return 0;
	errno = EINVAL;
	return -1;
}

/*
 * After the uid, whose change empties the effective and the ambient set. All sets become what is
 * kept: the ambient one lets a user other than root have it after the execve, and needs it to be
 * permitted and inheritable. Read back, as with the uid. See capset(2), PR_CAP_AMBIENT(2const).
 */
static int step_caps(struct task *task, int32_t *arg)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[2], found[2];
	const struct lowsuper_plan *plan = task->plan;

	if (!(plan->flags & LOWSUPER_HAS_CAPS))
		return 0;
	*arg = -1;
	if (syscall(SYS_capget, &header, found))
		return -1;
	for (int cap = 0; cap < CAPS; cap++)
		if (keeps_cap(plan, cap) && !(found[cap / 32].permitted >> cap % 32 & 1)) {
			*arg = cap;
			errno = EPERM;
			return -1;
		}
	for (int i = 0; i < 2; i++)
		sets[i] = (struct __user_cap_data_struct){ plan->caps[i], plan->caps[i],
							   plan->caps[i] };
	if (syscall(SYS_capset, &header, sets) ||
	    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -1;
	for (int cap = 0; cap < CAPS; cap++) {
		*arg = cap;
		if (keeps_cap(plan, cap) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
			return -1;
	}
	*arg = -1;
	if (syscall(SYS_capget, &header, found))
		return -1;
	for (int i = 0; i < 2; i++)
		if (found[i].effective != plan->caps[i] || found[i].permitted != plan->caps[i] ||
		    found[i].inheritable != plan->caps[i]) {
			errno = EINVAL;
			return -1;
		}
	return 0;
}

/* See PR_SET_NO_NEW_PRIVS(2const). It cannot fail on a kernel that has it, Linux 3.5. */
static int step_no_new_privs(struct task *task, int32_t *arg)
{
	(void)arg;
	if (!(task->plan->flags & LOWSUPER_NO_NEW_PRIVS))
		return 0;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/*
 * After the uid, whose change clears it. Race: a parent that died before the prctl sends nothing,
 * so look whether it lives after the prctl. getppid() cannot tell for the master (it is 0 in a new
 * pid namespace), its pidfd can; for a role it can, as we share its namespace.
 * See PR_SET_PDEATHSIG(2const).
 */
static int step_pdeathsig(struct task *task, int32_t *arg)
{
	struct pollfd master = { .fd = task->head.master_fd, .events = POLLIN };

	(void)arg;
	if (!(task->plan->flags & LOWSUPER_DIES_WITH_MASTER))
		return 0;
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return -1;
	if (poll(&master, 1, 0) == 0 && (!task->parent || getppid() == task->parent))
		return 0;
	errno = ESRCH;
	return -1;
}

/*
 * What holds the deadline was told of it before this process was cloned. Race: the master, or we,
 * may have been stopped since then, and the kill at the deadline may have found nobody; but we are
 * in our domain by now, so either that kill is still to come, or this sees that it is too late.
 */
static int step_fence(struct task *task, int32_t *arg)
{
	(void)arg;
	if (!task->head.fence_ns || boot_ns() < task->head.fence_ns)
		return 0;
	errno = ETIME;
	return -1;
}

/* Late, so that it is not ours while we still open files. Never fails. See umask(2). */
static int step_umask(struct task *task, int32_t *arg)
{
	(void)arg;
	if (task->plan->flags & LOWSUPER_HAS_UMASK)
		umask((mode_t)task->plan->umask);
	return 0;
}

/*
 * execve resets handlers but leaves ignored signals ignored, and CPython ignores SIGPIPE. The raw
 * call, because glibc's refuses the two signals that it keeps for itself; an action of zeros is
 * the default action in every architecture's layout. See sigaction(2), signal(7).
 */
static int step_signals(struct task *task, int32_t *arg)
{
	static const char standard[64];

	(void)task;
	for (int signo = 1; signo < _NSIG; signo++) {
		*arg = signo;
		if (signo != SIGKILL && signo != SIGSTOP &&
		    syscall(SYS_rt_sigaction, signo, standard, NULL, _NSIG / 8))
			return -1;
	}
	return 0;
}

/* An ignored signal that is pending is dropped, blocked or not; see sigaction(2). */
static void drop_sigpipe(void)
{
	/* The handler comes first in every layout of the kernel's struct. */
	static const uintptr_t ignore[8] = { 1 }, standard[8];

	syscall(SYS_rt_sigaction, SIGPIPE, ignore, NULL, _NSIG / 8);
	syscall(SYS_rt_sigaction, SIGPIPE, standard, NULL, _NSIG / 8);
}

/*
 * Where the master left room for it: the number that this process has where it is, for
 * sd_watchdog_enabled(3) and sd_listen_fds(3). In a pid namespace nobody but we can know it.
 */
static void fill_pid(char **envp, const char *room)
{
	size_t start = 0;

	while (room[start] != '=')
		start++;
	for (; *envp; envp++) {
		char *text = *envp, digits[12];
		size_t i = 0, count = 0;

		while (room[i] && text[i] == room[i])
			i++;
		if (room[i] || text[i])
			continue;
		for (pid_t pid = getpid(); pid; pid /= 10)
			digits[count++] = (char)('0' + pid % 10);
		for (i = start + 1; count; i++)
			text[i] = digits[--count];
		text[i] = '\0';
	}
}

/*
 * The programs in order, as execvp(3) does with PATH: what is not there, or may not be executed,
 * is passed over, and EACCES is remembered, since "not found" would then be a lie. A file that the
 * kernel does not know (ENOEXEC) is an error and not a shell script.
 *
 * The record with err 0 comes first: end of file after it means that the daemon runs, and end of
 * file without it that this process was killed before.
 */
static int step_execve(struct task *task, int32_t *arg)
{
	static const uint64_t none[_NSIG / 64];
	int err = ENOENT;

	if (write_record(task, LOWSUPER_STEP_EXECVE, 0, 0))
		drop_sigpipe(); /* the master died, and this daemon may live on without it */
	fill_pid(task->envp, "WATCHDOG_PID=0000000000");
	fill_pid(task->envp, "LISTEN_PID=0000000000");
	/* All were blocked since stage 1. From here on a signal ends this process as the daemon. */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, none, NULL, sizeof none);
	for (uint32_t i = 0; i < task->plan->programs; i++) {
		execve(task->programs[i], task->argv, task->envp);
		switch (errno) {
		case EACCES:
			*arg = (int32_t)i;
			err = EACCES;
			break;
		case ENOENT:
		case ENOTDIR:
		case ESTALE:
		case ENODEV:
		case ETIMEDOUT:
			if (err != EACCES)
				err = errno;
			break;
		default:
			*arg = (int32_t)i;
			return -1;
		}
	}
	errno = err;
	return -1;
}

static const struct step enter_steps[] = {
	{ LOWSUPER_STEP_CGROUP, step_cgroup },
};

static const struct step daemon_steps[] = {
	{ LOWSUPER_STEP_SETSID, step_setsid },
	{ LOWSUPER_STEP_LOG, step_log },
	{ LOWSUPER_STEP_FDS, step_fds },
	{ LOWSUPER_STEP_OOM_SCORE, step_oom_score },
	{ LOWSUPER_STEP_NICE, step_nice },
	{ LOWSUPER_STEP_NETNS, step_netns },
	{ LOWSUPER_STEP_NAMESPACES, step_namespaces },
	{ LOWSUPER_STEP_HOSTNAME, step_hostname },
	{ LOWSUPER_STEP_SOURCES, step_sources },
	{ LOWSUPER_STEP_ROOT, step_root },
	{ LOWSUPER_STEP_PROC, step_proc },
	{ LOWSUPER_STEP_MOUNTS, step_mounts },
	{ LOWSUPER_STEP_RLIMITS, step_rlimits },
	{ LOWSUPER_STEP_CHDIR, step_chdir },
	{ LOWSUPER_STEP_CAPS, step_bounding },
	{ LOWSUPER_STEP_SETGROUPS, step_setgroups },
	{ LOWSUPER_STEP_SETRESGID, step_setresgid },
	{ LOWSUPER_STEP_CAPS, step_keep_caps },
	{ LOWSUPER_STEP_SETRESUID, step_setresuid },
	{ LOWSUPER_STEP_CAPS, step_caps },
	{ LOWSUPER_STEP_NO_NEW_PRIVS, step_no_new_privs },
	{ LOWSUPER_STEP_PDEATHSIG, step_pdeathsig },
	{ LOWSUPER_STEP_UMASK, step_umask },
	{ LOWSUPER_STEP_SIGNALS, step_signals },
	{ LOWSUPER_STEP_FENCE, step_fence },
	{ LOWSUPER_STEP_EXECVE, step_execve },
};

static void run_steps(struct task *task, const struct step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int32_t arg = 0;

		if (steps[i].run(task, &arg))
			task_fail(task, steps[i].id, errno, arg);
	}
}

void child_enter(struct task *task)
{
	run_steps(task, enter_steps, sizeof enter_steps / sizeof *enter_steps);
}

void child_run(struct task *task)
{
	run_steps(task, daemon_steps, sizeof daemon_steps / sizeof *daemon_steps);
	_exit(127);
}
