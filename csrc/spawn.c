/*
 * Stage 1 of a spawn: from a plan to a running helper, inside the master.
 *
 * The child shares the master's memory until it has exec'd the helper, so all that it does is one
 * system call. Everything with a failure worth a message happens in the helper (child.c), alone in
 * its own memory. Rule: nothing here allocates, parses, or needs more than system calls; a test
 * holds the undefined symbols of this object against a list.
 *
 * The master is single-threaded: between the place where a descriptor loses its close-on-exec
 * flag and the place where it gets it back nobody else can exec.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "spawn.h"
#include "syscalls.h"

static const char *const role_names[] = {
	[LOWSUPER_ROLE_CHILD] = "lowsuper-child",
	[LOWSUPER_ROLE_NSINIT] = "lowsuper-nsinit",
	[LOWSUPER_ROLE_SHIM] = "lowsuper-shim",
	[LOWSUPER_ROLE_GUARD] = "lowsuper-guard",
	[LOWSUPER_ROLE_PROBE] = "lowsuper-probe",
	[LOWSUPER_ROLE_LOGGER] = "lowsuper-logger",
};
_Static_assert(sizeof role_names / sizeof *role_names == LOWSUPER_ROLE_COUNT, "a name per role");

/* What the child execs. `err` is written by the child, through the memory that both share. */
struct program {
	int fd;
	const char *const *argv;
	const char *const *envp;
	unsigned fds;			/* those from this number on are not for it */
	int32_t err;
};

/*
 * LOWSUPER_HIGH_FD is where the descriptors of a master's daemons are kept, out of the way. The
 * child takes the low ones only: with a thousand daemons, copying all and closing them again at
 * exec took longer than everything else in a spawn (0.37 ms instead of 0.16 with 2,000).
 */

#if defined(__x86_64__) || defined(__aarch64__)
#define HAVE_CLONE3 1
/*
 * clone3(2), and in the child at once close_range(2), which gives it a table of its own with the
 * low descriptors, and execveat(2), else exit_group(127). Returns what clone3 returned, a negative
 * errno included. CLONE_FILES is what makes the table cheap to leave; a kernel without
 * CLOSE_RANGE_UNSHARE (Linux 5.9) copies it at exec.
 *
 * clone3 rather than clone, for CLONE_INTO_CGROUP (Linux 5.7): a child that writes itself to
 * cgroup.procs waits for an RCU grace period under cgroup_threadgroup_rwsem, 7-15 ms on an idle
 * machine; one that is born in the leaf does not. Assembly, because glibc has no wrapper and the
 * child must not return into C: it has no stack of its own (stack = 0, it would be the parent's)
 * and touches none: everything is in registers, and the kernel keeps all but the result's.
 * No signal can push a frame either, since all are blocked.
 */
