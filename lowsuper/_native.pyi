"""What the extension offers: csrc/spawn.h, between its cffi markers, as Python sees it.

Functions return a value >= 0, or a negative errno.
"""

from typing import Literal, Protocol, overload

class Pointer: ...

class Spawn(Pointer):
    helper_fd: int
    master_fd: int
    leaf_fd: int
    self_write: int
    new_pid_ns: int
    role: int
    way: int
    pid: int
    pidfd: int
    error_fd: int
    channel_fd: int
    call: Pointer
    fence_ns: int

class Message(Pointer):
    op: int
    value: int
    left: int
    until_ns: int

class GuardMessage(Pointer):
    op: int
    id: int
    flags: int
    deadline_ns: int

class LogMessage(Pointer):
    op: int
    err: int
    uid: int
    shared: int
    naming: int
    backups: int
    max_bytes: int
    max_age_ns: int
    ring_bytes: int
    value: int
    name: bytes
    file: bytes
    backup: bytes

class Chars(Pointer): ...

class Signal(Pointer):
    signo: int
    pid: int
    uid: int
    code: int

class Signals(Pointer):
    def __getitem__(self, index: int) -> Signal: ...

class ExitInfo(Pointer):
    has_status: int
    status: int
    cgroup_id: int

class Number(Pointer):
    def __getitem__(self, index: int) -> int: ...

class _FFI(Protocol):
    NULL: Pointer
    @overload
    def new(self, cdecl: Literal["struct lowsuper_spawn *"]) -> Spawn: ...
    @overload
    def new(self, cdecl: Literal["struct lowsuper_log_msg *"]) -> LogMessage: ...
    @overload
    def new(self, cdecl: Literal["char[]"], init: int) -> Chars: ...
    @overload
    def new(self, cdecl: Literal["struct lowsuper_message *"]) -> Message: ...
    @overload
    def new(self, cdecl: Literal["struct lowsuper_guard_msg *"]) -> GuardMessage: ...
    @overload
    def new(self, cdecl: Literal["struct lowsuper_signal[]"], init: int) -> Signals: ...
    @overload
    def new(self, cdecl: Literal["struct lowsuper_exit_info *"]) -> ExitInfo: ...
    @overload
    def new(self, cdecl: Literal["int32_t *"]) -> Number: ...
    def string(self, cdata: Pointer | bytes) -> bytes: ...
    def buffer(self, cdata: Pointer) -> memoryview: ...
    def sizeof(self, cdecl: str) -> int: ...

