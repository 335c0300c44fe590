"""Who a process is, and whether it is the daemon that a pidfile claims it to be.

A pidfile is a claim by whoever may write it. Here are the values that the claim is held against
(the process as the kernel shows it, the record that lowsuper made of its daemon, the configured
program) and the rules of belief. Pure: `kernel.inspect`, `kernel.pidfile` and `kernel.records`
look, this module judges.
"""

from __future__ import annotations

from lowsuper.record import Record


class ProcessId(Record):
    """One process of one boot, whatever happens to its number later."""

    pid: int
    start: int  # clock ticks since boot: field 22 of proc_pid_stat(5)
    inode: int = 0  # of its pidfd, the same for every pidfd of it; 0: unknown (Linux before 6.9)


class Process(Record):
    """A live process, pinned by a pidfd while it was looked at: see `kernel.inspect`."""

    id: ProcessId
    uid: int  # effective
    gid: int
    exe: str = ""  # what /proc/PID/exe links to; "" where it cannot be read
    exe_id: tuple[int, int] | None = None  # device and inode of the executable
    argv: tuple[str, ...] = ()  # its command line, as far as it is legible
    is_kernel: bool = False  # a kernel thread
    inner_pid: int = 0  # its number in its own pid namespace
    comm: str = ""  # what it calls itself: field 2 of proc_pid_stat(5)
    since: int = 0  # when it began, ns of CLOCK_REALTIME by today's clock; 0: unknown


class Recorded(Record):
    """What lowsuper noted of a smart daemon, for the next master."""

    pidfile: str  # absolute path
    boot_id: str
    main: ProcessId | None = None  # None: launched, and not named by its pidfile yet
    exe: str = ""
    leaf: str = ""  # directory of its cgroup, or ""
    keeper_kind: str = ""  # "pidns" or "shim": its kill domain is kept by a process of ours
    keeper: ProcessId | None = None


class Reading(Record):
    """What was found at the path of a pidfile: see `kernel.pidfile`."""

    pid: int = 0  # 0: there is no number to be had, and `reason` says why
    reason: str = ""  # a phrase about the file: "is not there", "is empty", "is a FIFO"
    missing: bool = False  # there is no such file
    owner: int = -1  # uid of the file; -1: unknown
    safe: bool = False  # the file and every directory above can be written by root (or us) only
    complete: bool = False  # its first line ends in a newline
    changed: int = 0  # st_ctime_ns; 0: unknown


class Program(Record):
    """The configured program, looked up: what a process must run to be believed for it."""

    path: str  # as found
    exe_ids: tuple[tuple[int, int], ...]  # device and inode of the executable, or the interpreter
    script: str = ""  # for an interpreter: what the command line must hold besides
    script_path: str = ""  # the same as an absolute path, where it is a file
    interpreter: str = ""  # base name of the executable that reads `script`, for its options


NO_SCRIPT = "\0"
"""A `Program.script` that no command line can hold: the configured one tells too little."""


# Is it the same?


def is_same(one: ProcessId, other: ProcessId) -> bool:
    """Tell whether two identities of one boot are of the same process.

    The inode of the pidfd decides where both have one; number and start time must agree anyway.
    """
    if one.inode and other.inode and one.inode != other.inode:
        return False
    return one.pid == other.pid and one.start == other.start


def matches(recorded: Recorded, process: Process, boot_id: str) -> bool:
    """Tell whether a live process is the main process that was recorded.

    Args:
        recorded: of an earlier look, or an earlier master.
        process: what has its number now.
        boot_id: of this boot; after another boot nothing matches.
    """
    main = recorded.main
    if main is None or not boot_id or recorded.boot_id != boot_id:
        return False
    if not is_same(main, process.id):
        return False
    if main.inode and process.id.inode:
        return True
    # Without inodes a number that was given again within a tick (10 ms) would look the same.
    return not (recorded.exe and process.exe) or recorded.exe == process.exe


# Is it to be believed?


