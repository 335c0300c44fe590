/*
 * The process between the master and a daemon: starts the daemon, tells the master its pidfd and
 * its raw exit status, takes commands, reaps, and leaves when its domain is empty. What "everyone
 * in the domain" means is the role's: a pid namespace (nsinit.c) or a subtree (shim.c).
 *
 * All signals have been blocked since before this process existed, so none is lost and none can
 * end it but SIGKILL.
 *
 * It dies with the master until it is told to survive. Then it outlives the master, and without a
 * channel it is an orphan, of which a later master has a pidfd only: so an orphan takes signals
 * for commands. A deadline that it was given holds on, whatever becomes of the master.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"
#include "syscalls.h"

struct kept {
	const struct keeper *keeper;
	pid_t daemon;			/* 0: reaped, its number may belong to another process */
	int status;			/* raw wait status, once it is reaped */
	int killing;
	int dies;			/* with the master */
	struct pollfd signals;
	struct pollfd channel;
	struct pollfd master;
	struct pollfd fence;		/* a timer; fd -1: there was no deadline yet */
};

void keep_fds(int *fds, int count)
{
	unsigned next = 0;

	for (int i = 1; i < count; i++)
		for (int j = i; j > 0 && fds[j - 1] > fds[j]; j--) {
			const int fd = fds[j];

			fds[j] = fds[j - 1];
			fds[j - 1] = fd;
		}
	for (int i = 0; i < count; i++) {
		if (fds[i] < 0)
			continue;
		if (fds[i] > (int)next)
			sys_close_range(next, (unsigned)fds[i] - 1, 0);
		next = (unsigned)fds[i] + 1;
	}
	sys_close_range(next, ~0u, 0);
}

int64_t boot_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A time before the start of the clock is in the past like any other. See timerfd_create(2). */
int arm_timer(int timer_fd, int64_t at_ns)
{
	struct itimerspec at = { .it_value = { 0 } };

	if (at_ns < 0)
		at_ns = 1;
	at.it_value.tv_sec = at_ns / 1000000000;
	at.it_value.tv_nsec = at_ns % 1000000000;
	return timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/*
 * Where it is not permitted it is as good as any process. Not the memory of the other roles, which
 * is never touched: MCL_ONFAULT, Linux 4.4.
 */
void hold_fast(void)
{
	setpriority(PRIO_PROCESS, 0, -20);
	mlockall(MCL_CURRENT | MCL_ONFAULT);
}

static void tell(const struct kept *kept, struct lowsuper_message message, int pass_fd)
{
	if (kept->channel.fd >= 0)
		lowsuper_send(kept->channel.fd, &message, sizeof message, pass_fd);
}

static void start_daemon(struct task *task, struct kept *kept)
{
	const pid_t self = getpid();
	int pidfd;

	kept->daemon = fork();
	if (kept->daemon < 0)
		task_fail(task, LOWSUPER_STEP_FORK, errno, 0);
	if (kept->daemon == 0) {
		task->parent = self;
		child_run(task);
	}
	/* It cannot be another process of that number: nobody but we can reap it. */
	pidfd = sys_pidfd_open(kept->daemon);
	tell(kept, (struct lowsuper_message){ .op = LOWSUPER_STARTED }, pidfd);
}

static _Noreturn void leave(const struct kept *kept)
{
	_exit(WIFSIGNALED(kept->status) ? 128 + WTERMSIG(kept->status) : WEXITSTATUS(kept->status));
}

static void reap(struct kept *kept)
{
	const pid_t daemon = kept->daemon;
	int status, left;
	pid_t pid;

	/* __WALL: children made with another exit signal than SIGCHLD too. */
	while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
		if (pid == kept->daemon) {
			kept->daemon = 0;
			kept->status = status;
		}
	}
	/* What the daemon left behind has been ours since it died, so this is the whole truth. */
	left = !(pid < 0 && errno == ECHILD);
	if (daemon && !kept->daemon)
		tell(kept,
		     (struct lowsuper_message){
			     .op = LOWSUPER_EXITED, .value = kept->status, .left = left },
		     -1);
	if (!left)
		leave(kept);
	/* Those whose parent we reaped are our children now. */
	if (kept->killing)
		kept->keeper->kill_all();
}

