"""What a configuration means, as immutable values: the result of `lowsuper.config`.

Names of users, groups and paths are kept as written, since only the running system knows
what they stand for: `plan` resolves them. Times are nanoseconds (`Ns`).
"""

from __future__ import annotations

from lowsuper.record import Record
from lowsuper.units import SECOND, Ns

PHASES = (
    "asap",
    "pre-jail",
    "post-jail",
    "in-jail",
    "as-root",
    "as-user",
    "as-user-atexit",
    "touch",
)
"""The hook phases, in the order in which they come; `touch` comes whenever a file changes."""


class Origin(Record):
    """Where a value was written."""

    file: str  # path as given, or "command line" / "environment"
    line: int  # counts from 1; 0 where there are no lines
    key: str
    value: str


class Problem(Record):
    """One thing that is wrong, or strange, in a configuration."""

    origin: Origin
    reason: str  # a phrase without a full stop: "there is no user of that name"
    daemon: str = ""  # the daemon it concerns, or ""
    advice: str = ""  # the way out: "did you mean pidfile?"
    is_error: bool = True  # False: a warning


class Command(Record):
    """What a daemon or a hook runs.

    `argv` is never empty. With `shell`, argv is `("/bin/sh", "-c", text)` and `compound` tells
    whether the shell stays as the parent of what it runs.
    """

    text: str  # as the user wrote it
    argv: tuple[str, ...]
    shell: bool = False
    compound: bool = False


class ResourceLimit(Record):
    """One resource limit of a daemon: see setrlimit(2). -1: no limit."""

    resource: str  # its name, in lower case and without RLIMIT_
    soft: int  # in the unit of the system call
    hard: int


class CgroupSetting(Record):
    """What is written to a file of a cgroup: see cgroups(7)."""

    file: str  # its name in the cgroup's directory: "memory.max"
    value: str  # in the kernel's own form


class Keep(Record):
    """A directory or file of the host that is seen in another place: in a jail, or by a daemon."""

    source: str  # absolute, on the host
    target: str  # absolute, in the jail or the root
    read_only: bool = False
    optional: bool = False  # nothing at `source` is no error


class Link(Record):
    """A network link of a jail's own. Addresses have the length of their prefix."""

    kind: str  # veth: a pair, with its other end on the host; macvlan: on a link of the host
    name: str  # in the jail
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()  # of the default routes: one of IPv4, one of IPv6
    mtu: int | None = None  # None: the kernel's
    mac: str | None = None  # None: always the same, made of the names of instance and link
    bridge: str | None = None  # the host's, that the other end of a veth is put on
    peer_addresses: tuple[str, ...] = ()  # of that other end
    host_name: str | None = None  # its name; None: made of the names of instance and link
    parent: str | None = None  # the host's link that a macvlan is on


class Readiness(Record):
    """How it is known that a daemon is ready."""

    kind: str  # exec, tcp, unix, file, pidfile, notify or fd
    target: str = ""  # command, HOST:PORT, path, or the number of a descriptor


class Output(Record):
    """Where the output of a daemon goes, both its standard output and its standard error."""

    kind: str  # stdout, stderr (the master's), null, file or ring; never configured: open
    path: str = ""  # of a file, as written: relative to the master's directory
    size: int = 0  # of a ring, in bytes
    fd: int = -1  # of a file that is open already, out of reach of who starts the daemon


class EnvChange(Record):
    """One change of an environment, in file order."""

    name: str
    value: str | None  # None: remove it


class Listen(Record):
    """A socket that a daemon finds open."""

    endpoint: Endpoint
    name: str = ""  # by which the daemon knows it; "": the daemon's


