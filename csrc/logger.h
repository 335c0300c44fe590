/*
 * The log process: what logger.c, which talks to the master, and stream.c, which moves the bytes,
 * know of each other.
 */
#ifndef LOWSUPER_LOGGER_H
#define LOWSUPER_LOGGER_H

#include <stddef.h>
#include <stdint.h>

#include "spawn.h"

enum due { DUE_NOTHING, DUE_ROTATE, DUE_REOPEN };
struct stream {
	struct lowsuper_log_msg is;	/* as it was added; op 0: this entry is free */
	int wanted;			/* by the master */
	int gone;			/* nobody writes */
	int fifo_fd, dir_fd, file_fd;
	enum due due;			/* at the next line end */
	uint64_t size, limit;		/* of the file; at `limit` it is rotated */
	int64_t born_ns;		/* CLOCK_REALTIME */
	int err;			/* why lines are dropped; 0: they are not */
	int torn;			/* the next byte is within a line that is dropped */
	uint64_t lost;			/* lines dropped, which the file does not say yet */
	struct lowsuper_ring *ring;
	int follows;
};

struct logger {
	int dir_fd, parent_fd, listen_fd, control_fd, timer_fd, epoll_fd;
	int scratch[2];			/* pipe */
	const char *name, *socket;
	int64_t armed;			/* the time that the timer is set to; 0: none */
	int rests;			/* all who are not added again by this master stay as well */
	int count;			/* of entries ever used */
};

/* CLOCK_REALTIME. */
int64_t stream_now(void);

/* To the master, if there is one; what does not fit into its socket is not told. */
void stream_tell(const struct logger *logger, int op, const struct stream *stream, int err,
		 uint64_t value);

/* `to` = `first` + `second` + the number, unless it is negative. Room is the caller's business. */
void stream_join(char *to, const char *first, const char *second, int64_t number);

/* Open its file (again); 0 or an errno. */
int stream_open(struct stream *stream);

/* Drop lines from now on, because of `err`. */
void stream_fail(const struct logger *logger, struct stream *stream, int err);

/*
 * Write again, and first how many lines are missing; only between two lines of the daemon's.
 * Returns whether it can be written.
 */
int stream_resume(const struct logger *logger, struct stream *stream);

/* Take what a stream has for us, but not all at once; returns whether there may be more. */
int stream_drain(const struct logger *logger, struct stream *stream);

#endif
