/*
 * The files that output goes to. Root opens them, in places where others may be at work, so the
 * path is walked one component at a time. What only root and we decide is followed wherever it
 * leads, links included. From the first directory on that others own or can write to, no link is
 * followed, and only a plain file with one name that is ours or the daemon's own counts: whoever
 * plays with names there reaches no file but his own. As `kernel/trust.py` does for directories.
 *
 * In a sticky directory of root's or ours others may add names, but not replace or move those of
 * root and ours: no link is followed in it, but what is below a directory of ours there is ours.
 *
 * In the extension and in the static program alike.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "spawn.h"

#define PATH_SIZE 4096
#define LINKS_MAX 40			/* as in path_resolution(7) */
#define TRIES 10
#define OTHERS_WRITE 022
#define LOOK (O_PATH | O_NOFOLLOW | O_CLOEXEC)

struct walk {
	int fd;				/* O_PATH: where it has come to */
	dev_t device;			/* of fd */
	int shared;			/* enum lowsuper_log_place: who else decides what is there */
	int links;
	uid_t self;
	int32_t reason;
	char rest[PATH_SIZE];		/* of the path */
};

static int refuse(int32_t *reason, enum lowsuper_log_reason why, int err)
{
	*reason = (int32_t)why;
	errno = err;
	return -1;
}

/* Take over `fd`. */
static int enter(struct walk *walk, int fd)
{
	struct stat status;

	if (walk->fd >= 0)
		close(walk->fd);
	walk->fd = fd;
	if (fd < 0 || fstat(fd, &status))
		return -1;
	if (!S_ISDIR(status.st_mode)) {
		errno = ENOTDIR;
		return -1;
	}
	/* A user can mount a file system of his own on a directory of his, and let it say anything. */
	if (walk->shared == LOWSUPER_LOG_STICKY)
		walk->shared = status.st_dev == walk->device ? LOWSUPER_LOG_OURS :
							       LOWSUPER_LOG_SHARED;
	walk->device = status.st_dev;
	if ((status.st_uid && status.st_uid != walk->self) ||
	    (status.st_mode & OTHERS_WRITE && !(status.st_mode & S_ISVTX)))
		walk->shared = LOWSUPER_LOG_SHARED;
	else if (status.st_mode & OTHERS_WRITE && !walk->shared)
		walk->shared = LOWSUPER_LOG_STICKY;
	return 0;
}

/* The next component of the path, or "" at its end; returns whether it is the last. */
static int next_name(struct walk *walk, char *name)
{
	size_t start = 0, length = 0, end;

	while (walk->rest[start] == '/')
		start++;
	while (walk->rest[start + length] && walk->rest[start + length] != '/') {
		if (length < LOWSUPER_NAME_SIZE - 1)
			name[length] = walk->rest[start + length];
		length++;
	}
	/* One that is too long is cut to a length that no file system has either. */
	name[length < LOWSUPER_NAME_SIZE - 1 ? length : LOWSUPER_NAME_SIZE - 1] = '\0';
	end = start + length;
	while (walk->rest[end] == '/')
		end++;
	start = 0;
	while ((walk->rest[start++] = walk->rest[end++]))
		;
	return !walk->rest[0];
}

/* Put what the link `fd` says before the rest of the path. */
static int follow(struct walk *walk, int fd)
{
	char target[PATH_SIZE];
	ssize_t size;
	size_t rest = 0;

	if (walk->shared)
		return refuse(&walk->reason, LOWSUPER_LOG_LINK, ELOOP);
	if (++walk->links > LINKS_MAX) {
		errno = ELOOP;
		return -1;
	}
	size = readlinkat(fd, "", target, sizeof target);
	while (walk->rest[rest])
		rest++;
	if (size <= 0 || (size_t)size + 1 + rest + 1 > PATH_SIZE) {
		errno = size < 0 ? errno : ENAMETOOLONG;
		return -1;
	}
	for (size_t i = rest + 1; i-- > 0;)
		walk->rest[(size_t)size + 1 + i] = walk->rest[i];
	walk->rest[size] = '/';
	memcpy(walk->rest, target, (size_t)size);
	return target[0] == '/' ? enter(walk, open("/", LOOK)) : 0;
}

static int go(struct walk *walk, char *name)
{
	int last, fd, result;
	struct stat status;

	if (enter(walk, open("/", LOOK)))
		return -1;
	for (;;) {
		last = next_name(walk, name);
		if (!name[0]) {
			errno = EISDIR;
			return -1;
		}
		fd = openat(walk->fd, name, LOOK);
		if (fd < 0)
			return last && errno == ENOENT ? 0 : -1;
		if (fstat(fd, &status)) {
			close(fd);
			return -1;
		}
		if (S_ISLNK(status.st_mode)) {
			result = follow(walk, fd);
			close(fd);
			if (result)
				return -1;
		} else if (last && !S_ISDIR(status.st_mode)) {
			close(fd);
			return 0;
		} else if (enter(walk, fd)) {
			return -1;
		}
	}
}

