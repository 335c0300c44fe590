/*
 * The log process: moves the output of daemons from FIFOs into files that it rotates at line ends,
 * or into rings in memory. It outlives the master, and the next one connects to it.
 *
 * It gets every directory as a descriptor and walks no path. stream.c has what is done with bytes.
 *
 * It ends when no master is connected and nobody has any of the FIFOs open for writing; then its
 * directory goes, too. Until then it holds a flock on it: see kernel/logs.py.
 *
 * Its plan: fds[0] the directory with the FIFOs, locked; fds[1] the one above; fds[2] a listening
 * socket; programs[0] the name of the first in the second, programs[1] that of the socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"
#include "logger.h"
#include "syscalls.h"

#define STREAMS_MAX 1024
#define PIPE_BYTES (1 << 20)		/* that a daemon is ahead of us at most */
#define RETRY_MS 1000

enum source { SOURCE_CONTROL = STREAMS_MAX, SOURCE_LISTEN, SOURCE_TIMER };

static struct stream streams[STREAMS_MAX];
static uint8_t ready[STREAMS_MAX];

/* Streams. */

static void clear(const struct logger *logger, struct stream *stream)
{
	char name[LOWSUPER_LOG_NAME_SIZE + 8];

	/* Only what has been here since it was added: a change replaces the descriptors. */
	stream_join(name, stream->is.name, ".fifo", -1);
	unlinkat(logger->dir_fd, name, 0);
	stream_join(name, stream->is.name, ".ring", -1);
	unlinkat(logger->dir_fd, name, 0);
}

static void close_all(struct stream *stream)
{
	if (stream->fifo_fd >= 0)
		close(stream->fifo_fd);
	if (stream->dir_fd >= 0)
		close(stream->dir_fd);
	if (stream->file_fd >= 0)
		close(stream->file_fd);
	if (stream->ring)
		munmap(stream->ring, LOWSUPER_RING_HEAD + stream->is.ring_bytes);
	*stream = (struct stream){ .fifo_fd = -1, .dir_fd = -1, .file_fd = -1 };
}

static void forget_if_done(const struct logger *logger, struct stream *stream)
{
	if (!stream->is.op || stream->wanted || !stream->gone)
		return;
	if (stream->err && !stream->torn)
		stream_resume(logger, stream);
	clear(logger, stream);
	close_all(stream);
}

static struct stream *find(struct logger *logger, const char *name)
{
	for (int i = 0; i < logger->count; i++)
		if (streams[i].is.op && !strcmp(streams[i].is.name, name))
			return &streams[i];
	return NULL;
}

static struct stream *make(struct logger *logger)
{
	for (int i = 0; i < STREAMS_MAX; i++)
		if (!streams[i].is.op) {
			if (i >= logger->count)
				logger->count = i + 1;
			streams[i] =
				(struct stream){ .fifo_fd = -1, .dir_fd = -1, .file_fd = -1 };
			return &streams[i];
		}
	return NULL;
}

/* Earliest age that is reached. With TFD_TIMER_CANCEL_ON_SET a clock that is set wakes us too. */
static void arm(struct logger *logger)
{
	struct itimerspec at = { .it_value = { 0 } };
	int64_t first = 0;

	for (int i = 0; i < logger->count; i++) {
		const struct stream *stream = &streams[i];
		const int64_t end = stream->born_ns + stream->is.max_age_ns;

		if (stream->is.op && stream->is.max_age_ns && stream->size && !stream->due &&
		    (!first || end < first))
			first = end > 0 ? end : 1;
	}
	if (first == logger->armed)
		return;
	logger->armed = first;
	at.it_value.tv_sec = first / 1000000000;
	at.it_value.tv_nsec = first % 1000000000;
	timerfd_settime(logger->timer_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &at, NULL);
}

static void look_at_ages(struct logger *logger)
{
	const int64_t now = stream_now();
	uint64_t count;

	if (read(logger->timer_fd, &count, sizeof count) < 0 && errno == EAGAIN)
		return;
	logger->armed = 0;
	for (int i = 0; i < logger->count; i++) {
		struct stream *stream = &streams[i];

		if (stream->is.op && stream->is.max_age_ns && stream->size &&
		    now - stream->born_ns >= stream->is.max_age_ns) {
			stream->due = DUE_ROTATE;
			ready[i] = 1;
		}
	}
}

