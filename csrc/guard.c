/*
 * The guard outlives the master for a moment, to kill what must not: it waits for the master's
 * pidfd and then writes to cgroup.kill (Linux 5.14) of dumb/ and of the domains that it was given.
 * Domains may have a deadline that the master must renew; one that passes is killed even while the
 * master lives, which may hang. Deadlines are of CLOCK_BOOTTIME: what a machine sleeps through
 * counts. See cgroups(7), and the kernel's cgroup-v2 document.
 *
 * It has its descriptors from the start, so that it works after a pivot and after paths are gone.
 * Memory is bounded: a master that asks for more domains than fit is told so.
 *
 * Its plan: fds[0] the directory of the instance's cgroup, fds[1] dumb/cgroup.kill in it, fds[2]
 * the directory above, programs[0] the name of the first in the last.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"
#include "syscalls.h"

#define DOMAINS_MAX LOWSUPER_GUARD_DOMAINS_MAX
#define DEPTH_MAX 16			/* of cgroups that a daemon made in its own */
#define ROUNDS 5			/* of waiting for dumb/ to become empty... */
#define ROUND_MS 1000			/* ...this long each */

struct domain {
	uint32_t id;
	uint32_t flags;
	int64_t deadline_ns;		/* 0: none */
	int kill_fd;			/* -1: this entry is free */
};

struct guard {
	int instance_fd;
	int kill_fd;
	int parent_fd;
	const char *name;
	int holds_fast;
	struct pollfd master;		/* fd -1: it is dead, its deadlines are not */
	struct pollfd control;
	struct pollfd timer;
	struct domain domains[DOMAINS_MAX];
};

static void answer(const struct guard *guard, int32_t op, uint32_t id)
{
	const struct lowsuper_guard_msg message = { .op = op, .id = id };

	if (guard->control.fd >= 0)
		lowsuper_send(guard->control.fd, &message, sizeof message, -1);
}

/* ENODEV: the cgroup was removed, so it was empty. */
static void kill_cgroup(int fd)
{
	if (write(fd, "1", 1) < 0)
		return;
}

static void drop(struct domain *domain)
{
	close(domain->kill_fd);
	domain->kill_fd = -1;
}

static struct domain *find(struct guard *guard, uint32_t id)
{
	for (int i = 0; i < DOMAINS_MAX; i++)
		if (guard->domains[i].kill_fd >= 0 && guard->domains[i].id == id)
			return &guard->domains[i];
	return NULL;
}

static struct domain *find_free(struct guard *guard)
{
	for (int i = 0; i < DOMAINS_MAX; i++)
		if (guard->domains[i].kill_fd < 0)
			return &guard->domains[i];
	return NULL;
}

/* One timer for the earliest deadline; 0, none at all, disarms it. */
static void arm(struct guard *guard)
{
	int64_t first = 0;

	for (int i = 0; i < DOMAINS_MAX; i++) {
		const struct domain *domain = &guard->domains[i];

		if (domain->kill_fd >= 0 && domain->deadline_ns &&
		    (!first || domain->deadline_ns < first))
			first = domain->deadline_ns;
	}
	if (first && !guard->holds_fast) {
		guard->holds_fast = 1;
		hold_fast();
	}
	arm_timer(guard->timer.fd, first);
}

/* What the masters wrote; -1: it is no number. See xattr(7); in kernfs since Linux 3.7. */
static int64_t adopted_until(int kill_fd)
{
	char text[20];
	const ssize_t size = syscall(SYS_fgetxattr, kill_fd, LOWSUPER_GUARD_XATTR, text, sizeof text);
	int64_t value = 0;

	if (size <= 0 || size > 18)
		return -1;
	for (ssize_t i = 0; i < size; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -1;
		value = value * 10 + (text[i] - '0');
	}
	return value;
}

/*
 * Whether a next master has given more time to a domain whose own is dead. Where that one could not
 * write it, what is there is not to be believed.
 */
static int is_adopted(const struct guard *guard, struct domain *domain, int64_t now)
{
	const int looks = guard->master.fd < 0 && domain->flags & LOWSUPER_GUARD_NOTED;
	const int64_t until = looks ? adopted_until(domain->kill_fd) : -1;

	if (until > now)
		domain->deadline_ns = until;
	else if (!until)
		drop(domain);
	return until > now || !until;
}

