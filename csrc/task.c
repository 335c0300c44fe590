/*
 * The plan, from the memfd into memory. Light checks only: it was made by our own master, and the
 * checks are there to find a drift between the two, not an enemy.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper.h"

int number_of(const char *text)
{
	int value = 0;

	while (*text >= '0' && *text <= '9')
		value = value * 10 + (*text++ - '0');
	return value;
}

/* The `count` strings from `*at` on; moves `*at` behind them. `*slots`: room for pointers. */
static char **take_strings(char **at, char ***slots, uint32_t count)
{
	char **strings = *slots;

	for (uint32_t i = 0; i < count; i++) {
		strings[i] = *at;
		while (*(*at)++)
			;
	}
	strings[count] = NULL;
	*slots += count + 1;
	return strings;
}

static uint32_t count_paths(const struct task *task)
{
	uint32_t paths = 0;

	for (uint32_t i = 0; i < task->plan->fds; i++)
		paths += task->fds[i].fd == -1;
	return paths;
}

static void take_plan(struct task *task, char *bytes, size_t size, char **slots)
{
	const struct lowsuper_plan *plan = (void *)bytes;
	const uint64_t start = sizeof *plan + (uint64_t)plan->limits * sizeof *task->limits +
			       (uint64_t)plan->fds * sizeof *task->fds +
			       (uint64_t)plan->mounts * sizeof *task->mounts +
			       (uint64_t)plan->groups * sizeof *task->groups;
	char *at = bytes + start;
	uint64_t wanted, found = 0;

	if (plan->magic != LOWSUPER_PLAN_MAGIC || start + plan->string_bytes != size)
		task_fail(task, LOWSUPER_STEP_PLAN, EINVAL, 0);
	task->plan = plan;
	task->limits = (void *)(plan + 1);
	task->fds = (void *)(uintptr_t)(task->limits + plan->limits);
	task->mounts = (void *)(task->fds + plan->fds);
	task->groups = (void *)(task->mounts + plan->mounts);
	for (uint32_t i = 0; i < plan->string_bytes; i++)
		found += !at[i];
	wanted = (plan->flags & LOWSUPER_HAS_CHDIR ? 1u : 0u) +
		 (plan->flags & LOWSUPER_HAS_ROOT ? 1u : 0u) +
		 (plan->flags & LOWSUPER_HAS_HOSTNAME ? 1u : 0u) +
		 (plan->flags & LOWSUPER_HAS_LOG ? 1u : 0u) +
		 (plan->flags & LOWSUPER_HAS_NETNS ? 1u : 0u) + (uint64_t)plan->programs +
		 plan->argv + plan->envp + count_paths(task) + (uint64_t)plan->mounts * 2;
	if (found != wanted || (found && bytes[size - 1]))
		task_fail(task, LOWSUPER_STEP_PLAN, EINVAL, 1);

	if (plan->flags & LOWSUPER_HAS_CHDIR)
		task->chdir = *take_strings(&at, &slots, 1);
	if (plan->flags & LOWSUPER_HAS_ROOT)
		task->root = *take_strings(&at, &slots, 1);
	if (plan->flags & LOWSUPER_HAS_HOSTNAME)
		task->hostname = *take_strings(&at, &slots, 1);
	if (plan->flags & LOWSUPER_HAS_LOG)
		task->log = *take_strings(&at, &slots, 1);
	if (plan->flags & LOWSUPER_HAS_NETNS)
		task->netns = *take_strings(&at, &slots, 1);
	task->programs = take_strings(&at, &slots, plan->programs);
	task->argv = take_strings(&at, &slots, plan->argv);
	task->envp = take_strings(&at, &slots, plan->envp);
	task->paths = take_strings(&at, &slots, count_paths(task));
	task->mount_paths = take_strings(&at, &slots, plan->mounts * 2);
}

void task_read(struct task *task, int fd)
{
	struct lowsuper_head head;
	struct stat status;
	size_t size, have = 0, room;
	char *bytes;

	/* pread, as the master's writing has left the common offset at the end. */
	if (pread(fd, &head, sizeof head, 0) != (ssize_t)sizeof head || fstat(fd, &status))
		_exit(127);
	*task = (struct task){ .head = head, .log_fd = -1 };
	size = (size_t)status.st_size - sizeof head;
	/* A string has at least its NUL byte, so there are fewer than `size`; 10 lists end with NULL. */
	room = (size + 8 + 10) * sizeof(char *);
	bytes = mmap(NULL, size + 8 + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	if (bytes == MAP_FAILED)
		task_fail(task, LOWSUPER_STEP_PLAN, errno, 2);
	while (have < size) {
		ssize_t got = pread(fd, bytes + have, size - have,
				    (off_t)(sizeof head + have));

		if (got <= 0)
			task_fail(task, LOWSUPER_STEP_PLAN, got ? errno : EIO, 3);
		have += (size_t)got;
	}
	close(fd);
	if (size < sizeof *task->plan)
		task_fail(task, LOWSUPER_STEP_PLAN, EINVAL, 4);
	/* Pages that nobody touches cost nothing, so the pointers go right behind, aligned. */
	take_plan(task, bytes, size, (void *)(bytes + (size + 7) / 8 * 8));
}
