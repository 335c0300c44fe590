"""The one table of the instance's options, and how their names are looked up.

An option is known in one of four ways: it acts while files are read (`READER_OPTIONS`), it is
applied (`OPTIONS`), it belongs to a later version and is refused (`is_refused`), or it is an
application server's and does nothing (`config.known`). Any other key is a placeholder.
"""

from __future__ import annotations

from lowsuper.record import Record

# How a value is read and where it goes; `config.build` has one function for each.
FLAG = "flag"  # a bool field
TEXT = "text"  # a field with one text; empty is an error
DIRECTORY = "directory"  # a field with an absolute path
MODE = "mode"
DURATION = "duration"
TEXTS = "texts"  # appended to a tuple field
EXEC_HOOK = "exec-hook"  # `field` is the phase, of this kind and the next three
HOOK = "hook"
MOUNT_HOOK = "mount-hook"
UMOUNT_HOOK = "umount-hook"
TOUCH_HOOK = "touch-hook"
TOUCH_EXEC = "touch-exec"
ENV = "env"
UNENV = "unenv"
ENVDIR = "envdir"
DAEMON = "daemon"  # `field` is "control", or ""
DAEMON2 = "daemon2"
SMART = "smart"  # `field` is "daemonize", or ""
LOG_DATE = "log-date"
LOG = "log"  # `field` says which function of `config.logs` reads it
NAME = "name"
PREFIX = "prefix"  # a text that a blank is added to
RUNG = "rung"
CONTROL = "control"  # `field` says which function of `config.control` reads it
CAPS = "caps"
NAMESPACE = "namespace"  # `field` is a key of what `config.jail` reads, up to JAIL_FLAG
CHROOT = "chroot"
PIVOT = "pivot"
UNSHARE = "unshare"
SETNS = "setns"
SETNS_SOCKET = "setns-socket"
SETNS_SKIP = "setns-skip"
KEEP = "keep"
JAIL_FLAG = "jail-flag"
NETWORK = "network"  # a boolean, or what network is joined
LINK = "link"
STATS = "stats"  # an address
STATS_MODE = "stats-mode"
CGROUP = "cgroup"  # `field` is of what `config.cgroups` reads
LEGION = "legion"  # `config.legion` reads it
LEGION_DAEMON = "legion-daemon"  # `field` is as of DAEMON
LEGION_SMART = "legion-smart"  # `field` is as of SMART
ACCEPTED = "accepted"  # what it asks for is always so


class OptionRow(Record):
    """One option of the instance."""

    names: tuple[str, ...]  # the first is the one to show
    kind: str
    field: str = ""  # of MasterSpec
    help: str = ""
    short: str = ""  # its letter on the command line


def _row(names: str, kind: str, field: str = "", help_: str = "", short: str = "") -> OptionRow:
    return OptionRow(tuple(names.split()), kind, field, help_, short)


def _hook_rows(phase: str, when: str, *, mounts: bool = True) -> tuple[OptionRow, ...]:
    """Return the rows of one phase; as in uWSGI, all are root's but the last two."""
    rows = (
        _row(f"exec-{phase}", EXEC_HOOK, phase, f"run a command {when}"),
        _row(f"hook-{phase}", HOOK, phase, f"do something {when}"),
        _row(f"mount-{phase}", MOUNT_HOOK, phase, f"mount a file system {when}"),
        _row(f"umount-{phase}", UMOUNT_HOOK, phase, f"unmount a file system {when}"),
    )
    return rows if mounts else rows[:2]