class Claim(Record):
    """What a pidfile says, and all that is known besides the process that it names.

    Filled in by the shell: `reading` by `kernel.pidfile`, `program` by
    `kernel.inspect.look_up_program`, once for a configuration.
    """

    reading: Reading
    own_pid: int  # of the master
    in_domain: bool = False  # the process is in this daemon's own kill domain
    other: str = ""  # the process is in the kill domain of somebody else: name of that daemon
    program: Program | None = None  # the configured program; None: not known for certain
    owners: tuple[int, ...] = ()  # uids whose files count: the master's, the daemon's configured
    helpers: tuple[tuple[int, int], ...] = ()  # device and inode of lowsuper's own helper
    has_init: bool = False  # inner pid 1 of the process's namespace is lowsuper's init
    negligent: str = ""  # who does not reap what the number names: "its parent, pid 1 (sleep)"


class Verdict(Record):
    """Whether a process is believed to be the daemon."""

    believed: bool
    why: str  # a phrase, for or against: "it runs /usr/bin/memcached"


IN_DOMAIN = "it is in the daemon's kill domain"
RECORDED = "recorded by lowsuper"
_CLOCK_SLACK = 5_000_000_000
"""By how many ns a process may seem younger than its pidfile: clocks are set now and then."""


def judge(process: Process, claim: Claim) -> Verdict:
    """Return whether the process that a pidfile names is believed to be the daemon, and why.

    Whatever else holds, never: pid 1, the master, kernel threads, lowsuper's guard, shims and
    inits, what belongs to another daemon, and what a stranger's file names. A stranger is
    whoever is not root, not in `claim.owners` and not the user of the process itself. That holds
    for processes of the daemon's own kill domain as well: in a directory that others can write,
    one who is first to make the file would choose which process of the daemon is watched, and so
    could have it restarted at will by naming one that is about to end. A daemon that drops to a
    user that is not configured is not hit by it: either it writes the file before, as root, or it
    has become the user who owns the file.

    Then it is believed because it is in the daemon's kill domain; or because only root (or we)
    could write the file, if the line is whole, whatever the process runs; or because it runs the
    configured program, whoever it runs as. The last two do not hold if the file was last changed
    before the process began, since the number was another's then: files outlive a boot, and low
    numbers come again. A clock that was set by more than some seconds in between (an appliance
    without one, a machine thawed from a snapshot) can let a file look older than it is; then a
    daemon that has no record is not adopted.

    Args:
        process: live, pinned by a pidfd that the caller holds and polls before it acts.
        claim: about this process; `in_domain`, `other` and `has_init` are about it too.
    """
    bar = find_bar(process, claim)
    if bar:
        return Verdict(False, bar)
    if claim.in_domain:
        return Verdict(True, IN_DOMAIN)
    reading = claim.reading
    if reading.changed and process.since > reading.changed + _CLOCK_SLACK:
        return Verdict(False, "the file is older than the process")
    if reading.safe and reading.complete:
        who = f" and uid {reading.owner}" if reading.owner > 0 else ""
        return Verdict(True, f"only root{who} can write the pidfile")
    mismatch = _find_mismatch(process, claim.program)
    return Verdict(not mismatch, mismatch or f"it runs {_name_of(claim.program)}")


def find_bar(process: Process, claim: Claim) -> str:
    """Return why a process is never believed, not even on an operator's word, or ""."""
    owner, is_init = claim.reading.owner, claim.has_init and process.inner_pid == 1
    strange = f"the file belongs to uid {owner}, the process to uid {process.uid}"
    bars = (
        (process.id.pid == 1, "it is pid 1"),
        (process.id.pid == claim.own_pid, "it is lowsuper itself"),
        (process.is_kernel, "it is a kernel thread"),
        (is_init, "it is the init of the daemon's pid namespace"),
        (process.exe_id in claim.helpers, "it is a helper of lowsuper"),
        (bool(claim.other), f"it belongs to {claim.other}"),
        (owner not in (0, process.uid, *claim.owners), strange),
    )
    return next((why for is_so, why in bars if is_so), "")


def runs(process: Process, program: Program) -> bool:
    """Tell whether a process runs a program; of an interpreter, whether it runs the script."""
    return not _find_mismatch(process, program)


