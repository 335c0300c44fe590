/*
 * What the extension, the static program and Python agree on.
 *
 * The text between the two cffi markers is also the cdef of the extension, so that C and Python
 * cannot drift: only fixed-width integers, plain structs, enums and prototypes in there.
 * Python makes the bytes of a plan with these structs in mind (lowsuper/kernel/spawn.py: pack).
 */
#ifndef LOWSUPER_SPAWN_H
#define LOWSUPER_SPAWN_H

#include <stdint.h>

/* cffi:begin */

/* The steps that can fail; child.c has the order in which they run. Append only. */
enum lowsuper_step {
	LOWSUPER_STEP_NONE,		/* never in a record */
	LOWSUPER_STEP_PLAN,		/* read the plan */
	LOWSUPER_STEP_FORK,		/* the roles: fork the daemon's first process */
	LOWSUPER_STEP_CGROUP,
	LOWSUPER_STEP_SETSID,
	LOWSUPER_STEP_FDS,		/* arg: index in the plan */
	LOWSUPER_STEP_RLIMITS,		/* arg: index in the plan */
	LOWSUPER_STEP_CHDIR,
	LOWSUPER_STEP_SETGROUPS,
	LOWSUPER_STEP_SETRESGID,
	LOWSUPER_STEP_SETRESUID,
	LOWSUPER_STEP_PDEATHSIG,	/* ESRCH: the master died meanwhile */
	LOWSUPER_STEP_UMASK,
	LOWSUPER_STEP_SIGNALS,
	LOWSUPER_STEP_EXECVE,		/* arg: index of the program; err 0: exec comes now */
	LOWSUPER_STEP_OOM_SCORE,
	LOWSUPER_STEP_NICE,
	LOWSUPER_STEP_NO_NEW_PRIVS,
	LOWSUPER_STEP_CAPS,		/* arg: the capability, or -1 */
	LOWSUPER_STEP_NAMESPACES,	/* arg: CLONE_NEW..., or 0: one is missing */
	LOWSUPER_STEP_HOSTNAME,
	LOWSUPER_STEP_SOURCES,		/* arg: index in the plan */
	LOWSUPER_STEP_ROOT,		/* arg: 0: find it, 1: enter it */
	LOWSUPER_STEP_PROC,
	LOWSUPER_STEP_MOUNTS,		/* arg: index in the plan */
	LOWSUPER_STEP_LOG,		/* arg: enum lowsuper_log_reason */
	LOWSUPER_STEP_NETNS,		/* arg: 0: find it, 1: enter it */
	LOWSUPER_STEP_FENCE,		/* the deadline has passed, or nothing can hold it */
	LOWSUPER_STEP_COUNT
};

/* What the helper writes to the error pipe: one write, far below PIPE_BUF. */
struct lowsuper_error {
	int32_t step;
	int32_t err;
	int32_t arg;
};

/* What the static program does, chosen by its argv[0]. */
enum lowsuper_role {
	LOWSUPER_ROLE_CHILD,
	LOWSUPER_ROLE_NSINIT,
	LOWSUPER_ROLE_SHIM,
	LOWSUPER_ROLE_GUARD,
	LOWSUPER_ROLE_PROBE,		/* ends at once with 0 */
	LOWSUPER_ROLE_LOGGER,
	LOWSUPER_ROLE_COUNT
};

enum lowsuper_flag {
	LOWSUPER_HAS_CHDIR = 1,
	LOWSUPER_HAS_UID = 2,
	LOWSUPER_HAS_GID = 4,
	LOWSUPER_HAS_GROUPS = 8,
	LOWSUPER_HAS_UMASK = 16,
	LOWSUPER_DIES_WITH_MASTER = 32,
	LOWSUPER_HAS_NICE = 64,
	LOWSUPER_HAS_OOM_SCORE = 128,
	LOWSUPER_NO_NEW_PRIVS = 256,
	LOWSUPER_HAS_CAPS = 512,
	LOWSUPER_HAS_ROOT = 1024,
	LOWSUPER_HAS_HOSTNAME = 2048,
	LOWSUPER_OWN_PROC = 4096,	/* mount a /proc */
	LOWSUPER_HAS_LOG = 8192,
	LOWSUPER_HAS_NETNS = 16384
};

