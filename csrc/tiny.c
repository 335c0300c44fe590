/*
 * The start and the C library of the static program on x86-64: the few functions that it calls,
 * each one system call, under the names and prototypes of the system's headers.
 *
 * Why not glibc: before main() it asks the processor for its features with some forty CPUID
 * instructions, and each of them leaves a virtual machine for the hypervisor. That alone takes
 * 0.3 ms there, three times as long as everything else between a crash and the exec of the next
 * daemon. On other architectures, and in the sanitizer build, the same sources link with glibc.
 *
 * Rule: no more than is called; a function that is missing fails at link time. Nothing here knows
 * threads, locales or buffers.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv);

/* The kernel starts a program with argc and argv on the stack, not in registers. */
__asm__(".globl _start\n"
	"_start:\n\t"
	"xor %ebp, %ebp\n\t"
	"mov %rsp, %rdi\n\t"
	"and $-16, %rsp\n\t"
	"call start_main\n\t"
	"hlt\n");

__attribute__((used)) _Noreturn void start_main(long *stack);

void start_main(long *stack)
{
	_exit(main((int)stack[0], (char **)(stack + 1)));
}

int *__errno_location(void)
{
	static int value;

	return &value;
}

static long call(long number, long a, long b, long c, long d, long e)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

#define CALL0(name) call(SYS_##name, 0, 0, 0, 0, 0)
#define CALL1(name, a) call(SYS_##name, (long)(a), 0, 0, 0, 0)
#define CALL2(name, a, b) call(SYS_##name, (long)(a), (long)(b), 0, 0, 0)
#define CALL3(name, a, b, c) call(SYS_##name, (long)(a), (long)(b), (long)(c), 0, 0)
#define CALL4(name, a, b, c, d) call(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), 0)

/* For up to five arguments, which all callers of this program keep to. */
long syscall(long number, ...)
{
	va_list args;
	long a, b, c, d, e;

	va_start(args, number);
	a = va_arg(args, long);
	b = va_arg(args, long);
	c = va_arg(args, long);
	d = va_arg(args, long);
	e = va_arg(args, long);
	va_end(args);
	return call(number, a, b, c, d, e);
}

void _exit(int status)
{
	for (;;)
		CALL1(exit_group, status);
}

int open(const char *path, int flags, ...)
{
	va_list args;
	long mode;

	va_start(args, flags);
	mode = va_arg(args, int);
	va_end(args);
	return (int)CALL3(open, path, flags, mode);
}

int openat(int dir_fd, const char *path, int flags, ...)
{
	va_list args;
	long mode;

	va_start(args, flags);
	mode = va_arg(args, int);
	va_end(args);
	return (int)CALL4(openat, dir_fd, path, flags, mode);
}

int fcntl(int fd, int command, ...)
{
	va_list args;
	long argument;

	va_start(args, command);
	argument = va_arg(args, int);
	va_end(args);
	return (int)CALL3(fcntl, fd, command, argument);
}

int prctl(int option, ...)
{
	va_list args;
	unsigned long a, b, c, d;

	va_start(args, option);
	a = va_arg(args, unsigned long);
	b = va_arg(args, unsigned long);
	c = va_arg(args, unsigned long);
	d = va_arg(args, unsigned long);
	va_end(args);
	return (int)call(SYS_prctl, option, (long)a, (long)b, (long)c, (long)d);
}

static long call6(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* What fails is -1 here, too, which is MAP_FAILED. */
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	return (void *)call6(SYS_mmap, (long)address, (long)size, protection, flags, fd, offset);
}

ssize_t splice(int from, loff_t *from_offset, int to, loff_t *to_offset, size_t size,
	       unsigned flags)
{
	return call6(SYS_splice, from, (long)from_offset, to, (long)to_offset, (long)size, flags);
}

ssize_t read(int fd, void *buffer, size_t size)
{
	return CALL3(read, fd, buffer, size);
}

