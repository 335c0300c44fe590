/*
 * The subreaper of one daemon, where there is neither a pid namespace nor cgroup v2: orphans of
 * the daemon become our children, so everything that it started is below us until it ends.
 * See PR_SET_CHILD_SUBREAPER(2const), proc_pid_task(5).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "helper.h"
#include "syscalls.h"

/* More generations than this are a loop that a reused pid made. */
#define GENERATIONS_MAX 1000

/* `/proc/PID/stat` into `path`, which has room for 24 characters. No stdio in this program. */
static void write_stat_path(char *path, pid_t pid)
{
	static const char proc[] = "/proc/", stat[] = "/stat";
	char digits[12];
	size_t count = 0;

	for (size_t i = 0; proc[i]; i++)
		*path++ = proc[i];
	do {
		digits[count++] = (char)('0' + pid % 10);
		pid /= 10;
	} while (pid);
	while (count)
		*path++ = digits[--count];
	for (size_t i = 0; i < sizeof stat; i++)
		*path++ = stat[i];
}

/* The parent of `pid`, or 0 if there is no such process. See proc_pid_stat(5). */
static pid_t parent_of(pid_t pid)
{
	char path[24], text[256];
	ssize_t size;
	int fd;

	write_stat_path(path, pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof text - 1);
	close(fd);
	if (size <= 0)
		return 0;
	text[size] = '\0';
	/* "PID (NAME) S PPID": the name may hold anything, but it is the last ")" that ends it. */
	while (size > 0 && text[--size] != ')')
		;
	return size + 4 < (ssize_t)sizeof text ? number_of(text + size + 4) : 0;
}

/* Call `act` with the number of every process. Not with a /proc of another pid namespace. */
static void for_each_process(void (*act)(pid_t pid, int signo), int signo)
{
	static char buffer[32768] __attribute__((aligned(8)));
	char self[16];
	ssize_t size = readlink("/proc/self", self, sizeof self - 1);
	int fd;

	if (size <= 0)
		return;
	self[size] = '\0';
	if (number_of(self) != getpid())
		return;
	fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	while ((size = getdents64(fd, buffer, sizeof buffer)) > 0) {
		for (ssize_t at = 0; at < size;) {
			const struct dirent64 *entry = (const void *)(buffer + at);
			const pid_t pid = number_of(entry->d_name);

			at += entry->d_reclen;
			if (pid > 0)
				act(pid, signo);
		}
	}
	close(fd);
}

static void kill_if_child(pid_t pid, int signo)
{
	/* A child that we have not reaped keeps its number. */
	if (parent_of(pid) == getpid())
		kill(pid, signo);
}

/*
 * The kernel's list of our children. It is exact here: only an exit that we did not reap yet can
 * shorten it while we read, and nobody else reaps. Needs CONFIG_PROC_CHILDREN; Linux 3.5.
 */
static int kill_listed_children(void)
{
	char text[4096];
	ssize_t size;
	pid_t pid = 0;
	int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	while ((size = read(fd, text, sizeof text)) > 0) {
		/* A number may go on in the next piece. */
		for (ssize_t i = 0; i < size; i++) {
			if (text[i] >= '0' && text[i] <= '9') {
				pid = pid * 10 + (text[i] - '0');
				continue;
			}
			if (pid > 0)
				kill(pid, SIGKILL);
			pid = 0;
		}
	}
	close(fd);
	return 0;
}

/*
 * Our own children only. What they leave behind becomes our child when they die, and then it is
 * the turn of that; a process that has SIGKILL pending cannot fork any more.
 */
static void kill_all(void)
{
	if (kill_listed_children())
		for_each_process(kill_if_child, SIGKILL);
}

static int is_below_us(pid_t pid)
{
	for (int i = 0; pid > 1 && i < GENERATIONS_MAX; i++) {
		pid = parent_of(pid);
		if (pid == getpid())
			return 1;
	}
	return 0;
}

/*
 * Race: a process ends and another gets its number. So look again with a pidfd in hand, and a
 * process that still lives after that look is the one that was looked at.
 */
static void signal_if_below_us(pid_t pid, int signo)
{
	struct pollfd process = { .events = POLLIN };

	if (!is_below_us(pid))
		return;
	process.fd = sys_pidfd_open(pid);
	if (process.fd < 0)
		return;
	if (is_below_us(pid) && poll(&process, 1, 0) == 0)
		sys_pidfd_send_signal(process.fd, signo, 0);
	close(process.fd);
}

static void signal_all(int signo)
{
	for_each_process(signal_if_below_us, signo);
}

void shim_run(struct task *task)
{
	static const struct keeper keeper = {
		.name = "lowsuper-shim",
		.kill_all = kill_all,
		.signal_all = signal_all,
	};

	/*
	 * Before the daemon exists. No parent-death signal here: SIGKILL would leave nobody to
	 * sweep, so the pidfd of the master is watched. Who kills us kills the daemon's first
	 * process, by the parent-death signal of that, and what else is below us goes to init.
	 */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		task_fail(task, LOWSUPER_STEP_FORK, errno, 2);
	keeper_run(task, &keeper);
}