class _Lib(Protocol):
    LOWSUPER_STEP_COUNT: int
    LOWSUPER_STEP_EXECVE: int
    LOWSUPER_ROLE_CHILD: int
    LOWSUPER_ROLE_NSINIT: int
    LOWSUPER_ROLE_SHIM: int
    LOWSUPER_ROLE_GUARD: int
    LOWSUPER_ROLE_PROBE: int
    LOWSUPER_HAS_CHDIR: int
    LOWSUPER_HAS_UID: int
    LOWSUPER_HAS_GID: int
    LOWSUPER_HAS_GROUPS: int
    LOWSUPER_HAS_UMASK: int
    LOWSUPER_HAS_NICE: int
    LOWSUPER_HAS_OOM_SCORE: int
    LOWSUPER_NO_NEW_PRIVS: int
    LOWSUPER_HAS_CAPS: int
    LOWSUPER_HAS_ROOT: int
    LOWSUPER_HAS_HOSTNAME: int
    LOWSUPER_HAS_NETNS: int
    LOWSUPER_OWN_PROC: int
    LOWSUPER_DIES_WITH_MASTER: int
    LOWSUPER_PLAN_MAGIC: int
    LOWSUPER_FDS_MAX: int
    LOWSUPER_HIGH_FD: int
    LOWSUPER_WAY_AUTO: int
    LOWSUPER_WAY_CLONE3: int
    LOWSUPER_WAY_CLONE: int
    LOWSUPER_STARTED: int
    LOWSUPER_EXITED: int
    LOWSUPER_SIGNAL: int
    LOWSUPER_SIGNAL_ALL: int
    LOWSUPER_KILL: int
    LOWSUPER_SURVIVE: int
    LOWSUPER_FENCE: int
    LOWSUPER_ROLE_LOGGER: int
    LOWSUPER_NAME_SIZE: int
    LOWSUPER_RING_HEAD: int
    LOWSUPER_LOG_APPEND: int
    LOWSUPER_LOG_READ: int
    LOWSUPER_LOG_BOTH: int
    LOWSUPER_LOG_LINK: int
    LOWSUPER_LOG_KIND: int
    LOWSUPER_LOG_OWNER: int
    LOWSUPER_LOG_NAMES: int
    LOWSUPER_LOG_READER: int
    LOWSUPER_LOG_NUMBERED: int
    LOWSUPER_LOG_TIME: int
    LOWSUPER_LOG_FIXED: int
    LOWSUPER_LOG_ADD: int
    LOWSUPER_LOG_SETTLED: int
    LOWSUPER_LOG_DROP: int
    LOWSUPER_LOG_ROTATE: int
    LOWSUPER_LOG_REOPEN: int
    LOWSUPER_LOG_FOLLOW: int
    LOWSUPER_LOG_READY: int
    LOWSUPER_LOG_LOST: int
    LOWSUPER_LOG_FAILED: int
    LOWSUPER_LOG_FULL: int
    LOWSUPER_LOG_NEWS: int
    LOWSUPER_HAS_LOG: int
    LOWSUPER_GUARD_READY: int
    LOWSUPER_GUARD_FULL: int
    LOWSUPER_GUARD_EXPIRED: int
    LOWSUPER_GUARD_GUARDED: int
    LOWSUPER_GUARD_ASKS: int
    LOWSUPER_GUARD_NOTED: int
    LOWSUPER_GUARD_DOMAINS_MAX: int
    LOWSUPER_GUARD_ADD: int
    LOWSUPER_GUARD_RENEW: int
    LOWSUPER_GUARD_DROP: int
    LOWSUPER_GUARD_QUIT: int
    LOWSUPER_GUARD_SURVIVES: int

    def lowsuper_spawn(self, spawn: Spawn, plan: bytes, size: int, name: bytes) -> int: ...
    def lowsuper_step_name(self, step: int) -> Pointer: ...
    def lowsuper_reap(self, pidfd: int, leave: int) -> int: ...
    def lowsuper_peek_child(self) -> int: ...
    def lowsuper_send_signal(self, pidfd: int, signo: int, group: int) -> int: ...
    def lowsuper_exit_info(self, pidfd: int, info: ExitInfo) -> int: ...
    def lowsuper_signalfd(self, signals: int) -> int: ...
    def lowsuper_signalfd_read(self, fd: int, signals: Signals, count: int) -> int: ...
    def lowsuper_timerfd(self) -> int: ...
    def lowsuper_timerfd_settime(self, fd: int, at_ns: int) -> int: ...
    def lowsuper_inotify(self) -> int: ...
    def lowsuper_inotify_add(self, fd: int, path: bytes, mask: int) -> int: ...
    def lowsuper_inotify_remove(self, fd: int, watch: int) -> int: ...
    def lowsuper_openat2(
        self, dir_fd: int, path: bytes, flags: int, mode: int, resolve: int
    ) -> int: ...
    def lowsuper_set_child_subreaper(self, on: int) -> int: ...
    def lowsuper_raise_ambient(self, cap: int) -> int: ...
    def lowsuper_close_range(self, first: int, last: int, flags: int) -> int: ...
    def lowsuper_set_pdeathsig(self, signo: int) -> int: ...
    def lowsuper_unshare(self, flags: int) -> int: ...
    def lowsuper_setns(self, fd: int, kind: int) -> int: ...
    def lowsuper_pivot_root(self, new_root: bytes, put_old: bytes) -> int: ...
    def lowsuper_mount(
        self, source: bytes, target: bytes, kind: bytes, flags: int, data: bytes
    ) -> int: ...
    def lowsuper_umount(self, path: bytes, flags: int) -> int: ...
    def lowsuper_open_tree(self, dir_fd: int, path: bytes, flags: int) -> int: ...
    def lowsuper_move_mount(
        self, from_fd: int, source: bytes, to_fd: int, target: bytes, flags: int
    ) -> int: ...
    def lowsuper_mount_setattr(
        self, dir_fd: int, path: bytes, flags: int, attributes: int, propagation: int
    ) -> int: ...
    def lowsuper_fsopen(self, kind: bytes) -> int: ...
    def lowsuper_fsconfig(
        self, fd: int, command: int, key: bytes | Pointer, value: bytes | Pointer, aux: int
    ) -> int: ...
    def lowsuper_fsmount(self, fd: int, attributes: int) -> int: ...
    def lowsuper_log_directory(
        self, path: bytes, name: Chars, shared: Number, reason: Number
    ) -> int: ...
    def lowsuper_log_file(
        self, dir_fd: int, name: Chars, shared: int, uid: int, access: int, reason: Number
    ) -> int: ...
    def lowsuper_log_open(self, path: bytes, uid: int, access: int, reason: Number) -> int: ...
    def lowsuper_receive(self, fd: int, message: Pointer, size: int, passed_fd: Number) -> int: ...
    def lowsuper_send(self, fd: int, message: Pointer, size: int, pass_fd: int) -> int: ...

ffi: _FFI
lib: _Lib
