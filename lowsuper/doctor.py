"""The `doctor` command: what works on this machine, what does not, and the way out.

The rows come from `kernel.probe` and `kernel.premises`; here is what a configuration needs of
them, and the table. `find_needs` and `format_table` are pure.
"""

from __future__ import annotations

from lowsuper.errors import EXIT_CONFIG
from lowsuper.model import CHROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from lowsuper.kernel.probe import Row
    from lowsuper.model import DaemonSpec, Jail, MasterSpec

USAGE = """\
Usage: lowsuper doctor [--json] [FILE [--OPTION VALUE]...]

Tries what this machine lets lowsuper do. Nothing of a trial stays. For what does not work as well
as it could it says what lowsuper does instead, and the way out.

  FILE    check it as `lowsuper check` does, and mark with * what it needs
  --json  write one JSON object

Ends with 0 when all is well, with 1 when something is degraded or missing; with FILE only when it
is something that FILE needs, and with 78 when FILE is wrong.
"""

OK = "ok"
NARROW = 20  # columns with which nothing is gained by breaking lines
EXIT_UNWELL = 1
_COLOURS = {"ok": "32", "degraded": "33", "missing": "31"}
_ALWAYS = (
    "pidfd_open",
    "close_range",
    "signalfd, timerfd",
    "helper program",
    "/proc",
)
_JAIL = (*("private mounts", "open_tree, move_mount", "fsopen", "pivot_root", "proc of a jail"),)
_MOUNTS = ("namespace mount", "private mounts", "open_tree, move_mount")


# What a configuration needs.


def find_needs(spec: MasterSpec) -> frozenset[str]:
    """Return the names of the rows without which a configuration does not do what it says."""
    needs = {*_ALWAYS}
    if spec.jail is not None:
        needs |= _find_needs_of_jail(spec.jail)
    if spec.kill_domain == "cgroup" or spec.cgroup is not None:
        needs.add("cgroup v2")
    if spec.cgroup_settings:
        needs.add("cgroup controllers")
    if spec.touch_reload or any(daemon.touch or daemon.pidfile for daemon in spec.daemons):
        needs.add("inotify")
    for daemon in spec.daemons:
        needs |= _find_needs_of(daemon)
    return frozenset(needs)


def _find_needs_of_jail(jail: Jail) -> set[str]:
    needs = {"openat2", *_name_capabilities("sys_admin", "sys_chroot")}
    needs |= {f"namespace {kind}" for kind in jail.namespaces}
    if jail.net:
        needs.add("namespace net")
    if jail.links:
        needs |= {"module pyroute2", *_name_capabilities("net_admin")}
    if jail.overlay:
        needs.add("overlay")
    if "mount" in jail.namespaces:
        needs.add("private mounts")
    if jail.root is not None and jail.way != CHROOT:
        needs |= {*_JAIL}
    if any(keep.read_only for keep in jail.keeps):
        needs.add("mount_setattr")
    return needs


def _find_needs_of(daemon: DaemonSpec) -> set[str]:
    needs = {f"namespace {kind}" for kind in daemon.namespaces}
    if daemon.ns_pid:
        needs.add("namespace pid")
    if daemon.root is not None or daemon.mounts:
        needs |= {*_MOUNTS}
    if any(keep.read_only for keep in daemon.mounts):
        needs.add("mount_setattr")
    if daemon.pidfile is not None:
        needs |= {"state directory", "systemd unit"}
    has_place = daemon.root is not None or daemon.mounts or daemon.netns is not None
    if has_place or daemon.namespaces or daemon.ns_pid:
        needs |= _name_capabilities("sys_admin")
    if daemon.user is not None or daemon.group is not None:
        needs |= _name_capabilities("setuid", "setgid", "kill")
    if daemon.caps is not None:
        needs |= _name_capabilities("setpcap")
    if daemon.cgroup:
        needs |= {"cgroup v2", "cgroup controllers"}
    return needs


def _name_capabilities(*names: str) -> set[str]:
    return {"capabilities", *(f"capability {name}" for name in names)}