def _find_mismatch(process: Process, program: Program | None) -> str:
    """Return why a process is not taken for one that runs the program, or ""."""
    if process.exe_id is None:
        return "what it runs cannot be seen"
    exe = _show(process.exe) or "something without a name"
    if program is None:
        return f"it runs {exe}, and the configured program is not known for certain"
    if process.exe_id not in program.exe_ids:
        if process.exe == program.path:
            return f"it runs another {exe} than is there now"
        return f"it runs {exe}, not {_name_of(program)}"
    if program.script == NO_SCRIPT:
        return f"it runs {exe}, and so do others"
    is_right = not program.script or _holds_script(process, program)
    return "" if is_right else f"it runs {exe}, but not {_name_of(program)}"


def _holds_script(process: Process, program: Program) -> bool:
    from lowsuper.script import find_script  # needed only where there is no better proof

    script = find_script(process.argv, program.interpreter)
    return bool(script) and script in (program.script, program.script_path)


def _name_of(program: Program | None) -> str:
    """Return what an operator knows a program by."""
    if program is None:
        return ""
    has_script = program.script not in ("", NO_SCRIPT)
    return _show(program.script_path or program.script if has_script else program.path)


# What follows from it?


class Decision(Record):
    """Which process is the daemon, and what there is to say about its pidfile."""

    which: str  # "named": the one in the pidfile; "recorded": the one in the record; "": none
    why: str = ""  # it is believed, a phrase
    finding: str = ""  # what the pidfile holds instead: "the pidfile PATH ..."; "": nothing to say
    telling: bool = False  # the finding is more than that there is no pidfile


def decide(path: str, claim: Claim, named: Process | None, recorded: Process | None) -> Decision:
    """Return which process is the daemon: design.md section 3 in one place.

    A recorded process that lives is the daemon, whatever the file says or if it is gone: removing
    the pidfile of a live daemon starts nothing. Only a process of its own kill domain takes its
    place (nginx and gunicorn put another in while they upgrade). Without one, the named process
    is judged, and one that is refused counts as no pidfile.

    Args:
        path: of the pidfile, for the finding.
        claim: what was read there, and what is known of `named`.
        named: the live process that the file names, translated from its pid namespace; None:
            there is no number, or no such process.
        recorded: the live process that `matches` the record, or that is watched now; None: none.

    Returns:
        A decision; "recorded" too where the file names the recorded process.
    """
    verdict = None if named is None else judge(named, claim)
    if recorded is not None:
        if named is not None and is_same(named.id, recorded.id):
            return Decision("recorded", RECORDED)
        if verdict is not None and verdict.believed and claim.in_domain:
            return Decision("named", IN_DOMAIN)
        if verdict is not None and verdict.believed:
            verdict = Verdict(False, "it is not in the daemon's kill domain")
        which, why = "recorded", RECORDED
    elif verdict is not None and verdict.believed:
        return Decision("named", verdict.why)
    else:
        which, why = "", ""
    finding = f"the pidfile {path} {_describe(claim, named, verdict)}"
    return Decision(which, why, finding, not claim.reading.missing)


def _describe(claim: Claim, named: Process | None, verdict: Verdict | None) -> str:
    """Return what a pidfile holds, and of it nothing but a number."""
    reading = claim.reading
    if not reading.pid:
        return reading.reason
    if (named is None or verdict is None) and claim.negligent:
        return f"names {reading.pid}, which has ended and was not reaped by {claim.negligent}"
    if named is None or verdict is None:
        return f"names {reading.pid}, which does not run"
    return f"names {describe_named(reading.pid, named)}, which is not believed: {verdict.why}"


def describe_named(number: int, process: Process) -> str:
    """Return a process as an operator knows it: `123 (sleep of uid 1000)`.

    Args:
        number: as in the pidfile; where it is of an inner pid namespace ours is shown besides.
        process: what it stands for.
    """
    name = _show(process.exe.rpartition("/")[2] or process.comm or "?")
    outer = f", here {process.id.pid}" if number != process.id.pid else ""
    return f"{number} ({name} of uid {process.uid}{outer})"


def _show(text: str) -> str:
    """Return what a stranger may have chosen, fit for one line of a log."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= 200 else shown[:199] + "…"
