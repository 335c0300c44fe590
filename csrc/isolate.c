/*
 * The steps that give a daemon namespaces, a root and mounts of its own. They run as root, in the
 * daemon's first process: what they change is seen by nobody but it and what it starts.
 *
 * Rule: propagation becomes private before anything is cloned. A tree that was cloned before would
 * stay shared, and what is attached to it would come to the host.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper.h"
#include "syscalls.h"

/* Of linux/mount.h and linux/openat2.h, which older systems do not have. */
#define OPEN_TREE_CLONE_ 1u
#define OPEN_TREE_CLOEXEC_ ((unsigned)O_CLOEXEC)
#define AT_RECURSIVE_ 0x8000u
#define MOVE_MOUNT_F_EMPTY_PATH_ 0x04u
#define MOVE_MOUNT_T_EMPTY_PATH_ 0x40u
#define MOUNT_ATTR_RDONLY_ 1u
#define RESOLVE_NO_MAGICLINKS_ 2u

/* See netdevice(7). A new network namespace has a loopback device, and it is down. */
static int raise_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	const int fd = (int)syscall(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int err = 0;

	if (fd < 0)
		return -1;
	if (syscall(SYS_ioctl, fd, SIOCGIFFLAGS, &request)) {
		err = errno;
	} else {
		request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
		if (syscall(SYS_ioctl, fd, SIOCSIFFLAGS, &request))
			err = errno;
	}
	close(fd);
	errno = err;
	return err ? -1 : 0;
}

/* Whatever a plan says: no step after this one may change what the host's processes see. */
static int spares_host(const struct task *task)
{
	const struct lowsuper_plan *plan = task->plan;
	const int mounts = task->root || plan->mounts || plan->flags & LOWSUPER_OWN_PROC;

	return (!mounts || plan->namespaces & CLONE_NEWNS) &&
	       (!task->hostname || plan->namespaces & CLONE_NEWUTS);
}

/*
 * Before the mounts change, as the path is one of the master's. O_NONBLOCK: a FIFO must not hang the
 * start; like everything that is no network namespace it is EINVAL then. See setns(2).
 */
int step_netns(struct task *task, int32_t *arg)
{
	int fd;

	if (!task->netns)
		return 0;
	fd = open(task->netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -1;
	*arg = 1;
	if (syscall(SYS_setns, fd, CLONE_NEWNET))
		return -1;
	close(fd);
	return 0;
}

/* One at a time, so that the one that cannot be had is named. See unshare(2). */
int step_namespaces(struct task *task, int32_t *arg)
{
	static const uint32_t kinds[] = { CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET,
					  CLONE_NEWCGROUP };

	if (!spares_host(task)) {
		errno = EINVAL;
		return -1;
	}
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		if (!(task->plan->namespaces & kinds[i]))
			continue;
		*arg = (int32_t)kinds[i];
		if (syscall(SYS_unshare, kinds[i]))
			return -1;
		if (kinds[i] == CLONE_NEWNS &&
		    syscall(SYS_mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
			return -1;
		if (kinds[i] == CLONE_NEWNET && raise_loopback())
			return -1;
	}
	return 0;
}

/* See sethostname(2). */
int step_hostname(struct task *task, int32_t *arg)
{
	size_t length = 0;

	(void)arg;
	if (!task->hostname)
		return 0;
	while (task->hostname[length])
		length++;
	return (int)syscall(SYS_sethostname, task->hostname, length);
}

/*
 * A place to clone or to attach to. Links are followed, but none of /proc/PID, which lead out of
 * whatever root we have.
 */
static int open_place(const char *path, uint64_t flags)
{
	const struct sys_open_how how = { .flags = flags | O_PATH | O_CLOEXEC,
					  .resolve = RESOLVE_NO_MAGICLINKS_ };

	return sys_openat2(AT_FDCWD, path, &how);
}

/* What is mounted at and below a place, as a tree that is attached nowhere. See open_tree(2). */
static int clone_tree(int place)
{
	return (int)syscall(SYS_open_tree, place, "",
			    AT_EMPTY_PATH | OPEN_TREE_CLONE_ | OPEN_TREE_CLOEXEC_ | AT_RECURSIVE_);
}

/* See move_mount(2); Linux 5.2. */
static int attach_tree(int tree, int place)
{
	return (int)syscall(SYS_move_mount, tree, "", place, "",
			    MOVE_MOUNT_F_EMPTY_PATH_ | MOVE_MOUNT_T_EMPTY_PATH_);
}

/* See mount_setattr(2); Linux 5.12. */
static int make_read_only(int tree)
{
	const struct {
		uint64_t set, clear, propagation, userns_fd;
	} attributes = { .set = MOUNT_ATTR_RDONLY_ };

	return (int)syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE_, &attributes,
			    sizeof attributes);
}

/* Before the root changes, since they are the host's paths. */
int step_sources(struct task *task, int32_t *arg)
{
	for (uint32_t i = 0; i < task->plan->mounts; i++) {
		struct lowsuper_mount *const mount = &task->mounts[i];
		const int place = open_place(task->mount_paths[2 * i], 0);

		*arg = (int32_t)i;
		if (place < 0)
			return -1;
		mount->fd = clone_tree(place);
		if (mount->fd < 0 || (mount->read_only && make_read_only(mount->fd)))
			return -1;
		close(place);
	}
	return 0;
}

/*
 * The directory is opened once, and what is mounted there is cloned, attached on itself and
 * entered by that descriptor: nobody who may rename a part of the path can put another in its
 * place. After pivot_root(".", ".") the old root lies above the new one and is taken away whole;
 * no directory for it is needed. Nothing of the old root stays open but what the plan gives the
 * daemon. See pivot_root(2).
 */
int step_root(struct task *task, int32_t *arg)
{
	int place, tree;

	if (!task->root)
		return 0;
	place = open_place(task->root, O_DIRECTORY);
	if (place < 0)
		return -1;
	tree = clone_tree(place);
	if (tree < 0)
		return -1;
	*arg = 1;
	if (attach_tree(tree, place) || syscall(SYS_fchdir, tree) ||
	    syscall(SYS_pivot_root, ".", ".") || syscall(SYS_umount2, ".", MNT_DETACH) ||
	    chdir("/"))
		return -1;
	close(tree);
	close(place);
	return 0;
}

/* The processes of our own pid namespace. See pid_namespaces(7). */
int step_proc(struct task *task, int32_t *arg)
{
	(void)arg;
	if (!(task->plan->flags & LOWSUPER_OWN_PROC))
		return 0;
	return (int)syscall(SYS_mount, "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC,
			    NULL);
}

/* The kernel says EINVAL for a file on a directory and the reverse, as for much else. */
static int are_alike(int tree, int place)
{
	struct stat source, target;

	if (fstat(tree, &source) || fstat(place, &target))
		return 0;
	if (S_ISDIR(source.st_mode) == S_ISDIR(target.st_mode))
		return 1;
	errno = S_ISDIR(target.st_mode) ? EISDIR : ENOTDIR;
	return 0;
}

/* In the new root, so that no link in it leads a mount out of it. */
int step_mounts(struct task *task, int32_t *arg)
{
	for (uint32_t i = 0; i < task->plan->mounts; i++) {
		const int place = open_place(task->mount_paths[2 * i + 1], 0);

		*arg = (int32_t)i;
		if (place < 0 || !are_alike(task->mounts[i].fd, place) ||
		    attach_tree(task->mounts[i].fd, place))
			return -1;
		close(place);
		close(task->mounts[i].fd);
	}
	return 0;
}