OPTIONS = (
    _row("attach-daemon", DAEMON, "", "run a command, and again whenever it ends"),
    _row("attach-control-daemon", DAEMON, "control", "the same; when it ends, lowsuper stops"),
    _row("attach-daemon2", DAEMON2, "", "a daemon given as key=value,key=value"),
    _row("smart-attach-daemon", SMART, "", "run a command that survives lowsuper"),
    _row("smart-attach-daemon2", SMART, "daemonize", "the same; lowsuper writes the pidfile"),
    _row("daemons-honour-stdin", FLAG, "daemons_honour_stdin", "daemons keep standard input"),
    _row("honour-stdin", FLAG, "honour_stdin", "keep standard input"),
    _row("env", ENV, "", "set an environment variable: NAME=value"),
    _row("unenv", UNENV, "", "remove an environment variable"),
    _row("envdir", ENVDIR, "", "set a variable for each file of a directory"),
    _row("chdir", TEXT, "chdir", "working directory of the master and its daemons"),
    _row("umask", MODE, "umask", "file mode creation mask, in octal"),
    _row("uid", TEXT, "user", "user that the master becomes"),
    _row("gid", TEXT, "group", "group that the master becomes"),
    _row("add-gid", TEXTS, "add_groups", "a supplementary group"),
    _row("cap", CAPS, "caps", "capabilities that the master and its daemons keep, or none"),
    _row("keep-caps", ACCEPTED, "", "accepted: cap keeps them over the change of user"),
    _row("master-as-root", FLAG, "master_as_root", "uid and gid are for daemons only"),
    _row("reload-mercy", DURATION, "reload_mercy", "time between the stop signal and SIGKILL"),
    _row("die-on-term", FLAG, "die_on_term", "SIGTERM stops (the default)"),
    _row("exit-on-reload", FLAG, "exit_on_reload", "end where a reload is asked for"),
    _row("pidfile", TEXT, "pidfile", "pidfile, written before privileges are dropped"),
    _row("pidfile2", TEXT, "pidfile2", "pidfile, written after"),
    _row("safe-pidfile", TEXT, "safe_pidfile", "pidfile, removed only while it is ours"),
    _row("state-dir", DIRECTORY, "state_dir", "where smart daemons are remembered"),
    _row("runtime-dir", DIRECTORY, "runtime_dir", "where the instance's lock and socket are"),
    _row("control-socket", CONTROL, "control_socket", "path of the control socket, or none"),
    _row("control-mode", MODE, "control_mode", "its mode, in octal"),
    _row("control-owner", CONTROL, "control_owner", "who owns it, and may do everything there"),
    _row("control-allow", CONTROL, "control_allow", "what others may do there"),
    _row("daemonize", TEXT, "daemonize", "go to the background and log to this file", "d"),
    _row("daemonize2", TEXT, "daemonize2", "the same, once the daemons were started"),
    _row("logto", TEXT, "logto", "log file"),
    _row("logto2", TEXT, "logto2", "log file, opened after privileges are dropped"),
    _row("log-maxsize", LOG, "log_maxsize", "rotate the log file at this size"),
    _row("log-max-age", LOG, "log_max_age", "rotate the log file at this age"),
    _row("log-backups", LOG, "log_backups", "keep so many old log files: PATH.1, PATH.2, ..."),
    _row("log-backupname", LOG, "log_backupname", "name of the old log file, else PATH.UNIXTIME"),
    _row("log-format", LOG, "log_format", "of lowsuper's own lines: text or json"),
    _row("touch-logrotate", TEXTS, "touch_logrotate", "rotate logs when this file changes"),
    _row("touch-logreopen", TEXTS, "touch_logreopen", "open logs again when this file changes"),
    _row("log-date logdate", LOG_DATE, "log_date", "begin log lines with the date"),
    _row("touch-reload", TEXTS, "touch_reload", "reload when this file changes"),
    _row("procname-master procname", TEXT, "procname_master", "process title of the master"),
    _row("auto-procname", FLAG, "auto_procname", "set the process title"),
    _row("procname-prefix", TEXT, "procname_prefix", "begin process titles with this"),
    _row("procname-prefix-spaced", PREFIX, "procname_prefix", "the same and a blank"),
    _row("procname-append", TEXT, "procname_append", "end process titles with this"),
    _row("vacuum", FLAG, "vacuum", "remove pidfiles and fifos at the end"),
    _row("master", ACCEPTED, "", "accepted: there is always a master", "M"),
    _row("master-fifo", TEXTS, "master_fifo", "take commands from this fifo"),
    _row("touch-exec", TOUCH_EXEC, "touch", "run a command when this file changes"),
    *_hook_rows("asap", "first of all"),
    *_hook_rows("pre-jail", "before the jail is made"),
    *_hook_rows("post-jail", "outside the jail, when it has been made"),
    *_hook_rows("in-jail", "in the jail"),
    *_hook_rows("as-root", "before privileges are dropped"),
    *_hook_rows("as-user", "after privileges are dropped", mounts=False),
    *_hook_rows("as-user-atexit", "at the end", mounts=False),
    _row("hook-touch", TOUCH_HOOK, "touch", "do something when this file changes"),
    _row("instance", NAME, "name", "name of this instance"),
    _row("namespace ns", NAMESPACE, "namespace", "live in a jail: ROOT[:HOSTNAME]"),
    _row("namespace-keep-mount", KEEP, "keeps", "show this of the host in the jail"),
    _row("namespace-net ns-net", NETWORK, "net", "the jail has a network of its own, or joins one"),
    _row("namespace-net-link", LINK, "links", "a network link of the jail"),
    _row("namespace-overlay", JAIL_FLAG, "overlay", "what is written in the jail stays in memory"),
    _row("chroot", CHROOT, "chroot", "live in this root directory"),
    _row("pivot-root", PIVOT, "pivot-root", "the same, with the old root at OLD or nowhere"),
    _row("unshare", UNSHARE, "unshare", "have such namespaces: fs, ipc, uts, net, pid, cgroup"),
    _row("unshare2", UNSHARE, "unshare2", "the same; uWSGI has them after the change of root"),
    _row("cgroup", CGROUP, "cgroup", "live in this cgroup (version 2), which is made if missing"),
    _row("cgroup-opt", CGROUP, "cgroup_settings", "write to a file of that cgroup: FILE=VALUE"),
    _row("cgroup-dir-mode", CGROUP, "cgroup_mode", "mode of that cgroup's directory"),
    _row("setns", SETNS, "setns", "join the namespaces of the master that shares them here"),
    _row("setns-socket", SETNS_SOCKET, "setns_socket", "let others join our namespaces here"),
    _row("setns-socket-skip setns-skip", SETNS_SKIP, "setns_skip", "but not this one"),
    _row("setns-preopen", ACCEPTED, "", "accepted: what is shared is always at hand"),
    _row("stats stats-server", STATS, "stats", "serve uWSGI's statistics here"),
    _row("stats-http", FLAG, "stats_http", "serve them over HTTP"),
    _row("stats-minified stats-min", FLAG, "stats_minified", "leave out their white space"),
    _row("stats-no-cores", ACCEPTED, "", "accepted: there are no cores"),
    _row("stats-no-metrics", ACCEPTED, "", "accepted: see metrics for ours"),
    _row("metrics", STATS, "metrics", "serve OpenMetrics here"),
    _row("chmod-socket chmod", STATS_MODE, "socket_mode", "mode of these sockets, in octal"),
    _row("legion", LEGION, "", "be a node of a legion: NAME ADDRESS VALOR CIPHER:SECRET [IV]"),
    _row("legion-mcast", LEGION, "", "the same with a multicast group, to which all is sent"),
    _row("legion-node", LEGION, "", "send to this node, too: NAME ADDRESS"),
    _row("legion-quorum", LEGION, "", "votes that a lord needs: NAME N"),
    _row("legion-freq", LEGION, "", "time between two packets (3 s)"),
    _row("legion-tolerance", LEGION, "", "silence after which a node is given up (15 s)"),
    _row("legion-skew-tolerance", LEGION, "", "greatest age of a packet (60 s)"),
    _row("legion-death-on-lord-error", LEGION, "", "keep out so long after a failed lord hook"),
    _row("legion-scroll", LEGION, "", "what this node tells of itself: NAME TEXT"),
    _row("legion-scroll-max-size", LEGION, "", "longest scroll that is shown, in bytes"),
    _row("legion-scroll-list-max-size", LEGION, "", "accepted: the list has room for all"),
    _row("legion-setup", LEGION, "", "at the start: NAME cmd:COMMAND or NAME log:TEXT"),
    _row("legion-join", LEGION, "", "when there is a quorum for the first time"),
    _row("legion-lord", LEGION, "", "before the daemons start, when this node is the lord"),
    _row("legion-unlord", LEGION, "", "when it is the lord no more, and the daemons have ended"),
    _row("legion-death", LEGION, "", "at the end"),
    _row("legion-node-joined", LEGION, "", "when another node has come"),
    _row("legion-node-left", LEGION, "", "when another node has gone"),
    _row("legion-attach-daemon", LEGION_DAEMON, "", "run a command on the lord: NAME COMMAND"),
    _row("legion-smart-attach-daemon", LEGION_SMART, "", "the same: NAME PIDFILE COMMAND"),
    _row("legion-smart-attach-daemon2", LEGION_SMART, "daemonize", "lowsuper writes the pidfile"),
    _row("legion-etcd", LEGION, "", "let etcd elect: NAME http://HOST:PORT[,...] [TTL]"),
    _row("legion-etcd-valor", LEGION, "", "preference for this node: NAME N"),
    _row("legion-etcd-ca", LEGION, "", "whom to believe: NAME FILE"),
    _row("legion-etcd-cert", LEGION, "", "certificate of this node: NAME FILE"),
    _row("legion-etcd-key", LEGION, "", "its key: NAME FILE"),
    _row("legion-etcd-user", LEGION, "", "NAME USER:PASSWORD"),
    _row("legion-user", TEXT, "legion_user", "whom the process of the legions becomes"),
    _row("multicast-ttl", LEGION, "", "how far packets to a group go (1)"),
    _row("kill-domain", RUNG, "kill_domain", "auto, cgroup or shim"),
)
"""Every option that is applied."""

