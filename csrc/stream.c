/*
 * One stream of the log process: from a FIFO into a file that is rotated at line ends, or into a
 * ring in memory.
 *
 * Bytes go from pipe to file by splice(2), unseen; only around the end of a file are they looked
 * at, by tee(2). What cannot be written is read and dropped, whole lines of it, and counted: no
 * daemon ever waits for a full disk.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "logger.h"
#include "syscalls.h"

#define PEEK 65536			/* looked at in one go: the longest line that is kept whole... */
#define LINE_MAX_BYTES (1 << 20)	/* ...and the longest that a rotation waits for */
#define TURN (1 << 20)			/* bytes of one stream before the others get their turn */
#define NEVER UINT64_MAX

static char buffer[PEEK];

int64_t stream_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void stream_tell(const struct logger *logger, int op, const struct stream *stream, int err,
		 uint64_t value)
{
	struct lowsuper_log_msg message = { .op = op, .err = err, .value = value };

	if (logger->control_fd < 0)
		return;
	if (stream)
		memcpy(message.name, stream->is.name, sizeof message.name);
	lowsuper_send(logger->control_fd, &message, sizeof message, -1);
}

static size_t length_of(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	return length;
}

void stream_join(char *to, const char *first, const char *second, int64_t number)
{
	char digits[24];
	size_t count = 0;

	while (*first)
		*to++ = *first++;
	while (*second)
		*to++ = *second++;
	if (number >= 0) {
		do {
			digits[count++] = (char)('0' + number % 10);
			number /= 10;
		} while (number);
		while (count)
			*to++ = digits[--count];
	}
	*to = '\0';
}

/* The last newline before `size`, as what comes after it, or 0. */
static size_t after_last_line(const char *bytes, size_t size)
{
	while (size && bytes[size - 1] != '\n')
		size--;
	return size;
}

static uint64_t count_lines(const char *bytes, size_t size)
{
	uint64_t lines = 0;

	for (size_t i = 0; i < size; i++)
		lines += bytes[i] == '\n';
	return lines;
}

/* Files. */

/* Somebody may have cut the file off, as logrotate's copytruncate does. */
static void look_at_size(struct stream *stream)
{
	struct stat status;

	if (stream->file_fd >= 0 && !fstat(stream->file_fd, &status) &&
	    (uint64_t)status.st_size < stream->size)
		stream->size = (uint64_t)status.st_size;
}

static int at_line_end(const struct stream *stream)
{
	char last;

	if (!stream->size)
		return 1;
	return pread(stream->file_fd, &last, 1, (off_t)(stream->size - 1)) == 1 && last == '\n';
}

/* When the file was made, so that its age does not begin anew with us. See statx(2). */
static int64_t birth_of(int fd)
{
	struct statx status;

	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BTIME, &status) ||
	    !(status.stx_mask & STATX_BTIME))
		return stream_now();
	return status.stx_btime.tv_sec * (int64_t)1000000000 + status.stx_btime.tv_nsec;
}

int stream_open(struct stream *stream)
{
	struct stat status;
	int32_t reason;
	int fd;

	if (stream->file_fd >= 0)
		close(stream->file_fd);
	fd = stream->file_fd =
		lowsuper_log_file(stream->dir_fd, stream->is.file, (int)stream->is.shared,
				  stream->is.uid, LOWSUPER_LOG_BOTH, &reason);
	if (fd < 0 || fstat(fd, &status))
		return fd < 0 ? -fd : errno;
	stream->size = (uint64_t)status.st_size;
	stream->limit = stream->is.max_bytes ? stream->is.max_bytes : NEVER;
	stream->born_ns = birth_of(fd);
	return 0;
}

/* Cut off the line that only a part of could be written. */
static void cut_torn_line(struct stream *stream)
{
	static char tail[4096];
	uint64_t end = stream->size;

	while (end && stream->size - end < LINE_MAX_BYTES) {
		const size_t size = end < sizeof tail ? (size_t)end : sizeof tail;
		size_t after;

		if (pread(stream->file_fd, tail, size, (off_t)(end - size)) != (ssize_t)size)
			return;
		after = after_last_line(tail, size);
		end = end - size + after;
		if (after || !end) {
			stream->torn = stream->torn || end < stream->size;
			if (!ftruncate(stream->file_fd, (off_t)end))
				stream->size = end;
			return;
		}
	}
}

void stream_fail(const struct logger *logger, struct stream *stream, int err)
{
	stream->err = err;
	stream->torn = 0;
	if (stream->file_fd >= 0)
		cut_torn_line(stream);
	stream_tell(logger, LOWSUPER_LOG_LOST, stream, err, 0);
}

static const char *words_of(int err)
{
	switch (err) {
	case ENOSPC:
		return "No space left on device";
	case EDQUOT:
		return "Disk quota exceeded";
	case EIO:
		return "Input/output error";
	case EROFS:
		return "Read-only file system";
	case EFBIG:
		return "File too large";
	default:
		return "it could not be written";
	}
}