int lowsuper_log_directory(const char *path, char *name, int32_t *shared, int32_t *reason)
{
	struct walk walk = { .fd = -1 };
	uid_t real, effective, saved;
	size_t size = 0;
	int err;

	*shared = *reason = 0;
	if (path[0] != '/')
		return -EINVAL;
	while (path[size] && size < PATH_SIZE - 1) {
		walk.rest[size] = path[size];
		size++;
	}
	if (path[size])
		return -ENAMETOOLONG;
	if (getresuid(&real, &effective, &saved))
		return -errno;
	walk.self = effective;
	if (go(&walk, name)) {
		err = errno;
		if (walk.fd >= 0)
			close(walk.fd);
		*reason = walk.reason;
		return -err;
	}
	*shared = walk.shared;
	return walk.fd;
}

/* Whether an open file's name is gone; see proc_pid_fd(5). */
static int is_deleted(int fd)
{
	static const char mark[] = " (deleted)";
	char path[40] = "/proc/self/fd/", digits[12], target[PATH_SIZE];
	size_t at = sizeof "/proc/self/fd/" - 1, count = 0;
	ssize_t size;

	do {
		digits[count++] = (char)('0' + fd % 10);
		fd /= 10;
	} while (fd);
	while (count)
		path[at++] = digits[--count];
	size = readlink(path, target, sizeof target);
	if (size < (ssize_t)sizeof mark - 1)
		return size < 0;
	for (size_t i = 0; i < sizeof mark - 1; i++)
		if (target[(size_t)size - (sizeof mark - 1) + i] != mark[i])
			return 0;
	return 1;
}

/* Let removals in a directory that are under way come to their end: listing waits for its lock. */
static void wait_for_removals(int dir_fd)
{
	char buffer[1024] __attribute__((aligned(8)));
	const int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	while (getdents64(fd, buffer, sizeof buffer) < 0 && errno == EINTR)
		;
	close(fd);
}

/*
 * Judge a file of a place where others decide.
 *
 * Race: a user makes a hard link to a file of ours, we open it, the link is removed, and what we
 * see is a file with one name. But the name by which it was opened is then deleted for us, even if
 * one like it is made again (d_delete() in the kernel comes after the count of names is lowered,
 * both under the directory's lock).
 */
static int judge(int dir_fd, int fd, int shared, const struct stat *status, uid_t self,
		 uint32_t uid, int32_t *reason)
{
	const int is_ours = !status->st_uid || status->st_uid == self;

	if (!S_ISREG(status->st_mode) && !(is_ours && shared == LOWSUPER_LOG_STICKY))
		return refuse(reason, LOWSUPER_LOG_KIND, EPERM);
	if (!is_ours && status->st_uid != uid)
		return refuse(reason, LOWSUPER_LOG_OWNER, EPERM);
	if (status->st_nlink != 1)
		return refuse(reason, LOWSUPER_LOG_NAMES, EPERM);
	wait_for_removals(dir_fd);
	if (is_deleted(fd))
		return refuse(reason, LOWSUPER_LOG_NAMES, EPERM);
	return 0;
}

/* O_NONBLOCK: neither a FIFO without a reader nor a line without a carrier is waited for. */
static int open_or_make(int dir_fd, const char *name, int access, int *made)
{
	static const int modes[] = { O_WRONLY | O_APPEND, O_RDONLY, O_RDWR };
	const int flags = modes[access] | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	int fd = -1;

	for (int i = 0; i < TRIES && fd < 0; i++) {
		*made = 0;
		fd = openat(dir_fd, name, flags);
		if (fd >= 0 || errno != ENOENT || access == LOWSUPER_LOG_READ)
			return fd;
		*made = 1;
		fd = openat(dir_fd, name, flags | O_CREAT | O_EXCL, LOWSUPER_LOG_MODE);
		if (fd < 0 && errno != EEXIST)
			return -1;
	}
	return fd;
}

int lowsuper_log_file(int dir_fd, const char *name, int shared, uint32_t uid, int access,
		      int32_t *reason)
{
	/* A write waits from here on, as programs expect it of their output. */
	const int flags = access == LOWSUPER_LOG_APPEND ? O_APPEND : 0;
	uid_t real, effective, saved;
	struct stat status;
	int made, fd;

	*reason = 0;
	fd = open_or_make(dir_fd, name, access, &made);
	if (fd < 0) {
		if (errno == ELOOP)
			*reason = LOWSUPER_LOG_LINK;
		else if (errno == ENXIO)
			*reason = LOWSUPER_LOG_READER;
		return -errno;
	}
	if (made)
		return fcntl(fd, F_SETFL, flags) ? -errno : fd;
	if (getresuid(&real, &effective, &saved) || fstat(fd, &status))
		goto fail;
	if (!S_ISREG(status.st_mode) &&
	    (access || (!S_ISFIFO(status.st_mode) && !S_ISCHR(status.st_mode)))) {
		refuse(reason, LOWSUPER_LOG_KIND, EPERM);
		goto fail;
	}
	if (shared && judge(dir_fd, fd, shared, &status, effective, uid, reason))
		goto fail;
	if (fcntl(fd, F_SETFL, flags))
		goto fail;
	return fd;

fail:
	made = errno;
	close(fd);
	return -made;
}

int lowsuper_log_open(const char *path, uint32_t uid, int access, int32_t *reason)
{
	char name[LOWSUPER_NAME_SIZE];
	int32_t shared;
	const int dir_fd = lowsuper_log_directory(path, name, &shared, reason);
	int fd;

	if (dir_fd < 0)
		return dir_fd;
	fd = lowsuper_log_file(dir_fd, name, shared, uid, access, reason);
	close(dir_fd);
	return fd;
}