HOOK_KINDS = (HOOK, MOUNT_HOOK, UMOUNT_HOOK, EXEC_HOOK, TOUCH_HOOK, TOUCH_EXEC)
"""In the order in which a phase runs its hooks, which is uWSGI's: `config.hooks` reads them."""

FLAG_KINDS = frozenset((FLAG, ACCEPTED))

READER_OPTIONS = {
    "ini": True,
    "config": True,
    "include": True,
    "inherit": True,
    "set": True,
    "set-ph": True,
    "set-placeholder": True,
    "declare-option": True,
    "declare-option2": True,
    "strict": False,
    "early-envdir": True,
    "for": True,
    "for-glob": True,
    "for-times": True,
    "for-readline": True,
    "if-opt": True,
    "if-not-opt": True,
    "if-env": True,
    "if-not-env": True,
    "ifenv": True,
    "if-reload": False,
    "if-not-reload": False,
    "if-hostname": True,
    "if-not-hostname": True,
    "if-hostname-match": True,
    "if-not-hostname-match": True,
    "if-exists": True,
    "if-not-exists": True,
    "ifexists": True,
    "if-plugin": True,
    "if-not-plugin": True,
    "ifplugin": True,
    "if-file": True,
    "if-not-file": True,
    "if-dir": True,
    "if-not-dir": True,
    "ifdir": True,
    "if-directory": True,
    "else": False,
    "end": False,
    "endfor": False,
    "end-for": False,
    "endif": False,
    "end-if": False,
}
"""What acts while files are read, and whether it takes an argument on the command line."""