/* With two descriptors: the FIFO's reading end, and the directory or the ring's file. */
static void add(struct logger *logger, const struct lowsuper_log_msg *message, const int *fds)
{
	struct stream *stream = find(logger, message->name);
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	struct stream before = { .err = 0 };
	int err = 0, turns = 0;

	if (!stream)
		stream = make(logger);
	if (!stream || fds[0] < 0 || fds[1] < 0) {
		stream_tell(logger, LOWSUPER_LOG_FULL, NULL, ENOSPC, 0);
		for (int i = 0; i < 2; i++)
			if (fds[i] >= 0)
				close(fds[i]);
		return;
	}
	if (stream->is.op) {
		/* The rest of what the old one has goes where it belongs. */
		while (turns++ < 4 && stream_drain(logger, stream))
			;
		before = *stream;
		close_all(stream);
	}
	stream->is = *message;
	stream->wanted = 1;
	stream->fifo_fd = fds[0];
	fcntl(fds[0], F_SETPIPE_SZ, PIPE_BYTES); /* what cannot be had is as good as before */
	if (message->ring_bytes) {
		void *place = mmap(NULL, LOWSUPER_RING_HEAD + message->ring_bytes,
				   PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);

		close(fds[1]);
		if (place == MAP_FAILED) {
			stream_tell(logger, LOWSUPER_LOG_FAILED, stream, errno, 0);
			close_all(stream);
			return;
		}
		stream->ring = place;
		if (stream->ring->size != message->ring_bytes)
			*stream->ring = (struct lowsuper_ring){ .size = message->ring_bytes };
	} else {
		stream->dir_fd = fds[1];
		err = stream_open(stream);
		if (err)
			stream_fail(logger, stream, err);
		else if (before.lost || before.torn)
			stream->err = before.err;
		stream->lost = before.lost;
		stream->torn = before.torn;
	}
	event.data.u64 = (uint64_t)(stream - streams);
	epoll_ctl(logger->epoll_fd, EPOLL_CTL_ADD, stream->fifo_fd, &event);
	ready[stream - streams] = 1;
}

static void obey(struct logger *logger, const struct lowsuper_log_msg *message, const int *fds)
{
	struct stream *stream = message->op == LOWSUPER_LOG_ADD ? NULL
								: find(logger, message->name);

	switch (message->op) {
	case LOWSUPER_LOG_ADD:
		add(logger, message, fds);
		return;
	case LOWSUPER_LOG_SETTLED:
		/* Whom this master has not added belonged to the one before. */
		logger->rests = 0;
		for (int i = 0; i < logger->count; i++)
			ready[i] = streams[i].is.op != 0;
		break;
	case LOWSUPER_LOG_DROP:
		if (stream)
			stream->wanted = 0;
		break;
	case LOWSUPER_LOG_ROTATE:
	case LOWSUPER_LOG_REOPEN:
		if (stream && !stream->ring)
			stream->due = message->op == LOWSUPER_LOG_ROTATE ? DUE_ROTATE : DUE_REOPEN;
		break;
	case LOWSUPER_LOG_FOLLOW:
		if (stream && stream->ring && stream->ring->total != message->value)
			stream_tell(logger, LOWSUPER_LOG_NEWS, stream, 0, stream->ring->total);
		else if (stream && stream->ring)
			stream->follows = 1;
		break;
	default:
		break;
	}
	if (stream)
		ready[stream - streams] = 1;
	for (int i = 0; i < 2; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* The master. */

static void master_is_gone(struct logger *logger)
{
	close(logger->control_fd);
	logger->control_fd = -1;
	logger->rests = 0;
	for (int i = 0; i < logger->count; i++) {
		streams[i].wanted = streams[i].follows = 0;
		ready[i] = streams[i].is.op != 0;
	}
}

/* One message, and up to two descriptors; 0 at its end, else < 0 when none waits. */
static ssize_t receive(const struct logger *logger, struct lowsuper_log_msg *message, int *fds)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct iovec part = { .iov_base = message, .iov_len = sizeof *message };
	struct msghdr header = { .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof control };
	const ssize_t size = recvmsg(logger->control_fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *item;

	fds[0] = fds[1] = -1;
	if (size < 0)
		return errno == EAGAIN ? -EAGAIN : 0;
	item = CMSG_FIRSTHDR(&header);
	if (item && item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_RIGHTS)
		memcpy(fds, CMSG_DATA(item), item->cmsg_len - CMSG_LEN(0));
	return size;
}

static void read_control(struct logger *logger)
{
	struct lowsuper_log_msg message;
	int fds[2];
	ssize_t size;

	while ((size = receive(logger, &message, fds)) == sizeof message) {
		/* It is our own master, but what is cut off must not be read on. */
		message.name[sizeof message.name - 1] = message.file[sizeof message.file - 1] =
			message.backup[sizeof message.backup - 1] = '\0';
		obey(logger, &message, fds);
	}
	if (size != -EAGAIN)
		master_is_gone(logger);
}

static void greet(struct logger *logger, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = SOURCE_CONTROL };

	logger->control_fd = fd;
	logger->rests = 1;
	epoll_ctl(logger->epoll_fd, EPOLL_CTL_ADD, fd, &event);
	stream_tell(logger, LOWSUPER_LOG_READY, NULL, 0, 0);
}

/* The next master. The directory is root's alone (or ours), and yet: see SO_PEERCRED, unix(7). */
static void meet(struct logger *logger)
{
	const int fd = accept4(logger->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	uid_t real, effective, saved;
	struct ucred peer;
	socklen_t size = sizeof peer;

	if (fd < 0)
		return;
	if (logger->control_fd >= 0)
		read_control(logger); /* it may have ended just now */
	if (logger->control_fd >= 0 || getresuid(&real, &effective, &saved) ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) ||
	    (peer.uid && peer.uid != effective)) {
		close(fd);
		return;
	}
	greet(logger, fd);
}

/* The process. */

/*
 * Root without most of its rights: CAP_DAC_OVERRIDE to make files in directories of others, and
 * CAP_FOWNER to rename and to set the mode of files of others there. See capabilities(7).
 */
static void drop_rights(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[2];
	const uint32_t kept = 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_capget, &header, sets))
		return;
	sets[0].permitted &= kept;
	sets[0].effective &= kept;
	sets[1].permitted = sets[1].effective = 0;
	sets[0].inheritable = sets[1].inheritable = 0;
	/* It only ever takes away, which is always allowed. */
	syscall(SYS_capset, &header, sets);
}