static void kill_domain(struct kept *kept)
{
	kept->killing = 1;
	kept->keeper->kill_all();
}

/*
 * To the daemon's process group, as uWSGI does, and to the daemon, if it left the group or has not
 * made it yet. Not once it is reaped: both numbers may belong to others then.
 */
static void signal_daemon(const struct kept *kept, int signo)
{
	if (!kept->daemon)
		return;
	if (kill(-kept->daemon, signo) || getpgid(kept->daemon) != kept->daemon)
		kill(kept->daemon, signo);
}

/*
 * The daemon's own parent-death signal stays: it is about us. What came from the master is let go
 * of, so that nothing waits for our end of its standard error.
 */
static void survive(struct kept *kept)
{
	const int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

	kept->dies = 0;
	if (kept->master.fd >= 0)
		close(kept->master.fd);
	kept->master.fd = -1;
	prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
	if (fd < 0)
		close(STDERR_FILENO);
	else if (fd != STDERR_FILENO && dup2(fd, STDERR_FILENO) >= 0)
		close(fd);
}

/*
 * Take a deadline; 0: there is none any more. The timer is made for the first one, since few
 * daemons have any; without a timer there is nothing that would keep to it.
 */
static int set_fence(struct kept *kept, int64_t until_ns)
{
	if (kept->fence.fd < 0 && until_ns)
		kept->fence.fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (kept->fence.fd < 0)
		return until_ns ? -1 : 0;
	return arm_timer(kept->fence.fd, until_ns);
}

/* The kernel prefers to kill us no more, for what is below us would go on without us. */
static void hold_on(void)
{
	const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "-1000", 5) < 0)
		errno = 0;
	if (fd >= 0)
		close(fd);
	hold_fast();
}

static void change_fence(struct kept *kept, int64_t until_ns)
{
	const int is_first = kept->fence.fd < 0;

	if (set_fence(kept, until_ns))
		kill_domain(kept);
	else if (is_first && kept->fence.fd >= 0)
		hold_on();
}

static void obey(struct kept *kept, const struct lowsuper_message *message)
{
	const int known = message->value > 0 && message->value < _NSIG;

	if (message->op == LOWSUPER_SIGNAL && known)
		signal_daemon(kept, message->value);
	else if (message->op == LOWSUPER_SIGNAL_ALL && known)
		kept->keeper->signal_all(message->value);
	else if (message->op == LOWSUPER_KILL)
		kill_domain(kept);
	else if (message->op == LOWSUPER_SURVIVE)
		survive(kept);
	else if (message->op == LOWSUPER_FENCE)
		change_fence(kept, message->until_ns);
}

static void close_channel(struct kept *kept)
{
	close(kept->channel.fd);
	kept->channel.fd = -1;
	if (kept->dies)
		kill_domain(kept);
}

/* Whether there was a message. */
static int read_channel(struct kept *kept)
{
	struct lowsuper_message message;
	int passed_fd;
	const int size = lowsuper_receive(kept->channel.fd, &message, sizeof message, &passed_fd);

	if (passed_fd >= 0)
		close(passed_fd);
	if (size == (int)sizeof message)
		obey(kept, &message);
	else if (size == 0 || (size < 0 && size != -EAGAIN))
		close_channel(kept);
	return size > 0;
}

/*
 * Race: the deadline is here, and so is a later one that we have not read yet. It was sent in time.
 */
static void fence_falls(struct kept *kept)
{
	uint64_t times;

	while (kept->channel.fd >= 0 && read_channel(kept))
		;
	if (read(kept->fence.fd, &times, sizeof times) == (ssize_t)sizeof times)
		kill_domain(kept);
}

/* What it said last still counts, and it says no more: it may have told us to survive. */
static void master_is_gone(struct kept *kept)
{
	while (kept->channel.fd >= 0 && read_channel(kept))
		;
	if (kept->master.fd >= 0)
		close(kept->master.fd);
	kept->master.fd = -1;
	if (kept->channel.fd >= 0)
		close_channel(kept);
}

/*
 * Race: who sends the signal may have closed the channel just before, or have seen its holder
 * end, and we have not come to that yet. So this reads the channel to its end.
 */