static void expire(struct guard *guard)
{
	const int64_t now = boot_ns();
	uint64_t times;

	if (read(guard->timer.fd, &times, sizeof times) < 0 && errno != EAGAIN)
		return;
	for (int i = 0; i < DOMAINS_MAX; i++) {
		struct domain *domain = &guard->domains[i];

		if (domain->kill_fd < 0 || !domain->deadline_ns || domain->deadline_ns > now ||
		    is_adopted(guard, domain, now))
			continue;
		kill_cgroup(domain->kill_fd);
		drop(domain);
		answer(guard, LOWSUPER_GUARD_EXPIRED, domain->id);
	}
	arm(guard);
}

/*
 * `kill_fd` is ours. -1: to renew, or there was no descriptor left to receive it with; what is not
 * guarded is told to who adds it.
 */
static void add(struct guard *guard, const struct lowsuper_guard_msg *message, int kill_fd)
{
	struct domain *domain = find(guard, message->id);

	if (domain && kill_fd >= 0)
		drop(domain);
	else if (kill_fd >= 0)
		domain = find_free(guard);
	else if (domain)
		kill_fd = domain->kill_fd;
	if (!domain) {
		if (kill_fd >= 0)
			close(kill_fd);
		if (message->op == LOWSUPER_GUARD_ADD)
			answer(guard, LOWSUPER_GUARD_FULL, message->id);
		return;
	}
	*domain = (struct domain){
		.id = message->id,
		.flags = message->flags,
		/* A time before the start of the clock is in the past like any other. */
		.deadline_ns = message->deadline_ns < 0 ? 1 : message->deadline_ns,
		.kill_fd = kill_fd,
	};
	arm(guard);
	if (message->flags & LOWSUPER_GUARD_ASKS)
		answer(guard, LOWSUPER_GUARD_GUARDED, message->id);
}

static void obey(struct guard *guard, const struct lowsuper_guard_msg *message, int passed_fd)
{
	if (message->op == LOWSUPER_GUARD_ADD || message->op == LOWSUPER_GUARD_RENEW) {
		add(guard, message, passed_fd);
		return;
	}
	if (passed_fd >= 0)
		close(passed_fd);
	if (message->op == LOWSUPER_GUARD_QUIT)
		_exit(0);
	if (message->op == LOWSUPER_GUARD_DROP) {
		struct domain *domain = find(guard, message->id);

		if (domain)
			drop(domain);
		arm(guard);
	}
}

/* Whether there was a message. */
static int read_control(struct guard *guard)
{
	struct lowsuper_guard_msg message;
	int passed_fd;
	const int size = lowsuper_receive(guard->control.fd, &message, sizeof message, &passed_fd);

	if (size == (int)sizeof message)
		obey(guard, &message, passed_fd);
	else if (passed_fd >= 0)
		close(passed_fd);
	/* The other end is gone: if the master died, its pidfd says so as well. */
	if (size == 0 || (size < 0 && size != -EAGAIN))
		guard->control.fd = -1;
	return size > 0;
}

/*
 * Race: the deadline is here, and so is a later one that we have not read yet. It was sent in time.
 */
static void deadline_comes(struct guard *guard)
{
	while (guard->control.fd >= 0 && read_control(guard))
		;
	expire(guard);
}

/* Whether cgroup.events says "populated 1", which is its first line since there is cgroup v2. */
static int is_populated(int events_fd)
{
	static const char yes[] = "populated 1";
	char text[sizeof yes - 1];

	if (pread(events_fd, text, sizeof text, 0) != (ssize_t)sizeof text)
		return 0;
	for (size_t i = 0; i < sizeof text; i++)
		if (text[i] != yes[i])
			return 0;
	return 1;
}