static long clone3_exec(struct clone_args *args, struct program *program)
{
#if defined(__x86_64__)
	long result;
	/* The arguments of execveat that neither of the others looks at are in place already. */
	register long envp __asm__("r10") = (long)program->envp;
	register long flags __asm__("r8") = AT_EMPTY_PATH;
	register long fd __asm__("r12") = program->fd;
	register const char *path __asm__("r13") = "";
	register int32_t *err __asm__("r14") = &program->err;
	register const char *const *argv __asm__("r15") = program->argv;
	register long fds __asm__("r9") = program->fds;

	__asm__ volatile(
		"syscall\n\t"
		"test %%rax, %%rax\n\t"
		"jnz 1f\n\t"
		"mov %[close_range], %%eax\n\t"
		"mov %%r9, %%rdi\n\t"
		"mov $-1, %%esi\n\t"
		"mov %[unshare], %%edx\n\t"
		"syscall\n\t"
		"mov %[execveat], %%eax\n\t"
		"mov %%r12, %%rdi\n\t"
		"mov %%r13, %%rsi\n\t"
		"mov %%r15, %%rdx\n\t"
		"syscall\n\t"
		"mov %%eax, (%%r14)\n\t"
		"mov $127, %%edi\n\t"
		"mov %[exit_group], %%eax\n\t"
		"syscall\n\t"
		"hlt\n"
		"1:"
		: "=a"(result)
		: "a"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(envp), "r"(flags),
		  "r"(fd), "r"(path), "r"(err), "r"(argv), "r"(fds),
		  [close_range] "i"(SYS_close_range), [unshare] "i"(CLOSE_RANGE_UNSHARE),
		  [execveat] "i"(SYS_execveat), [exit_group] "i"(SYS_exit_group)
		: "rcx", "rdx", "r11", "memory");
	return result;
#else
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = (long)sizeof *args;
	register long x3 __asm__("x3") = (long)program->envp;
	register long x4 __asm__("x4") = AT_EMPTY_PATH;
	register long x8 __asm__("x8") = SYS_clone3;
	register long fd __asm__("x9") = program->fd;
	register const char *path __asm__("x10") = "";
	register int32_t *err __asm__("x11") = &program->err;
	register const char *const *argv __asm__("x12") = program->argv;
	register long fds __asm__("x13") = program->fds;

	/* x1, x2 and x8 are changed in the child only: the parent jumps. */
	__asm__ volatile(
		"svc #0\n\t"
		"cbnz x0, 1f\n\t"
		"mov x0, x13\n\t"
		"mov w1, #-1\n\t"
		"mov x2, %[unshare]\n\t"
		"mov x8, %[close_range]\n\t"
		"svc #0\n\t"
		"mov x0, x9\n\t"
		"mov x1, x10\n\t"
		"mov x2, x12\n\t"
		"mov x8, %[execveat]\n\t"
		"svc #0\n\t"
		"str w0, [x11]\n\t"
		"mov x0, #127\n\t"
		"mov x8, %[exit_group]\n\t"
		"svc #0\n\t"
		"brk #0\n"
		"1:"
		: "+r"(x0)
		: "r"(x1), "r"(x3), "r"(x4), "r"(x8), "r"(fd), "r"(path), "r"(err), "r"(argv),
		  "r"(fds), [close_range] "i"(SYS_close_range), [unshare] "i"(CLOSE_RANGE_UNSHARE),
		  [execveat] "i"(SYS_execveat), [exit_group] "i"(SYS_exit_group)
		: "x2", "memory");
	return x0;
#endif
}

static int clone_by_clone3(struct lowsuper_spawn *spawn, struct program *program)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD,
		.pidfd = (uintptr_t)&spawn->pidfd,
		.exit_signal = SIGCHLD,
	};
	long pid;

	if (spawn->new_pid_ns)
		args.flags |= CLONE_NEWPID;
	if (spawn->leaf_fd >= 0 && !spawn->self_write) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (unsigned)spawn->leaf_fd;
	}
	pid = clone3_exec(&args, program);
	if (pid >= 0)
		return (int)pid;
	spawn->call = "clone3";
	return (int)pid;
}
#endif

/* The child of clone(2): shares the master's memory, has a stack of its own, must not return. */
static int exec_program(void *data)
{
	struct program *program = data;

	syscall(SYS_execveat, program->fd, "", program->argv, program->envp, AT_EMPTY_PATH);
	/* errno is the parent's own variable (same TLS), and the parent sleeps: see CLONE_VFORK. */
	program->err = -errno;
	_exit(127);
}

/* For other architectures, and where a seccomp filter refuses clone3. See clone(2); Linux 5.2. */
static int clone_by_clone(struct lowsuper_spawn *spawn, struct program *program)
{
	static char stack[16384] __attribute__((aligned(16)));
	int flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD;
	int pid;

	if (spawn->new_pid_ns)
		flags |= CLONE_NEWPID;
	pid = clone(exec_program, stack + sizeof stack, flags, program, &spawn->pidfd);
	if (pid >= 0)
		return pid;
	spawn->call = "clone";
	return -errno;
}

static int clone_and_exec(struct lowsuper_spawn *spawn, struct program *program)
{
	uint64_t all[_NSIG / 64], old[_NSIG / 64];
	int pid;

	/*
	 * A handler of the master that ran in the child would run on the master's memory. The raw
	 * call blocks the two signals that glibc keeps for itself too. The helper starts with this
	 * mask: the roles rely on it, the daemon's is emptied by the step "signals".
	 */
	memset(all, 0xff, sizeof all);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, all, old, sizeof all);
#ifdef HAVE_CLONE3
	if (spawn->way != LOWSUPER_WAY_CLONE)
		pid = clone_by_clone3(spawn, program);
	else
