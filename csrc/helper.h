/*
 * What the files of the static program share: the task, which is the plan with its strings found,
 * and the entry point of each role.
 */
#ifndef LOWSUPER_HELPER_H
#define LOWSUPER_HELPER_H

#include <stdint.h>
#include <sys/types.h>

#include "spawn.h"

struct task {
	struct lowsuper_head head;
	const struct lowsuper_plan *plan;
	const struct lowsuper_limit *limits;
	struct lowsuper_fd *fds;	/* `fd` is changed while they are moved */
	struct lowsuper_mount *mounts;	/* `fd` is filled in */
	const uint32_t *groups;
	const char *chdir;
	const char *root;
	const char *hostname;
	const char *netns;
	const char *log;
	int log_fd;			/* -1: none, or not open yet */
	char **programs;
	char **argv;			/* ends with NULL, as envp */
	char **envp;
	char **paths;			/* of the fds without a descriptor, in their order */
	char **mount_paths;		/* source and target of each */
	pid_t parent;			/* the role whose child this is, or 0: the master */
};

/* task.c: read the plan from `fd` and close it. Without a plan to say where, only _exit(127). */
void task_read(struct task *task, int fd);

/* child.c: write one error record and end. */
_Noreturn void task_fail(const struct task *task, enum lowsuper_step step, int err, int32_t arg);

/* child.c: the steps of the process that was cloned, whatever its role. */
void child_enter(struct task *task);

/* child.c: the steps of the daemon's first process, the last of which is its execve. */
_Noreturn void child_run(struct task *task);

/* isolate.c: steps, as child.c has them. */
int step_netns(struct task *task, int32_t *arg);
int step_namespaces(struct task *task, int32_t *arg);
int step_hostname(struct task *task, int32_t *arg);
int step_sources(struct task *task, int32_t *arg);
int step_root(struct task *task, int32_t *arg);
int step_proc(struct task *task, int32_t *arg);
int step_mounts(struct task *task, int32_t *arg);

/*
 * keeper.c: what nsinit and shim have in common. A keeper is the parent of the daemon's first
 * process, outlives it until nothing is left in its domain, and ends with its exit code.
 */
struct keeper {
	const char *name;		/* for the process list: 15 characters */
	int forwards;			/* signals from outside of its namespace go on to the daemon */
	void (*kill_all)(void);		/* SIGKILL, again after every child that was reaped */
	void (*signal_all)(int signo);
};

_Noreturn void keeper_run(struct task *task, const struct keeper *keeper);

/* keeper.c: close all descriptors but 2 and these (-1: none); sorts them. */
void keep_fds(int *fds, int count);

/* keeper.c: CLOCK_BOOTTIME, which counts a suspend, in nanoseconds. */
int64_t boot_ns(void);

/* keeper.c: let a timer of that clock end at `at_ns`; 0 disarms it. */
int arm_timer(int timer_fd, int64_t at_ns);

/* keeper.c: be in time for a deadline, however busy and short of memory the machine is. */
void hold_fast(void);

/* task.c: the decimal number that `text` begins with, or 0. */
int number_of(const char *text);

/* The roles, each for the rest of the process's life. */
_Noreturn void nsinit_run(struct task *task);
_Noreturn void shim_run(struct task *task);
_Noreturn void guard_run(struct task *task);
_Noreturn void logger_run(struct task *task);

#endif