ssize_t pread(int fd, void *buffer, size_t size, off_t offset)
{
	return CALL4(pread64, fd, buffer, size, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset)
{
	return CALL4(pwrite64, fd, buffer, size, offset);
}

ssize_t write(int fd, const void *buffer, size_t size)
{
	return CALL3(write, fd, buffer, size);
}

ssize_t tee(int from, int to, size_t size, unsigned flags)
{
	return CALL4(tee, from, to, size, flags);
}

int mlockall(int flags)
{
	return (int)CALL1(mlockall, flags);
}

int munmap(void *address, size_t size)
{
	return (int)CALL2(munmap, address, size);
}

int ftruncate(int fd, off_t size)
{
	return (int)CALL2(ftruncate, fd, size);
}

int fchmod(int fd, mode_t mode)
{
	return (int)CALL2(fchmod, fd, mode);
}

int pipe2(int ends[2], int flags)
{
	return (int)CALL2(pipe2, ends, flags);
}

/* For the only request that is made, which has a pointer. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	long argument;

	va_start(args, request);
	argument = va_arg(args, long);
	va_end(args);
	return (int)CALL3(ioctl, fd, request, argument);
}

int close(int fd)
{
	return (int)CALL1(close, fd);
}

int dup2(int from, int to)
{
	return (int)CALL2(dup2, from, to);
}

int fstat(int fd, struct stat *status)
{
	return (int)CALL2(fstat, fd, status);
}

ssize_t readlink(const char *path, char *buffer, size_t size)
{
	return CALL3(readlink, path, buffer, size);
}

ssize_t readlinkat(int dir_fd, const char *path, char *buffer, size_t size)
{
	return CALL4(readlinkat, dir_fd, path, buffer, size);
}

int unlinkat(int dir_fd, const char *path, int flags)
{
	return (int)CALL3(unlinkat, dir_fd, path, flags);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	return (int)CALL4(renameat, from_fd, from, to_fd, to);
}

ssize_t getdents64(int fd, void *buffer, size_t size)
{
	return CALL3(getdents64, fd, buffer, size);
}

int chdir(const char *path)
{
	return (int)CALL1(chdir, path);
}

mode_t umask(mode_t mask)
{
	return (mode_t)CALL1(umask, mask);
}

int poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	return (int)CALL3(poll, fds, count, timeout_ms);
}

pid_t fork(void)
{
	return (pid_t)CALL0(fork);
}

int execve(const char *path, char *const *argv, char *const *envp)
{
	return (int)CALL3(execve, path, argv, envp);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	return (pid_t)CALL4(wait4, pid, status, options, 0);
}

int kill(pid_t pid, int signo)
{
	return (int)CALL2(kill, pid, signo);
}

pid_t getpid(void)
{
	return (pid_t)CALL0(getpid);
}

pid_t getppid(void)
{
	return (pid_t)CALL0(getppid);
}

pid_t getpgid(pid_t pid)
{
	return (pid_t)CALL1(getpgid, pid);
}

pid_t setsid(void)
{
	return (pid_t)CALL0(setsid);
}

int setpriority(__priority_which_t which, id_t who, int value)
{
	return (int)CALL3(setpriority, which, who, value);
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	return (int)CALL2(setrlimit, resource, limit);
}

int setgroups(size_t count, const gid_t *groups)
{
	return (int)CALL2(setgroups, count, groups);
}

int setresgid(gid_t real, gid_t effective, gid_t saved)
{
	return (int)CALL3(setresgid, real, effective, saved);
}

int getresgid(gid_t *real, gid_t *effective, gid_t *saved)
{
	return (int)CALL3(getresgid, real, effective, saved);
}

int setresuid(uid_t real, uid_t effective, uid_t saved)
{
	return (int)CALL3(setresuid, real, effective, saved);
}

int getresuid(uid_t *real, uid_t *effective, uid_t *saved)
{
	return (int)CALL3(getresuid, real, effective, saved);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
	return (int)CALL4(accept4, fd, address, size, flags);
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	return (int)call(SYS_getsockopt, fd, level, option, (long)value, (long)size);
}

int epoll_create1(int flags)
{
	return (int)CALL1(epoll_create1, flags);
}

int epoll_ctl(int fd, int op, int other, struct epoll_event *event)
{
	return (int)CALL4(epoll_ctl, fd, op, other, event);
}

int epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms)
{
	return (int)CALL4(epoll_wait, fd, events, count, timeout_ms);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	return CALL3(recvmsg, fd, message, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	return CALL3(sendmsg, fd, message, flags);
}

/* The kernel's signal set is the first 8 bytes of the headers' one. */
int sigemptyset(sigset_t *set)
{
	*(uint64_t *)set = 0;
	return 0;
}

int sigfillset(sigset_t *set)
{
	*(uint64_t *)set = ~(uint64_t)0;
	return 0;
}

int sigaddset(sigset_t *set, int signo)
{
	*(uint64_t *)set |= (uint64_t)1 << (signo - 1);
	return 0;
}

int signalfd(int fd, const sigset_t *set, int flags)
{
	return (int)CALL4(signalfd4, fd, set, 8, flags);
}

int timerfd_create(clockid_t clock, int flags)
{
	return (int)CALL2(timerfd_create, clock, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
	return (int)CALL4(timerfd_settime, fd, flags, value, old);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	return (int)CALL2(clock_gettime, clock, now);
}

/* The compiler calls these two by itself; -fno-builtin keeps it from calling them in themselves. */
void *memcpy(void *to, const void *from, size_t size)
{
	void *const start = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
	return start;
}

/* Only ever towards the front, and so in this direction. */
void *memmove(void *to, const void *from, size_t size)
{
	return memcpy(to, from, size);
}

void *memset(void *to, int value, size_t size)
{
	void *const start = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
	return start;
}

int strcmp(const char *left, const char *right)
{
	while (*left && *left == *right) {
		left++;
		right++;
	}
	return (unsigned char)*left - (unsigned char)*right;
}