class DaemonSpec(Record):
    """One daemon, as configured. Its name is unique in the configuration."""

    name: str
    command: Command
    origin: Origin  # of the line, or of the section's first line
    control: bool = False  # when it ends, so does the master, with its exit code
    touch: tuple[str, ...] = ()  # files; a change of any restarts the daemon
    stop_signal: int = 15
    reload_signal: int | None = None  # None: stop_signal
    stdin: bool = False  # keep the master's standard input; else /dev/null
    user: str | None = None  # name or number; None: the master's
    group: str | None = None
    ns_pid: bool = False  # a pid namespace of its own
    ns_init: bool = True  # with lowsuper's small init as its pid 1
    chdir: str | None = None
    max_throttle: Ns | None = None  # the longest pause between two starts; None: 300 s
    stop_timeout: Ns | None = None  # from the stop signal to SIGKILL; None: MasterSpec.reload_mercy
    pidfile: str | None = None  # governed by this file: a smart daemon, which survives the master
    freq: Ns = Ns(10 * SECOND)  # how long its pidfile may take to name it
    daemonize: bool = False  # lowsuper writes the pidfile, not the daemon
    notify_pid: bool = False  # a stop or reload of the master is told to it by a signal
    kind: str = "simple"  # "oneshot": it does something once, and is ready when that ended well
    groups: tuple[str, ...] = ()  # names under which it can be addressed with others
    ready: Readiness | None = None  # how it is known that it is ready; None: when it runs
    start_timeout: Ns | None = None  # how long that may take; None: for ever
    watchdog: Ns | None = None  # the longest silence before it is taken for dead
    notify_access: str = ""  # "main" or "all" of its processes may notify; "": main, where needed
    requires: tuple[str, ...] = ()  # daemons that must be ready first, and without which this stops
    wants: tuple[str, ...] = ()  # daemons that must be ready first, if they can be had
    after: tuple[str, ...] = ()  # daemons whose start must have an outcome first
    restart: str = "always"  # "on-failure", "never"
    backoff: tuple[Ns, Ns] | None = None  # first and longest pause; None: as uWSGI does
    max_restarts: tuple[int, Ns] | None = None  # so many in that time, and it is given up
    on_give_up: str = "stop"  # "exit": the master ends, too
    success_codes: tuple[int, ...] = (0,)
    log: Output | None = None  # None: the master's standard output and standard error
    log_maxsize: int | None = None  # bytes at which its file is rotated
    log_max_age: Ns | None = None  # of its file's oldest line, at which it is rotated
    log_backups: int | None = None  # old files that are kept; None: 5
    limits: tuple[ResourceLimit, ...] = ()  # a later one of the same resource counts
    namespaces: tuple[str, ...] = ()  # of its own: mount, net, uts, ipc, cgroup; pid is `ns_pid`
    hostname: str | None = None  # in a uts namespace of its own
    netns: str | None = None  # path of a network namespace that it joins
    root: str | None = None  # its root directory, in a mount namespace of its own
    mounts: tuple[Keep, ...] = ()  # what is seen elsewhere, in a mount namespace of its own
    nice: int | None = None  # None: the master's
    oom_score: int | None = None  # oom_score_adj of proc(5); None: the master's
    umask: int | None = None  # None: the master's
    no_new_privs: bool = False  # nothing that it executes gains privileges
    caps: tuple[int, ...] | None = None  # that it keeps; None: those of its user
    cgroup: tuple[CgroupSetting, ...] = ()  # of its leaf; a later one of the same file counts
    env: tuple[EnvChange, ...] = ()  # its own, after all others
    envfile: tuple[str, ...] = ()  # read at each start; - before one that need not be there
    clean_env: bool = False  # nothing of the master's environment
    listen: tuple[Listen, ...] = ()  # sockets that the master opens and keeps for it
    legion: str | None = None  # it runs only while this node is the lord of that legion


NAMESPACE, CHROOT, PIVOT, UNSHARE = "namespace", "chroot", "pivot-root", "unshare"
"""The ways into a jail: the options that make it. The last one leaves the root as it is."""


class Jail(Record):
    """The root file system and the namespaces that the master and its daemons live in."""

    root: str | None  # absolute; None: the root is that outside, or that of what is joined
    hostname: str | None = None  # None: the host's
    keeps: tuple[Keep, ...] = ()  # attached in this order
    net: bool = False  # a network namespace of its own
    overlay: bool = False  # what is written to the root goes to memory, and away with the jail
    way: str = NAMESPACE
    namespaces: tuple[str, ...] = ("pid", "mount", "uts", "ipc")  # of its own, besides `net`
    old_root: str | None = None  # of pivot-root: where in the new root the old one stays
    joins: str | None = None  # socket of a master: what is not of its own is that one's
    post_jail: str = "outside"  # where these hooks run: "outside", "inside", or "" for nowhere
    netns: str | None = None  # path of a network namespace that it joins, in place of `net`
    links: tuple[Link, ...] = ()  # that its network has besides loopback

    @property
    def is_elsewhere(self) -> bool:
        """Whether a path in it is not the same file as outside."""
        return self.root is not None or self.joins is not None

    @property
    def has_cgroups(self) -> bool:
        """Whether the master in it finds the cgroups, and a guard outlives it."""
        return not (self.is_elsewhere or {"pid", "cgroup"} & {*self.namespaces})


class ControlRule(Record):
    """Who else than root and the master's user may ask what over the control socket."""

    who: str  # user, or @group; names or numbers
    verbs: tuple[str, ...]


class Endpoint(Record):
    """Where something is served."""

    text: str  # as it was written
    kind: str  # tcp, tcp6, unix or abstract; udp, udp6
    host: str  # address; of the last two: path, or name without its @
    port: int = 0