static void set_up(struct task *task, struct logger *logger)
{
	struct epoll_event event = { .events = EPOLLIN };
	int fds[] = { task->head.channel_fd, logger->dir_fd, logger->parent_fd, logger->listen_fd };
	int fd;

	prctl(PR_SET_NAME, "lowsuper-logger", 0, 0, 0);
	if (setsid() < 0 || chdir("/"))
		task_fail(task, LOWSUPER_STEP_SETSID, errno, 0);
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "-900", 4) < 0)
		errno = 0; /* without the right it is as likely to be chosen as others */
	/* Not even 2: who waits for the end of the master's output must not wait for ours. */
	keep_fds(fds, sizeof fds / sizeof *fds);
	drop_rights();
	logger->timer_fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	logger->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (logger->epoll_fd < 0 || logger->timer_fd < 0 ||
	    pipe2(logger->scratch, O_CLOEXEC | O_NONBLOCK))
		_exit(127);
	event.data.u64 = SOURCE_LISTEN;
	epoll_ctl(logger->epoll_fd, EPOLL_CTL_ADD, logger->listen_fd, &event);
	event.data.u64 = SOURCE_TIMER;
	epoll_ctl(logger->epoll_fd, EPOLL_CTL_ADD, logger->timer_fd, &event);
}

static int has_streams(const struct logger *logger)
{
	for (int i = 0; i < logger->count; i++)
		if (streams[i].is.op)
			return 1;
	return 0;
}

/* What is ready; returns how long to sleep after it, in ms, or -1. */
static int work(struct logger *logger)
{
	int rest = -1;

	for (int i = 0; i < logger->count; i++) {
		struct stream *stream = &streams[i];

		if (ready[i]) {
			ready[i] = stream->is.op && stream_drain(logger, stream);
			if (!logger->rests)
				forget_if_done(logger, stream);
		}
		if (ready[i])
			rest = 0;
		else if (stream->err && !stream->torn && rest < 0)
			rest = RETRY_MS;
	}
	arm(logger);
	return rest;
}

static void retry(const struct logger *logger)
{
	for (int i = 0; i < logger->count; i++)
		if (streams[i].is.op && streams[i].err && !streams[i].torn)
			stream_resume(logger, &streams[i]);
}

void logger_run(struct task *task)
{
	static struct logger logger = { .control_fd = -1 };
	struct epoll_event events[64];
	int rest = -1;

	if (task->plan->fds != 3 || task->plan->programs != 2)
		task_fail(task, LOWSUPER_STEP_PLAN, EINVAL, 6);
	logger.dir_fd = task->fds[0].fd;
	logger.parent_fd = task->fds[1].fd;
	logger.listen_fd = task->fds[2].fd;
	logger.name = task->programs[0];
	logger.socket = task->programs[1];
	set_up(task, &logger);
	greet(&logger, task->head.channel_fd);

	while (logger.control_fd >= 0 || has_streams(&logger)) {
		const int count = epoll_wait(logger.epoll_fd, events, 64, rest);

		for (int i = 0; i < count; i++) {
			const uint64_t source = events[i].data.u64;

			if (source == SOURCE_CONTROL && logger.control_fd >= 0)
				read_control(&logger);
			else if (source == SOURCE_LISTEN)
				meet(&logger);
			else if (source == SOURCE_TIMER)
				look_at_ages(&logger);
			else if (source < STREAMS_MAX)
				ready[source] = 1;
		}
		if (!count)
			retry(&logger);
		rest = work(&logger);
	}
	/* Who connects from here on finds the lock free once we are gone. */
	unlinkat(logger.dir_fd, logger.socket, 0);
	unlinkat(logger.parent_fd, logger.name, AT_REMOVEDIR);
	_exit(0);
}