/*
 * A plan: the head, which stage 1 fills; the body; `limits` x lowsuper_limit; `fds` x lowsuper_fd;
 * `mounts` x lowsuper_mount; `groups` x uint32_t; then `string_bytes` of strings, each ended by a
 * NUL byte: the directory (if HAS_CHDIR), the root (if HAS_ROOT), the host name (if HAS_HOSTNAME),
 * the log file (if HAS_LOG), the network namespace (if HAS_NETNS), the programs, argv, envp, the
 * paths of the fds that have no descriptor, and source and target of each mount.
 */
struct lowsuper_head {
	int32_t error_fd;		/* write end of the error pipe, or -1 */
	int32_t master_fd;		/* pidfd of the master */
	int32_t leaf_fd;		/* cgroup directory to enter as the first step, or -1 */
	int32_t channel_fd;		/* the role's end of the channel, or -1 */
	int64_t fence_ns;		/* as in lowsuper_spawn */
};

struct lowsuper_plan {
	uint32_t magic;
	uint32_t flags;			/* enum lowsuper_flag */
	uint32_t uid;
	uint32_t gid;
	uint32_t umask;
	int32_t nice;
	int32_t oom_score;		/* oom_score_adj of proc(5) */
	uint32_t caps[2];		/* bit n of 64: keep capability n */
	uint32_t namespaces;		/* CLONE_NEW..., without the pid namespace */
	uint32_t limits;		/* how many of each follow */
	uint32_t fds;
	uint32_t mounts;
	uint32_t groups;
	uint32_t programs;
	uint32_t argv;
	uint32_t envp;
	uint32_t string_bytes;
};

struct lowsuper_limit {
	int32_t resource;
	int32_t pad;
	int64_t soft;			/* -1: no limit */
	int64_t hard;
};

struct lowsuper_fd {
	int32_t target;
	int32_t fd;			/* of the master, or -1: the next path, or FD_LOG */
	int32_t flags;			/* of open(2) */
	int32_t mode;
};

struct lowsuper_mount {
	int32_t fd;			/* the helper's: the tree to attach */
	uint32_t read_only;
};

enum lowsuper_limits {
	LOWSUPER_PLAN_MAGIC = 0x6c737031,
	LOWSUPER_FDS_MAX = 1024,	/* descriptors of one plan */
	LOWSUPER_FD_LOG = -2,		/* as a descriptor of a plan: its log file */
	LOWSUPER_NAME_SIZE = 260,	/* room for the name of a file */
	LOWSUPER_LOG_MODE = 416,	/* 0640 of a log file that is made */
	LOWSUPER_LOG_NAME_SIZE = 80,	/* room for the name of a stream */
	LOWSUPER_LOG_BACKUPS_MAX = 999,
	LOWSUPER_RING_HEAD = 4096,
	LOWSUPER_GUARD_DOMAINS_MAX = 1024,
	LOWSUPER_HIGH_FD = 256		/* from here on: not for children, see spawn.c */
};

/* Why a log file was refused, where the errno alone does not tell. */
enum lowsuper_log_reason {
	LOWSUPER_LOG_PLAIN,		/* the errno tells */
	LOWSUPER_LOG_LINK,		/* a link in a place where others can write */
	LOWSUPER_LOG_KIND,		/* not a plain file, nor what may be there in its place */
	LOWSUPER_LOG_OWNER,		/* neither ours nor the daemon's */
	LOWSUPER_LOG_NAMES,		/* has another hard link, or was replaced */
	LOWSUPER_LOG_READER		/* a socket, or a FIFO that nobody reads */
};

/* Who decides about the names in the directory of a log file. */
enum lowsuper_log_place {
	LOWSUPER_LOG_OURS,		/* root and we */
	LOWSUPER_LOG_SHARED,		/* others, too */
	LOWSUPER_LOG_STICKY		/* others add theirs, and leave root's and ours alone */
};

/* How a log file is opened. */
enum lowsuper_log_access {
	LOWSUPER_LOG_APPEND,
	LOWSUPER_LOG_READ,		/* it is not made */
	LOWSUPER_LOG_BOTH		/* at any place; a plain file only */
};

/*
 * The log process: see logger.c. Streams are known by their names, whoever the master is. A master
 * that connects is told READY, adds what it has, and then says SETTLED.
 */