static int is_orphan(struct kept *kept)
{
	while (kept->channel.fd >= 0 && read_channel(kept))
		;
	return kept->channel.fd < 0 && !kept->dies;
}

/*
 * The init of a namespace passes on what comes from outside, where the sender's pid is 0 (see
 * pid_namespaces(7)), for as long as its daemon lives. Besides, an orphan takes SIGTERM for
 * SIGNAL_ALL and SIGQUIT for KILL.
 */
static void take_signal(struct kept *kept, const struct signalfd_siginfo *info)
{
	if (info->ssi_signo == SIGCHLD || (kept->keeper->forwards && info->ssi_pid))
		return;
	reap(kept); /* a signal to a daemon that is a zombie already would be lost */
	if (kept->keeper->forwards && kept->daemon)
		kill(kept->daemon, (int)info->ssi_signo);
	else if (info->ssi_signo == SIGTERM && is_orphan(kept))
		kept->keeper->signal_all(SIGTERM);
	else if (info->ssi_signo == SIGQUIT && is_orphan(kept))
		kill_domain(kept);
}

static void read_signals(struct kept *kept)
{
	struct signalfd_siginfo info;

	while (read(kept->signals.fd, &info, sizeof info) == (ssize_t)sizeof info)
		take_signal(kept, &info);
	/* Always: standard signals do not queue, one SIGCHLD may stand for many. */
	reap(kept);
}

static void set_up(struct task *task, struct kept *kept)
{
	int fds[5];
	sigset_t set;

	prctl(PR_SET_NAME, kept->keeper->name, 0, 0, 0);
	/* Out of the master's group: a ^C at its terminal would come here too, with si_pid 0. */
	setsid();
	if (chdir("/"))
		return; /* it only keeps a file system busy */
	if (kept->keeper->forwards) {
		sigfillset(&set);
	} else {
		/* From the start, so that none that came before waits until it would be obeyed. */
		sigemptyset(&set);
		sigaddset(&set, SIGCHLD);
		sigaddset(&set, SIGTERM);
		sigaddset(&set, SIGQUIT);
	}
	kept->signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (kept->signals.fd < 0)
		task_fail(task, LOWSUPER_STEP_FORK, errno, 1);
	fds[0] = kept->channel.fd;
	fds[1] = kept->master.fd;
	fds[2] = kept->signals.fd;
	fds[3] = STDERR_FILENO;
	fds[4] = kept->fence.fd;
	/* With the rest goes the error pipe, which must end when the daemon execs. */
	keep_fds(fds, 5);
	if (kept->fence.fd >= 0)
		hold_on();
}

void keeper_run(struct task *task, const struct keeper *keeper)
{
	struct kept kept = {
		.keeper = keeper,
		.dies = (task->plan->flags & LOWSUPER_DIES_WITH_MASTER) != 0,
		.channel = { .fd = task->head.channel_fd, .events = POLLIN },
		.signals = { .fd = -1, .events = POLLIN },
		.fence = { .fd = -1, .events = POLLIN },
	};

	kept.master = (struct pollfd){ .fd = kept.dies ? task->head.master_fd : -1, .events = POLLIN };
	/* Before the daemon is there: it is fenced from its first instruction on. */
	if (task->head.fence_ns && boot_ns() >= task->head.fence_ns)
		task_fail(task, LOWSUPER_STEP_FENCE, ETIME, 0);
	if (set_fence(&kept, task->head.fence_ns))
		task_fail(task, LOWSUPER_STEP_FENCE, errno, 0);
	start_daemon(task, &kept);
	set_up(task, &kept);
	for (;;) {
		struct pollfd polled[] = { kept.signals, kept.channel, kept.master, kept.fence };
		/* While killing look again now and then, should a list of children have been short. */
		const int ready = poll(polled, 4, kept.killing ? 50 : -1);

		if (ready < 0)
			continue;
		if (ready == 0 || polled[0].revents)
			read_signals(&kept);
		if (polled[1].revents && kept.channel.fd >= 0)
			read_channel(&kept);
		if (polled[2].revents && kept.master.fd >= 0)
			master_is_gone(&kept);
		if (polled[3].revents)
			fence_falls(&kept);
	}
}
