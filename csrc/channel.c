/*
 * Messages between the master and its roles over a SOCK_SEQPACKET socket: one call, one message.
 * In the extension and in the static program alike.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "spawn.h"

/*
 * One message of a role: its size, 0 at the end of file, -EAGAIN when none waits. A descriptor
 * that came with it is the caller's, else `passed_fd` is -1. See unix(7), SCM_RIGHTS.
 *
 * That the other end was closed with messages unread is told by ECONNRESET, once, and before what
 * it had sent (sock_error() in the kernel): what waits still counts, so it is asked for again.
 */
int lowsuper_receive(int fd, void *message, int size, int32_t *passed_fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = { .iov_base = message, .iov_len = (size_t)size };
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};
	ssize_t received = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *item;

	*passed_fd = -1;
	if (received < 0 && errno == ECONNRESET)
		received = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (received < 0)
		return -errno;
	item = CMSG_FIRSTHDR(&header);
	if (item && item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_RIGHTS)
		memcpy(passed_fd, CMSG_DATA(item), sizeof *passed_fd);
	return (int)received;
}

/* One message, with a copy of `pass_fd` unless it is -1. Never waits. */
int lowsuper_send(int fd, const void *message, int size, int pass_fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = { .iov_base = (void *)(uintptr_t)message, .iov_len = (size_t)size };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };

	if (pass_fd >= 0) {
		memset(&control, 0, sizeof control);
		header.msg_control = &control;
		header.msg_controllen = sizeof control;
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.align), &pass_fd, sizeof pass_fd);
	}
	/* MSG_NOSIGNAL: a master that died must not end its role by SIGPIPE. */
	if (sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}
