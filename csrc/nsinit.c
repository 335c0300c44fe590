/*
 * The init of a daemon's own pid namespace. A daemon as a bare pid 1 would ignore every signal
 * that it has no handler for, SIGTERM included, and would have to reap. When this process ends
 * the kernel kills what is left in the namespace: nothing gets out. See pid_namespaces(7).
 * It needs no /proc.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>

#include "helper.h"

/* -1 is everyone in the namespace but its init. */
static void kill_all(void)
{
	kill(-1, SIGKILL);
}

static void signal_all(int signo)
{
	kill(-1, signo);
}

void nsinit_run(struct task *task)
{
	static const struct keeper keeper = {
		.name = "lowsuper-nsinit",
		.forwards = 1,
		.kill_all = kill_all,
		.signal_all = signal_all,
	};

	/*
	 * SIGKILL from an ancestor namespace reaches an init too. Race: a master that died before
	 * this is found by the first poll of its pidfd. fork() does not hand the setting on.
	 */
	if (task->plan->flags & LOWSUPER_DIES_WITH_MASTER)
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	keeper_run(task, &keeper);
}