int stream_resume(const struct logger *logger, struct stream *stream)
{
	char text[128], line[160];
	ssize_t written;
	size_t size;

	if (stream->file_fd < 0 && stream_open(stream))
		return 0;
	look_at_size(stream);
	if (stream->lost) {
		stream_join(text, "lowsuper: lines dropped: ", words_of(stream->err), -1);
		stream_join(line, text, ": ", (int64_t)stream->lost);
		stream_join(line, line, "\n", -1);
		size = length_of(line);
		written = pwrite(stream->file_fd, line, size, (off_t)stream->size);
		if (written != (ssize_t)size) {
			if (written > 0 && ftruncate(stream->file_fd, (off_t)stream->size))
				stream->size += (uint64_t)written;
			return 0;
		}
		stream->size += size;
	}
	stream_tell(logger, LOWSUPER_LOG_LOST, stream, 0, stream->lost);
	stream->err = 0;
	stream->lost = 0;
	return 1;
}

/* What was read into the buffer and is not written; of its last line the rest may still come. */
static void drop(const struct logger *logger, struct stream *stream, size_t size)
{
	const size_t end = after_last_line(buffer, size);
	const size_t rest = size - end;
	ssize_t written;

	stream->lost += count_lines(buffer, size);
	if (!end) {
		stream->torn = stream->torn || size;
		return;
	}
	stream->torn = rest > 0;
	if (!stream_resume(logger, stream))
		return;
	written = rest ? pwrite(stream->file_fd, buffer + end, rest, (off_t)stream->size) : 0;
	if (written > 0)
		stream->size += (uint64_t)written;
	if (written == (ssize_t)rest) {
		stream->torn = 0;
		return;
	}
	stream_fail(logger, stream, written < 0 ? errno : ENOSPC);
	stream->torn = 1;
}

/* Rotation. */