/* Whether a process is in the cgroup of this directory, or below it. */
static int is_live(int dir_fd)
{
	const int fd = openat(dir_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	const int live = fd >= 0 && is_populated(fd);

	if (fd >= 0)
		close(fd);
	return live;
}

/*
 * Remove the cgroups below `dir_fd`, which it closes. What is not empty stays, with all below it:
 * a daemon that lives may have made itself cgroups that it has no use for yet.
 */
static void remove_below(int dir_fd, int depth)
{
	char buffer[2048] __attribute__((aligned(8)));
	ssize_t size;

	while ((size = getdents64(dir_fd, buffer, sizeof buffer)) > 0) {
		for (ssize_t at = 0; at < size;) {
			const struct dirent64 *entry = (const void *)(buffer + at);

			at += entry->d_reclen;
			if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
				continue;
			if (depth < DEPTH_MAX && unlinkat(dir_fd, entry->d_name, AT_REMOVEDIR)) {
				const int fd = openat(dir_fd, entry->d_name,
						      O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

				if (fd < 0)
					continue;
				if (is_live(fd)) {
					close(fd);
					continue;
				}
				remove_below(fd, depth + 1);
				unlinkat(dir_fd, entry->d_name, AT_REMOVEDIR);
			}
		}
	}
	close(dir_fd);
}

/* Whether there is a cgroup below `parent_fd` besides the instance's. */
static int has_others(const struct guard *guard)
{
	char buffer[2048] __attribute__((aligned(8)));
	const int fd = openat(guard->parent_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ssize_t size;
	int others = 0;

	while (fd >= 0 && (size = getdents64(fd, buffer, sizeof buffer)) > 0) {
		for (ssize_t at = 0; at < size;) {
			const struct dirent64 *entry = (const void *)(buffer + at);

			at += entry->d_reclen;
			if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
				others++;
		}
	}
	if (fd >= 0)
		close(fd);
	return others > 1;
}

/* Switch off the controllers for the children of a cgroup. */
static void disable_controllers(int dir_fd, const char *path)
{
	char names[512];
	char word[64] = "-";
	const int fd = openat(dir_fd, path, O_RDWR | O_CLOEXEC);
	const ssize_t size = fd < 0 ? 0 : pread(fd, names, sizeof names, 0);
	size_t length = 1;

	for (ssize_t i = 0; i < size; i++) {
		if (names[i] != ' ' && names[i] != '\n') {
			if (length < sizeof word)
				word[length++] = names[i];
			continue;
		}
		/* EBUSY: somebody below passes it on. */
		if (length > 1 && write(fd, word, length) < 0)
			errno = 0;
		length = 1;
	}
	if (fd >= 0)
		close(fd);
}

static int enter_parent(const struct guard *guard)
{
	const int fd = openat(guard->parent_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	const int failed = fd >= 0 && write(fd, "0", 1) < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return failed;
}

static void remove_cgroups(const struct guard *guard)
{
	static const char *const groups[] = { "dumb", "smart", "master" };
	const int smart_fd = openat(guard->instance_fd, "smart",
				    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	const int smart_lives = smart_fd >= 0 && is_live(smart_fd);

	if (smart_fd >= 0)
		close(smart_fd);
	/*
	 * We may live in the master's leaf, which then is not empty. The directory above may not
	 * hold processes (EBUSY) while its children have controllers: the master had enabled them
	 * for limits, and left it. A smart daemon keeps its limits; the leaf stays then, as where
	 * others have controllers there, and the next master removes it.
	 */
	if (enter_parent(guard) == EBUSY && !smart_lives) {
		disable_controllers(guard->instance_fd, "dumb/cgroup.subtree_control");
		disable_controllers(guard->instance_fd, "smart/cgroup.subtree_control");
		disable_controllers(guard->instance_fd, "cgroup.subtree_control");
		if (!has_others(guard))
			disable_controllers(guard->parent_fd, "cgroup.subtree_control");
		enter_parent(guard);
	}
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
		const int group = openat(guard->instance_fd, groups[i],
					 O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

		if (group >= 0)
			remove_below(group, 0);
		unlinkat(guard->instance_fd, groups[i], AT_REMOVEDIR);
	}
	unlinkat(guard->parent_fd, guard->name, AT_REMOVEDIR);
}

/*
 * Race: a helper that the master had just cloned puts itself into its leaf after the kill. It ends
 * by itself, since it looks whether the master lives; the rounds are for what looks away.
 */
static void empty_dumb(struct guard *guard)
{
	const int fd = openat(guard->instance_fd, "dumb/cgroup.events", O_RDONLY | O_CLOEXEC);
	int64_t round_ends;

	for (int round = 0; round < ROUNDS; round++) {
		kill_cgroup(guard->kill_fd);
		round_ends = boot_ns() + ROUND_MS * (int64_t)1000000;
		while (fd >= 0 && is_populated(fd)) {
			const int64_t left = round_ends - boot_ns();
			struct pollfd polled[] = { { .fd = fd, .events = POLLPRI }, guard->timer };

			if (left <= 0)
				break;
			if (poll(polled, 2, (int)(left / 1000000 + 1)) > 0 && polled[1].revents)
				expire(guard); /* what survives the master keeps its deadline */
		}
		if (fd < 0 || !is_populated(fd))
			break;
	}
	if (fd >= 0)
		close(fd);
}

static void master_is_gone(struct guard *guard)
{
	/* What it said last still counts. It says no more, so this ends. */
	while (guard->control.fd >= 0 && read_control(guard))
		;
	guard->master.fd = -1;
	guard->control.fd = -1;
	for (int i = 0; i < DOMAINS_MAX; i++) {
		struct domain *domain = &guard->domains[i];

		if (domain->kill_fd < 0)
			continue;
		if (!(domain->flags & LOWSUPER_GUARD_SURVIVES))
			kill_cgroup(domain->kill_fd);
		/* One that survives is bound by its deadline still, if it has one. */
		if (!(domain->flags & LOWSUPER_GUARD_SURVIVES) || !domain->deadline_ns)
			drop(domain);
	}
	arm(guard);
	empty_dumb(guard);
	remove_cgroups(guard);
	/* With the directory goes the lock of the instance, for which a next master may wait. */
	close(guard->instance_fd);
	close(guard->parent_fd);
	close(guard->kill_fd);
}

static int has_domains(const struct guard *guard)
{
	for (int i = 0; i < DOMAINS_MAX; i++)
		if (guard->domains[i].kill_fd >= 0)
			return 1;
	return 0;
}

static void set_up(struct task *task, struct guard *guard)
{
	int fds[] = { task->head.master_fd, task->head.channel_fd, task->fds[0].fd, task->fds[1].fd,
		      task->fds[2].fd, STDERR_FILENO, -1 };
	int fd;

	prctl(PR_SET_NAME, "lowsuper-guard", 0, 0, 0);
	/* Of its own session: what is sent to the master's terminal or group is not for the guard. */
	if (setsid() < 0 || chdir("/"))
		task_fail(task, LOWSUPER_STEP_SETSID, errno, 0);
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	/* Where it is not permitted it is as likely to be chosen as others of its (small) size. */
	if (fd >= 0 && write(fd, "-1000", 5) < 0)
		errno = 0;
	if (fd >= 0)
		close(fd);
	guard->timer.fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (guard->timer.fd < 0)
		task_fail(task, LOWSUPER_STEP_FENCE, errno, 0);
	fds[6] = guard->timer.fd;
	keep_fds(fds, sizeof fds / sizeof *fds);
}

void guard_run(struct task *task)
{
	static struct guard guard;

	if (task->plan->fds != 3 || task->plan->programs != 1)
		task_fail(task, LOWSUPER_STEP_PLAN, EINVAL, 5);
	guard.instance_fd = task->fds[0].fd;
	guard.kill_fd = task->fds[1].fd;
	guard.parent_fd = task->fds[2].fd;
	guard.name = task->programs[0];
	guard.master = (struct pollfd){ .fd = task->head.master_fd, .events = POLLIN };
	guard.control = (struct pollfd){ .fd = task->head.channel_fd, .events = POLLIN };
	guard.timer = (struct pollfd){ .fd = -1, .events = POLLIN };
	for (int i = 0; i < DOMAINS_MAX; i++)
		guard.domains[i].kill_fd = -1;
	set_up(task, &guard);
	answer(&guard, LOWSUPER_GUARD_READY, 0);

	while (guard.master.fd >= 0 || has_domains(&guard)) {
		struct pollfd polled[] = { guard.control, guard.timer, guard.master };

		if (poll(polled, 3, -1) < 0)
			continue;
		if (polled[0].revents)
			read_control(&guard);
		if (polled[1].revents)
			deadline_comes(&guard);
		if (polled[2].revents)
			master_is_gone(&guard);
	}
	/* The leaf of a domain that had to wait for its deadline is left to the next master. */
	_exit(0);
}