class Secret:
    """A text that is never shown: not by repr, not by a message."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        """Keep it."""
        self.text = text

    def __repr__(self) -> str:
        """Return what may be seen of it."""
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        """Return whether the texts are the same."""
        return isinstance(other, Secret) and other.text == self.text

    def __hash__(self) -> int:
        """Return the hash of the text."""
        return hash(self.text)


LEGION_EVENTS = ("setup", "join", "lord", "unlord", "death", "node-joined", "node-left")
"""What hooks of a legion follow."""


class LegionHook(Record):
    """What is done when something happens to a legion, or to this node in it."""

    event: str  # one of LEGION_EVENTS
    origin: Origin
    command: Command | None = None  # None: `text` is said
    text: str = ""


class Etcd(Record):
    """The etcd cluster that elects the lord of a legion."""

    servers: tuple[str, ...]  # URLs, http or https
    ttl: Ns  # of the lease
    ca: str | None = None  # files, in PEM: whom to believe...
    certificate: str | None = None  # ...and who we are
    key: str | None = None
    user: str | None = None
    password: Secret | None = None


class Legion(Record):
    """Nodes, one of which is the lord. In a message its `origin` has no secret."""

    name: str
    origin: Origin
    valor: int = 0  # 0: an arbiter, which votes and is never the lord; at most 65535
    address: Endpoint | None = None  # where packets come in; None: etcd elects
    multicast: bool = False  # the address is a group
    nodes: tuple[Endpoint, ...] = ()  # where packets go to
    cipher: str = ""  # as OpenSSL names it, or aes-256-gcm, chacha20-poly1305
    secret: Secret = Secret("")
    iv: str | None = None  # None: all "0"
    quorum: int = 0
    freq: Ns = Ns(3 * SECOND)
    tolerance: Ns = Ns(15 * SECOND)
    skew_tolerance: Ns = Ns(60 * SECOND)
    death_on_lord_error: Ns = Ns(0)  # how long it keeps out after a lord hook has failed
    scroll: str = ""
    scroll_max_size: int = 4096  # bytes; the lord's, if longer, is not shown
    multicast_ttl: int = 1
    hooks: tuple[LegionHook, ...] = ()  # in file order
    etcd: Etcd | None = None

    @property
    def is_modern(self) -> bool:
        """Whether packets are authenticated, and only lowsuper understands them."""
        return self.cipher in ("aes-256-gcm", "chacha20-poly1305")


# What a hook does.


class Exec(Record):
    """Run a command and wait for its end."""

    command: Command
    safe: bool = False  # its failure is said, and nothing more


class Mount(Record):
    """Mount something, in the master's mount namespace: see mount(2)."""

    fstype: str
    source: str
    target: str
    flags: int = 0  # MS_*
    data: str = ""


class Unmount(Record):
    """Unmount something: see umount2(2)."""

    target: str
    flags: int = 0  # MNT_*
    recursive: bool = False  # and first what is mounted below it


class Write(Record):
    """Write a text to a file, which is made where it is missing."""

    path: str
    text: str
    append: bool = False


class WriteFifo(Record):
    """Write a text to a FIFO, if somebody reads it."""

    path: str
    text: str


class Unlink(Record):
    """Remove a file."""

    path: str


class MakeDirectory(Record):
    """Make a directory."""

    path: str


class ChangeMode(Record):
    """Change the mode of a file."""

    path: str
    mode: int
    add: bool = False  # to what it has


class ChangeOwner(Record):
    """Change the owner and the group of a file; names or numbers."""

    path: str
    user: str
    group: str


class ChangeDirectory(Record):
    """Change the directory of the master, and so of all that it starts from then on."""

    path: str


class SetVariable(Record):
    """Change the environment of all that is started from then on."""

    change: EnvChange


class Print(Record):
    """Say a line."""

    text: str


class Exit(Record):
    """Stop the master."""

    code: int


FileDeed = Mount | Unmount | Write | WriteFifo | Unlink | MakeDirectory | ChangeMode | ChangeOwner
"""What a process of its own does for the master, since it may block."""

Deed = Exec | FileDeed | ChangeDirectory | SetVariable | Print | Exit


class Hook(Record):
    """What is done at one phase. `MasterSpec.hooks` has them in their order within a phase."""

    phase: str  # one of PHASES
    deed: Deed
    origin: Origin  # its key and value are what messages show
    private: bool = False  # the value is not shown
    path: str = ""  # the file that is watched, for `touch`