#endif
		pid = clone_by_clone(spawn, program);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, old, NULL, sizeof old);

	if (pid > 0 && program->err) {
		/* It is dead already: CLONE_VFORK let us go on when it gave up the memory. */
		waitpid(pid, NULL, __WALL);
		close(spawn->pidfd);
		spawn->pidfd = -1;
		spawn->call = "execveat";
		return program->err;
	}
	return pid;
}

/* The descriptors that only this function has. */
struct ends {
	int plan;
	int error[2];			/* pipe */
	int channel[2];			/* [1] goes to the role */
};

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static int write_plan(const struct lowsuper_spawn *spawn, const struct ends *ends,
		      const char *plan, int32_t size)
{
	const struct lowsuper_head head = {
		.error_fd = ends->error[1],
		.master_fd = spawn->master_fd,
		.leaf_fd = spawn->self_write ? spawn->leaf_fd : -1,
		.channel_fd = ends->channel[1],
		.fence_ns = spawn->fence_ns,
	};
	const struct iovec parts[2] = {
		{ .iov_base = (void *)(uintptr_t)&head, .iov_len = sizeof head },
		{ .iov_base = (void *)(uintptr_t)plan, .iov_len = (size_t)size },
	};
	ssize_t written = writev(ends->plan, parts, 2);

	if (written != (ssize_t)sizeof head + size)
		return written < 0 ? -errno : -ENOSPC;
	if (fcntl(ends->plan, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	return 0;
}

static int open_ends(struct lowsuper_spawn *spawn, struct ends *ends, const char *plan,
		     int32_t size)
{
	int result;

	spawn->call = "pipe2";
	/* O_NONBLOCK: the master must never wait here, and the helper writes far less than fits. */
	if (pipe2(ends->error, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	if (spawn->role == LOWSUPER_ROLE_NSINIT || spawn->role == LOWSUPER_ROLE_SHIM ||
	    spawn->role == LOWSUPER_ROLE_GUARD || spawn->role == LOWSUPER_ROLE_LOGGER) {
		spawn->call = "socketpair";
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
			       ends->channel))
			return -errno;
	}
	spawn->call = "memfd_create";
	ends->plan = memfd_create("lowsuper-plan", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (ends->plan < 0)
		return -errno;
	spawn->call = "writev";
	result = write_plan(spawn, ends, plan, size);
	return result;
}

/*
 * Let the helper inherit the plan's descriptors. Notes in `changed` which had the flag: the same
 * one may be listed twice, and 0, 1 and 2 of the master do not have it.
 */
static int share_fds(struct lowsuper_spawn *spawn, const struct lowsuper_fd *fds, uint32_t count,
		     uint8_t *changed)
{
	for (uint32_t i = 0; i < count; i++) {
		int flags;

		if (fds[i].fd < 0)
			continue;
		flags = fcntl(fds[i].fd, F_GETFD);
		if (flags < 0) {
			spawn->call = "fcntl";
			return -errno;
		}
		if (flags & FD_CLOEXEC) {
			fcntl(fds[i].fd, F_SETFD, flags & ~FD_CLOEXEC);
			changed[i] = 1;
		}
	}
	return 0;
}

static void unshare_fds(const struct lowsuper_fd *fds, uint32_t count, const uint8_t *changed)
{
	for (uint32_t i = 0; i < count; i++)
		if (changed[i])
			fcntl(fds[i].fd, F_SETFD, FD_CLOEXEC);
}

/* `text` has room for 12 characters. No snprintf: this file needs nothing but system calls. */
static const char *decimal(int value, char *text)
{
	char *at = text + 11;

	*at = '\0';
	do {
		*--at = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	return at;
}

/* Move a descriptor that is the master's alone out of the way of those that children get. */
static int move_high(int fd)
{
	int high;

	if (fd < 0 || fd >= LOWSUPER_HIGH_FD)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, LOWSUPER_HIGH_FD);
	/* EINVAL, EMFILE: so few are allowed that there is no high one. It works where it is, too. */
	if (high < 0)
		return fd;
	close(fd);
	return high;
}

static unsigned above(unsigned fds, int fd)
{
	return fd >= 0 && (unsigned)fd >= fds ? (unsigned)fd + 1 : fds;
}

static int clone_helper(struct lowsuper_spawn *spawn, const struct ends *ends,
			const struct lowsuper_fd *fds, uint32_t count, const char *name)
{
	static const char *const no_env[] = { NULL };
	char plan_fd[12];
	/* The name is only for those who look at the process list. */
	const char *const argv[] = { role_names[spawn->role], decimal(ends->plan, plan_fd), name,
				     NULL };
	struct program program = {
		.fd = spawn->helper_fd, .argv = argv, .envp = no_env, .fds = LOWSUPER_HIGH_FD
	};
	/* The master's pidfd and the leaf are shared like the plan's descriptors. */
	const int inherited[] = { ends->plan, ends->error[1], ends->channel[1], spawn->master_fd,
				  spawn->self_write ? spawn->leaf_fd : -1 };
	int result;

	program.fds = above(program.fds, program.fd);
	for (uint32_t i = 0; i < count; i++)
		program.fds = above(program.fds, fds[i].fd);
	for (size_t i = 0; i < sizeof inherited / sizeof *inherited; i++) {
		program.fds = above(program.fds, inherited[i]);
		if (inherited[i] >= 0)
			fcntl(inherited[i], F_SETFD, 0);
	}
	result = clone_and_exec(spawn, &program);
	for (size_t i = 3; i < sizeof inherited / sizeof *inherited; i++)
		if (inherited[i] >= 0)
			fcntl(inherited[i], F_SETFD, FD_CLOEXEC);
	return result;
}

static int spawn_once(struct lowsuper_spawn *spawn, const char *plan, int32_t size,
		      const char *name)
{
	struct ends ends = { .plan = -1, .error = { -1, -1 }, .channel = { -1, -1 } };
	const struct lowsuper_plan *body = (const void *)plan;
	const struct lowsuper_fd *fds =
		(const void *)(plan + sizeof *body + body->limits * sizeof(struct lowsuper_limit));
	uint8_t changed[LOWSUPER_FDS_MAX];
	int result;

	memset(changed, 0, body->fds);
	/* First: a descriptor that is closed must not get the number of one that is made here. */
	result = share_fds(spawn, fds, body->fds, changed);
	if (!result)
		result = open_ends(spawn, &ends, plan, size);
	if (!result)
		result = clone_helper(spawn, &ends, fds, body->fds, name);
	unshare_fds(fds, body->fds, changed);

	/*
	 * The write end goes before any other clone: a second child would hold it open, and the
	 * end of file that says "the daemon runs" would wait for that child.
	 */
	close_if_open(ends.error[1]);
	close_if_open(ends.channel[1]);
	close_if_open(ends.plan);
	if (result < 0) {
		close_if_open(ends.error[0]);
		close_if_open(ends.channel[0]);
		return result;
	}
	spawn->pid = result;
	spawn->pidfd = move_high(spawn->pidfd);
	spawn->error_fd = move_high(ends.error[0]);
	spawn->channel_fd = move_high(ends.channel[0]);
	return 0;
}

int lowsuper_spawn(struct lowsuper_spawn *spawn, const char *plan, int32_t size, const char *name)
{
	const struct lowsuper_plan *body = (const void *)plan;
	const int way = spawn->way;
	int result;

	spawn->pid = spawn->pidfd = spawn->error_fd = spawn->channel_fd = -1;
	spawn->call = "plan";
	if (size < (int32_t)sizeof *body || body->magic != LOWSUPER_PLAN_MAGIC ||
	    body->fds > LOWSUPER_FDS_MAX || spawn->role < 0 || spawn->role >= LOWSUPER_ROLE_COUNT)
		return -EINVAL;
#ifndef HAVE_CLONE3
	if (way == LOWSUPER_WAY_CLONE3) {
		spawn->call = "clone3";
		return -ENOSYS;
	}
	spawn->way = LOWSUPER_WAY_CLONE;
#endif
	/* clone(2) cannot place the child. */
	if (spawn->way == LOWSUPER_WAY_CLONE && spawn->leaf_fd >= 0)
		spawn->self_write = 1;
	result = spawn_once(spawn, plan, size, name);
	/* ENOSYS: what a container's seccomp filter says, or EPERM in older ones. */
	if (way == LOWSUPER_WAY_AUTO && spawn->way == way && (result == -ENOSYS || result == -EPERM)) {
		spawn->way = LOWSUPER_WAY_CLONE;
		spawn->self_write = spawn->leaf_fd >= 0;
		result = spawn_once(spawn, plan, size, name);
		if (result)
			spawn->way = way;
	} else if (way == LOWSUPER_WAY_AUTO && !result && spawn->way == way) {
		spawn->way = LOWSUPER_WAY_CLONE3;
	}
	return result;
}