static int exists(const struct stream *stream, const char *name)
{
	const int fd = openat(stream->dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* Make room for `file.1`, up to the first name that is free: the oldest goes. */
static int shift(const struct stream *stream)
{
	char from[LOWSUPER_NAME_SIZE + 24], to[LOWSUPER_NAME_SIZE + 24];
	const int64_t most = stream->is.backups;
	int64_t last = 1;

	for (; last < most; last++) {
		stream_join(to, stream->is.file, ".", last);
		if (!exists(stream, to))
			break;
	}
	for (; last > 1; last--) {
		stream_join(from, stream->is.file, ".", last - 1);
		stream_join(to, stream->is.file, ".", last);
		if (renameat(stream->dir_fd, from, stream->dir_fd, to))
			return errno;
	}
	/* Fewer may be kept than before. */
	for (last = most + 1; last <= LOWSUPER_LOG_BACKUPS_MAX; last++) {
		stream_join(to, stream->is.file, ".", last);
		if (unlinkat(stream->dir_fd, to, 0))
			break;
	}
	return 0;
}

static int move_aside(const struct stream *stream)
{
	const char *file = stream->is.file;
	char to[LOWSUPER_NAME_SIZE + 48];
	int err = 0;

	if (stream->is.naming == LOWSUPER_LOG_FIXED) {
		stream_join(to, stream->is.backup, "", -1);
	} else if (stream->is.naming == LOWSUPER_LOG_TIME) {
		int64_t seconds = stream_now() / 1000000000;

		do
			stream_join(to, file, ".", seconds++);
		while (exists(stream, to));
	} else if (stream->is.backups) {
		err = shift(stream);
		stream_join(to, file, ".", 1);
	} else {
		return unlinkat(stream->dir_fd, file, 0) && errno != ENOENT ? errno : 0;
	}
	/* ENOENT: somebody has moved it away already. */
	if (!err && renameat(stream->dir_fd, file, stream->dir_fd, to) && errno != ENOENT)
		err = errno;
	return err;
}

static void rotate(const struct logger *logger, struct stream *stream)
{
	struct stat before = { .st_mode = LOWSUPER_LOG_MODE };
	int err;

	stream->due = DUE_NOTHING;
	if (!stream->size)
		return;
	err = move_aside(stream);
	if (err) {
		/* It goes on growing, and this is tried again when it has grown as much again. */
		if (stream->limit != NEVER)
			stream->limit = stream->size + stream->is.max_bytes;
		stream->born_ns = stream_now();
		stream_tell(logger, LOWSUPER_LOG_FAILED, stream, err, 0);
		return;
	}
	fstat(stream->file_fd, &before);
	err = stream_open(stream);
	if (err)
		stream_fail(logger, stream, err);
	else
		fchmod(stream->file_fd, before.st_mode & 0777);
}

static void do_due(const struct logger *logger, struct stream *stream)
{
	int err;

	if (stream->due != DUE_REOPEN) {
		rotate(logger, stream);
		return;
	}
	stream->due = DUE_NOTHING;
	err = stream_open(stream);
	if (err)
		stream_fail(logger, stream, err);
}

/* Moving bytes: each returns how many, 0 when nobody writes, -EAGAIN when there is nothing. */

/* Where splice does not work, as in some file systems. */
static ssize_t copy(const struct logger *logger, struct stream *stream, size_t size)
{
	const ssize_t got = read(stream->fifo_fd, buffer, size < PEEK ? size : PEEK);
	ssize_t written;

	if (got <= 0)
		return got ? -errno : 0;
	written = pwrite(stream->file_fd, buffer, (size_t)got, (off_t)stream->size);
	if (written > 0)
		stream->size += (uint64_t)written;
	if (written == got)
		return got;
	stream_fail(logger, stream, written < 0 ? errno : ENOSPC);
	if (written > 0)
		memmove(buffer, buffer + written, (size_t)(got - written));
	drop(logger, stream, (size_t)(got - (written > 0 ? written : 0)));
	return got;
}

static ssize_t move(const struct logger *logger, struct stream *stream, size_t size)
{
	loff_t at = (loff_t)stream->size;
	const ssize_t moved = splice(stream->fifo_fd, NULL, stream->file_fd, &at, size,
				     SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

	if (moved > 0)
		stream->size += (uint64_t)moved;
	if (moved >= 0)
		return moved;
	if (errno == EAGAIN)
		return -EAGAIN;
	if (errno == EINVAL)
		return copy(logger, stream, size);
	stream_fail(logger, stream, errno);
	return 1;
}

/* How much belongs before the end of a file that has room for `room` more. */
static size_t find_end(const struct logger *logger, struct stream *stream, size_t size,
		       uint64_t room)
{
	const ssize_t seen = tee(stream->fifo_fd, logger->scratch[1], size < PEEK ? size : PEEK,
				 SPLICE_F_NONBLOCK);
	const ssize_t got = seen > 0 ? read(logger->scratch[0], buffer, (size_t)seen) : 0;
	size_t end;

	if (got <= 0)
		return 1;
	end = after_last_line(buffer, (uint64_t)got < room ? (size_t)got : (size_t)room);
	if (end)
		return end;
	if (stream->size && !stream->due && at_line_end(stream)) {
		stream->due = DUE_ROTATE; /* a whole line that does not fit */
		return 0;
	}
	while (end < (size_t)got)
		if (buffer[end++] == '\n')
			break;
	return end;
}

static ssize_t pass(const struct logger *logger, struct stream *stream)
{
	int waiting = 0;
	uint64_t room;
	size_t size;

	if ((stream->due || stream->size >= stream->limit) &&
	    (at_line_end(stream) || stream->size >= stream->limit + LINE_MAX_BYTES)) {
		do_due(logger, stream);
		return 1;
	}
	if (ioctl(stream->fifo_fd, FIONREAD, &waiting) || waiting <= 0)
		return move(logger, stream, 1);
	size = (size_t)waiting;
	room = stream->due || stream->size >= stream->limit ? 0 : stream->limit - stream->size;
	if (size <= room)
		return move(logger, stream, size);
	if (room > PEEK)
		return move(logger, stream, (size_t)room - PEEK);
	size = find_end(logger, stream, size, room);
	return size ? move(logger, stream, size) : 1;
}

static ssize_t read_and_drop(const struct logger *logger, struct stream *stream)
{
	const ssize_t got = read(stream->fifo_fd, buffer, sizeof buffer);

	if (got <= 0)
		return got ? -errno : 0;
	drop(logger, stream, (size_t)got);
	return got;
}

/* Straight into the ring. `reserved` says what is being overwritten to whoever reads meanwhile. */
static ssize_t fill(const struct logger *logger, struct stream *stream)
{
	struct lowsuper_ring *ring = stream->ring;
	const uint64_t total = ring->total, at = total % ring->size;
	const size_t room = ring->size - at < PEEK ? (size_t)(ring->size - at) : PEEK;
	ssize_t got;

	__atomic_store_n(&ring->reserved, total + room, __ATOMIC_SEQ_CST);
	got = read(stream->fifo_fd, (char *)ring + LOWSUPER_RING_HEAD + at, room);
	if (got > 0)
		__atomic_store_n(&ring->total, total + (uint64_t)got, __ATOMIC_SEQ_CST);
	__atomic_store_n(&ring->reserved, ring->total, __ATOMIC_SEQ_CST);
	if (got <= 0)
		return got ? -errno : 0;
	if (stream->follows)
		stream_tell(logger, LOWSUPER_LOG_NEWS, stream, 0, ring->total);
	stream->follows = 0;
	return got;
}

int stream_drain(const struct logger *logger, struct stream *stream)
{
	size_t done = 0;

	look_at_size(stream);
	if (!stream->size)
		stream->born_ns = stream_now(); /* a file without a line has no age */
	while (done < TURN) {
		ssize_t moved;

		if (stream->ring)
			moved = fill(logger, stream);
		else if (stream->err)
			moved = read_and_drop(logger, stream);
		else
			moved = pass(logger, stream);
		if (moved <= 0) {
			stream->gone = moved == 0;
			return 0;
		}
		done += (size_t)moved;
	}
	return 1;
}