_ADVICE = {
    "chdir2": "use chdir",
    "drop-after-apps": "uid and gid act after the as-root hooks",
    "drop-after-init": "uid and gid act after the as-root hooks",
    "force-cwd": "start lowsuper in that directory",
    "immediate-gid": "use gid",
    "immediate-uid": "use uid",
    "inject-after": "use include",
    "inject-before": "use include",
    "no-initgroups": "give gid and a number as uid: the other groups are then cleared",
    "resolve": "write the address into a file and use @(file)",
    "safe-pidfile2": "use safe-pidfile",
}
_OTHER_FORMATS = ("xml", "xmlconfig", "yaml", "yml", "json", "js")

NAMES = {name: row for row in OPTIONS for name in row.names}
"""Every name of an option that is applied."""


def normalize(name: str) -> str:
    """Return an option's name with hyphens for underscores."""
    return name.replace("_", "-")


def find_row(name: str) -> OptionRow | None:
    """Return the row of an option that is applied, hyphen and underscore alike, or None."""
    return NAMES.get(name) or NAMES.get(normalize(name))


def find_reader_option(name: str) -> str:
    """Return the name of an option that acts while files are read, or ""."""
    name = normalize(name)
    return name if name in READER_OPTIONS else ""


def is_refused(name: str) -> bool:
    """Tell whether an option belongs to a later version, or to another format."""
    from lowsuper.config.known import LATER  # long, and many files hold only applied options

    name = normalize(name)
    return name in LATER or name in _OTHER_FORMATS


def explain_refusal(name: str) -> tuple[str, str]:
    """Return why a refused option is refused, and advice or ""."""
    name = normalize(name)
    if name in _OTHER_FORMATS:
        return "lowsuper reads ini files only", "write the options into a [uwsgi] section"
    return "is not available in this version of lowsuper", _ADVICE.get(name, "")


def is_ignored(name: str) -> bool:
    """Tell whether an option is one of an application server's."""
    from lowsuper.config.known import APPLICATION

    return name in APPLICATION or normalize(name) in APPLICATION


def is_option(name: str) -> bool:
    """Tell whether a name is an option of any kind, and so cannot be a placeholder."""
    return (
        find_row(name) is not None
        or bool(find_reader_option(name))
        or is_refused(name)
        or is_ignored(name)
    )


def list_names() -> list[str]:
    """Return every known name, for suggestions: what is applied comes first."""
    from lowsuper.config.known import APPLICATION, LATER

    return [*NAMES, *READER_OPTIONS, *sorted(LATER), *sorted(APPLICATION)]


def find_short(letter: str) -> str:
    """Return the name of the option that has a letter on the command line, or ""."""
    from lowsuper.config.known import SHORT

    for row in OPTIONS:
        if row.short == letter:
            return row.names[0]
    return {"S": "set"}.get(letter) or SHORT.get(letter, "")


def takes_argument(name: str) -> bool:
    """Tell whether a known option is followed by an argument on the command line."""
    from lowsuper.config.known import WITHOUT_ARGUMENT

    row = find_row(name)
    if row is not None:
        return row.kind not in FLAG_KINDS and row.kind not in (LOG_DATE, STATS_MODE)
    name = normalize(name)
    return READER_OPTIONS.get(name, name not in WITHOUT_ARGUMENT)