# The table.


def format_table(
    rows: Sequence[Row], needs: Collection[str], *, colour: bool, columns: int = 0
) -> str:
    """Return the rows as lines for a terminal.

    Args:
        rows: in their order.
        needs: the names of those to mark.
        colour: with the escape sequences for it.
        columns: break lines so that they fit; 0: do not.
    """
    width = max(len(row.name) for row in rows)
    indent = " " * (width + 14)
    lines: list[str] = []
    advice = ""
    for row in rows:
        state = f"{row.state:8}"
        if colour:
            state = f"\033[{_COLOURS[row.state]}m{state}\033[0m"
        mark = "*" if row.name in needs else " "
        seen, *rest = _wrap(row.seen, columns - len(indent))
        lines.append(f"{mark} {state}  {row.name:{width}}  {seen}")
        if row.state != OK:
            rest += _wrap(row.effect, columns - len(indent))
            way_out = "as above" if row.advice == advice else row.advice
            if row.advice:
                rest += _wrap(f"way out: {way_out}", columns - len(indent))
            advice = row.advice
        lines += [f"{indent}{text}" for text in rest]
    if needs:
        lines += ["", "* the configuration needs it"]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _wrap(text: str, columns: int) -> list[str]:
    from textwrap import wrap

    if columns < NARROW or not text:
        return [text]
    return wrap(text, columns, break_on_hyphens=False)


def format_json(rows: Iterable[Row], needs: Collection[str] | None) -> str:
    """Return the rows as one JSON object; `needs` is None without a configuration."""
    import json

    entries = []
    for row in rows:
        entry: dict[str, object] = dict(zip(row.__match_args__, row, strict=True))  # type: ignore[call-overload]
        if needs is not None:
            entry["needed"] = row.name in needs
        entries.append(entry)
    return json.dumps({"schema": 1, "rows": entries}, ensure_ascii=False)


def is_well(rows: Iterable[Row], needs: Collection[str] | None) -> bool:
    """Return whether all rows that count are well; all do without a configuration."""
    return all(row.state == OK for row in rows if needs is None or row.name in needs)


# The command.


def main(words: Sequence[str]) -> int:
    """Run `lowsuper doctor` and return its exit status.

    Args:
        words: what follows `doctor` on the command line.
    """
    import os
    import sys

    rest = [word for word in words if word not in ("--json", "--help", "-h")]
    if "--help" in words or "-h" in words:
        sys.stdout.write(USAGE)
        return 0
    needs = None
    if rest:
        spec = _check(rest)
        if spec is None:
            return EXIT_CONFIG
        needs = find_needs(spec)
    rows = _collect()
    if "--json" in words:
        text = format_json(rows, needs) + "\n"
    else:
        is_terminal = sys.stdout.isatty()
        colour = is_terminal and not os.environ.get("NO_COLOR")
        columns = os.get_terminal_size(1).columns if is_terminal else 0
        text = format_table(rows, needs or (), colour=colour, columns=columns)
    sys.stdout.write(text.encode("utf-8", "replace").decode())
    return 0 if is_well(rows, needs) else EXIT_UNWELL


def _check(words: Sequence[str]) -> MasterSpec | None:
    """Return the configuration, having told all that is wrong with it; None: that is too much."""
    import sys

    from lowsuper.check import read_and_check
    from lowsuper.config.wording import format_problem

    spec, problems = read_and_check(words, runs_commands=False)
    for problem in problems:
        sys.stderr.write(f"{format_problem(problem)}\n")
    return None if any(problem.is_error for problem in problems) else spec


def _collect() -> list[Row]:
    from lowsuper.kernel import premises, probe

    calls = [*probe.probe_calls(), probe.probe_inotify(), *probe.probe_spawn()]
    namespaces = [*probe.probe_namespaces()]
    mounts = [*probe.probe_mounts(namespaces)]
    domains = [*probe.probe_domains(namespaces)]
    return [*premises.list_rows(), *calls, *domains, *namespaces, *mounts]