class MasterSpec(Record):
    """A whole configuration: the master's own options and its daemons in file order."""

    name: str  # the instance: `instance`, else the first file's base name without .ini
    files: tuple[str, ...] = ()  # every file read, absolute, in the order of reading
    daemons: tuple[DaemonSpec, ...] = ()
    hooks: tuple[Hook, ...] = ()
    env: tuple[EnvChange, ...] = ()
    chdir: str | None = None
    umask: int | None = None
    user: str | None = None  # the master drops to it after the as-root hooks
    group: str | None = None
    add_groups: tuple[str, ...] = ()  # supplementary groups besides the user's own
    caps: tuple[int, ...] | None = (
        None  # that the master keeps from then on; None: those of its user
    )
    master_as_root: bool = False  # user and group are the daemons' default, the master stays root
    reload_mercy: Ns = Ns(8 * SECOND)  # stop_timeout of daemons that have none of their own
    die_on_term: bool = True  # False: SIGTERM is a brutal reload, as in uWSGI 2.0
    exit_on_reload: bool = False
    pidfile: str | None = None  # written before privileges are dropped
    pidfile2: str | None = None  # written after
    safe_pidfile: str | None = None  # as pidfile, but removed only if it still holds our pid
    daemonize: str | None = None  # log file; go to the background before the first hook
    daemonize2: str | None = None  # log file; the caller waits until the daemons were started
    logto: str | None = None
    logto2: str | None = None  # opened after privileges are dropped
    log_date: str | None = None  # strftime format; None: lines carry no date
    log_format: str = "text"  # of the master's own lines: text or json
    log_maxsize: int | None = None  # bytes at which the log file is rotated
    log_max_age: Ns | None = None  # of its oldest line, at which it is rotated
    log_backups: int | None = None  # old files, PATH.1 the newest; None: named by the two below
    log_backupname: str | None = None  # the old file; None: PATH.UNIXTIME
    touch_logrotate: tuple[str, ...] = ()  # files whose change rotates all logs
    touch_logreopen: tuple[str, ...] = ()  # files whose change has all logs opened again
    touch_reload: tuple[str, ...] = ()
    procname_master: str | None = None  # process title of the master
    auto_procname: bool = False
    procname_prefix: str = ""
    procname_append: str = ""
    honour_stdin: bool = False  # the master keeps its standard input
    daemons_honour_stdin: bool = False
    vacuum: bool = False  # remove pidfiles and fifos that we made at the end
    master_fifo: tuple[str, ...] = ()  # slot 0, 1, ...
    state_dir: str | None = None  # of the records of smart daemons; None: below /run/lowsuper
    kill_domain: str = "auto"  # auto, cgroup or shim: the rung for daemons without ns_pid
    cgroup: str | None = None  # directory of the cgroup that the master enters; made if missing
    cgroup_settings: tuple[CgroupSetting, ...] = ()  # of that cgroup, in this order
    cgroup_mode: int | None = None  # of that directory; None: 0755, or as it is
    jail: Jail | None = None  # None: the master lives where it was started
    runtime_dir: str | None = None  # of lock and control socket; None: /run/lowsuper, or the user's
    control_socket: str | None = None  # absolute, or "none"; None: in the runtime directory
    control_mode: int | None = None  # None: 0660, or 0666 where others are allowed something
    control_owner: tuple[str, str | None] | None = None  # user and group; None: the master's
    control_allow: tuple[ControlRule, ...] = ()
    setns_socket: str | None = None  # at which other masters get our namespaces
    setns_skip: tuple[str, ...] = ()  # those that they do not get, as in /proc/PID/ns
    stats: Endpoint | None = None  # where uWSGI's statistics are served
    stats_http: bool = False  # over HTTP
    stats_minified: bool = False  # without white space
    metrics: Endpoint | None = None  # where OpenMetrics are served
    legions: tuple[Legion, ...] = ()
    legion_user: str | None = None  # whom the process of the legions becomes; None: a free uid
    socket_mode: int | None = None  # of the sockets of these; None: as the umask is
    notices: tuple[Problem, ...] = ()  # warnings, to be shown by check and at start
    origins: tuple[Origin, ...] = ()  # of the master's own options, in file order


def fill_in(spec: MasterSpec) -> MasterSpec:
    """Return the configuration with the daemons' own defaults taken from the master's options."""
    defaults: dict[str, object] = {"stop_timeout": spec.reload_mercy}
    if spec.master_as_root and spec.caps is not None:
        defaults["caps"] = spec.caps
    return spec.replace(
        daemons=tuple(
            daemon.replace(
                **{key: value for key, value in defaults.items() if getattr(daemon, key) is None}
            )
            for daemon in spec.daemons
        )
    )