enum lowsuper_log_op {
	LOWSUPER_LOG_ADD = 1,		/* or change; with the FIFO, and the directory or the ring */
	LOWSUPER_LOG_SETTLED,
	LOWSUPER_LOG_DROP,		/* forget it once nobody writes any more */
	LOWSUPER_LOG_ROTATE,		/* at the next line end, as REOPEN */
	LOWSUPER_LOG_REOPEN,
	LOWSUPER_LOG_FOLLOW,		/* say NEWS once when a ring has other than `value` bytes */
	LOWSUPER_LOG_READY,
	LOWSUPER_LOG_LOST,		/* with `err` lines are dropped; with 0 `value` were */
	LOWSUPER_LOG_FAILED,		/* to rotate: `err` */
	LOWSUPER_LOG_FULL,		/* there are too many streams */
	LOWSUPER_LOG_NEWS		/* `value`: bytes that ever came into the ring */
};

enum lowsuper_log_naming {
	LOWSUPER_LOG_NUMBERED,		/* FILE.1 is the newest of `backups` */
	LOWSUPER_LOG_TIME,		/* FILE.UNIXTIME; none is ever removed */
	LOWSUPER_LOG_FIXED		/* `backup` */
};

struct lowsuper_log_msg {
	int32_t op;
	int32_t err;
	uint32_t uid;			/* whose files are taken as well as ours */
	uint32_t shared;		/* the directory is: see logfile.c */
	uint32_t naming;
	uint32_t backups;
	uint64_t max_bytes;		/* 0: any */
	int64_t max_age_ns;		/* 0: any */
	uint64_t ring_bytes;		/* 0: a file */
	uint64_t value;
	char name[80];			/* LOWSUPER_LOG_NAME_SIZE */
	char file[260];			/* LOWSUPER_NAME_SIZE */
	char backup[260];
};

/*
 * How the file of a ring begins; at LOWSUPER_RING_HEAD `size` bytes follow, of which the byte n
 * that ever came is at n % size. To read, copy all and then look at `reserved`: what is less than
 * that minus `size` may have been overwritten meanwhile.
 */
struct lowsuper_ring {
	uint64_t size;
	uint64_t reserved;
	uint64_t total;
};

/* How to clone. */
enum lowsuper_way {
	LOWSUPER_WAY_AUTO,		/* clone3, and clone where clone3 is refused */
	LOWSUPER_WAY_CLONE3,
	LOWSUPER_WAY_CLONE
};

/* One spawn: what goes in, and what comes out. */
struct lowsuper_spawn {
	int32_t helper_fd;		/* in: the static program, O_PATH */
	int32_t master_fd;		/* in: pidfd of the caller */
	int32_t leaf_fd;		/* in: cgroup directory, or -1 */
	int32_t self_write;		/* in: the helper enters the cgroup itself */
	int32_t new_pid_ns;		/* in */
	int32_t role;			/* in: enum lowsuper_role */
	int32_t way;			/* in and out: AUTO becomes what worked */
	int32_t pid;			/* out */
	int32_t pidfd;			/* out: the caller's */
	int32_t error_fd;		/* out: read end of the error pipe, the caller's */
	int32_t channel_fd;		/* out: the caller's, or -1 */
	const char *call;		/* out: the call that failed */
	int64_t fence_ns;		/* in: CLOCK_BOOTTIME; 0: none. See lowsuper_op, FENCE */
};

/*
 * From a role to the master: STARTED (a pidfd comes with it), EXITED (value: the raw wait status
 * of the daemon's first process, left: others are in its domain still).
 * From the master to a role: SIGNAL and SIGNAL_ALL (value: the signal), KILL, SURVIVE: the role,
 * and what it keeps, does not die with the master any more, and FENCE: at `until_ns` all is killed,
 * whatever has become of the master. A fence that came with the spawn holds before the program
 * runs: past its time nothing is executed any more.
 */
enum lowsuper_op {
	LOWSUPER_STARTED = 1,
	LOWSUPER_EXITED,
	LOWSUPER_SIGNAL,
	LOWSUPER_SIGNAL_ALL,
	LOWSUPER_KILL,
	LOWSUPER_SURVIVE,
	LOWSUPER_FENCE
};

struct lowsuper_message {
	int32_t op;
	int32_t value;
	int32_t left;
	int32_t pad;
	int64_t until_ns;		/* CLOCK_BOOTTIME; 0: none */
};

/*
 * The guard's protocol. The guard answers with READY, FULL (id) and EXPIRED (id), and with GUARDED
 * (id) to an ADD that asks for it.
 */
enum lowsuper_guard_op {
	LOWSUPER_GUARD_READY = 1,
	LOWSUPER_GUARD_FULL,		/* no room for this id: its domain is not guarded */
	LOWSUPER_GUARD_EXPIRED,		/* the deadline passed, the domain was killed */
	LOWSUPER_GUARD_ADD,		/* with an fd of the domain's cgroup.kill */
	LOWSUPER_GUARD_RENEW,		/* new flags and deadline, the fd stays */
	LOWSUPER_GUARD_DROP,
	LOWSUPER_GUARD_QUIT,
	LOWSUPER_GUARD_GUARDED
};

enum lowsuper_guard_flag {
	LOWSUPER_GUARD_SURVIVES = 1,	/* not killed when the master dies, only at its deadline */
	LOWSUPER_GUARD_ASKS = 2,
	LOWSUPER_GUARD_NOTED = 4	/* LOWSUPER_GUARD_XATTR says the same as this message */
};

struct lowsuper_guard_msg {
	int32_t op;
	uint32_t id;
	uint32_t flags;
	int32_t pad;
	int64_t deadline_ns;		/* CLOCK_BOOTTIME; 0: none */
};

struct lowsuper_signal {
	int32_t signo;
	int32_t pid;
	int32_t uid;
	int32_t code;
};

struct lowsuper_exit_info {
	int32_t has_status;		/* 0 while it is not reaped, and before Linux 6.15 */
	int32_t status;			/* raw wait status */
	uint64_t cgroup_id;		/* inode number of its cgroup v2 directory; 0: unknown */
};

/* Each returns >= 0, or -errno. */
int lowsuper_spawn(struct lowsuper_spawn *spawn, const char *plan, int32_t size, const char *name);
const char *lowsuper_step_name(int step);

int lowsuper_reap(int pidfd, int leave);
int lowsuper_peek_child(void);
int lowsuper_send_signal(int pidfd, int signo, int group);
int lowsuper_exit_info(int pidfd, struct lowsuper_exit_info *info);
int lowsuper_signalfd(uint64_t signals);
int lowsuper_signalfd_read(int fd, struct lowsuper_signal *signals, int count);
int lowsuper_timerfd(void);
int lowsuper_timerfd_settime(int fd, int64_t at_ns);
int lowsuper_inotify(void);
int lowsuper_inotify_add(int fd, const char *path, uint32_t mask);
int lowsuper_inotify_remove(int fd, int watch);
int lowsuper_openat2(int dir_fd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int lowsuper_set_child_subreaper(int on);
int lowsuper_raise_ambient(int cap);
int lowsuper_close_range(uint32_t first, uint32_t last, uint32_t flags);
int lowsuper_set_pdeathsig(int signo);
int lowsuper_unshare(uint32_t flags);
int lowsuper_setns(int fd, uint32_t kind);
int lowsuper_pivot_root(const char *new_root, const char *put_old);
int lowsuper_mount(const char *source, const char *target, const char *type, uint64_t flags,
		   const char *data);
int lowsuper_umount(const char *path, int flags);
int lowsuper_open_tree(int dir_fd, const char *path, uint32_t flags);
int lowsuper_move_mount(int from_fd, const char *from, int to_fd, const char *to, uint32_t flags);
int lowsuper_mount_setattr(int dir_fd, const char *path, uint32_t flags, uint64_t set,
			   uint64_t propagation);
int lowsuper_fsopen(const char *type);
int lowsuper_fsconfig(int fd, uint32_t command, const char *key, const char *value, int aux);
int lowsuper_fsmount(int fd, uint32_t attributes);
/*
 * logfile.c. `name` has room for LOWSUPER_NAME_SIZE characters; `uid` is the daemon's. The
 * descriptors are the caller's: of the directory that a path really leads to (O_PATH), and of a log
 * file; `access` is enum lowsuper_log_access, `shared` enum lowsuper_log_place.
 */
int lowsuper_log_directory(const char *path, char *name, int32_t *shared, int32_t *reason);
int lowsuper_log_file(int dir_fd, const char *name, int shared, uint32_t uid, int access,
		      int32_t *reason);
int lowsuper_log_open(const char *path, uint32_t uid, int access, int32_t *reason);
int lowsuper_receive(int fd, void *message, int size, int32_t *passed_fd);
int lowsuper_send(int fd, const void *message, int size, int pass_fd);

/* cffi:end */

/*
 * An attribute of cgroup.kill, with a deadline in decimal, 0: none. A guard whose master is dead
 * reads it, for a next master may have adopted the domain.
 */
#define LOWSUPER_GUARD_XATTR "trusted.lowsuper.until"

#endif
