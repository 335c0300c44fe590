"""The `check` command: read a configuration, look up all it names, start nothing.

`find_problems` is pure; what it needs to know of the machine comes as `Facts`.
"""

from __future__ import annotations

from lowsuper.command import find_program
from lowsuper.config.wording import format_json, format_problem
from lowsuper.errors import EXIT_CONFIG, EXIT_OWN_FAILURE, ConfigError, PlanError
from lowsuper.jail import build_inner
from lowsuper.model import Exec, Origin, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    from lowsuper.model import Command, DaemonSpec, Hook, MasterSpec
    from lowsuper.plan import Identity

    class Facts(Protocol):
        """What is asked of the machine: see `kernel.facts`."""

        def resolve_identity(
            self,
            user: str | None,
            group: str | None,
            origin: Origin,
            daemon: str = "",
            add_groups: Sequence[str] = (),
        ) -> Identity | None:
            """Return whom to become, or raise PlanError."""

        def is_directory(self, path: str) -> bool:
            """Tell whether a path is a directory."""

        def is_there(self, path: str) -> bool:
            """Tell whether there is anything at a path."""

        def find_program(self, program: str, directory: str) -> str:
            """Return the path of a program, or ""."""

        def judge_program(self, path: str, identity: Identity | None, *, by_shell: bool) -> str:
            """Return why a program cannot be executed, or ""."""

        def is_program(self, path: str) -> bool:
            """Tell whether a path is a file that could be executed."""

        def judge_pidfile(self, path: str) -> str:
            """Return why what is at a path would not be believed, or ""."""

        def judge_writing(self, path: str, identity: Identity | None) -> str:
            """Return why someone cannot write to a file or into a directory, or ""."""

        def find_state_directory(self, path: str | None, identity: Identity | None) -> str:
            """Return where a master keeps the records of smart daemons."""

        def judge_state_directory(self, path: str, identity: Identity | None) -> str:
            """Return why a master cannot keep its records in a directory, or ""."""

        def judge_cgroup(self, path: str) -> str:
            """Return why a cgroup cannot be at a path, or ""."""

        def judge_controller(self, controller: str) -> str:
            """Return why this machine has no such controller of cgroups, or ""."""

        def name_writers(self, directory: str, identity: Identity | None) -> str:
            """Return who besides root and someone can replace files of a directory, or ""."""


USAGE = """Usage: lowsuper check [--json] [--exec] [--strict] FILE... [--OPTION VALUE]...

Reads the files, resolves users, groups, directories and programs, and starts nothing.

  --json    write one JSON object
  --exec    run the commands of @(exec://...)
  --strict  an unknown option is an error

Ends with 0 when there is no error, with 78 otherwise.
"""

_DIRECTORY_FIELDS = (
    ("pidfile", "pidfile"),
    ("pidfile2", "pidfile2"),
    ("safe_pidfile", "safe-pidfile"),
    ("daemonize", "daemonize"),
    ("daemonize2", "daemonize2"),
    ("logto", "logto"),
    ("logto2", "logto2"),
)


class _Checker:
    """Collects the problems of one configuration."""

    def __init__(self, spec: MasterSpec, facts: Facts) -> None:
        self._spec = spec
        self._facts = facts
        self._problems: list[Problem] = []
        # What a hook may still make is missed with a warning only.
        self._is_final = not spec.hooks
        self._file = spec.files[0] if spec.files else "command line"

    def check(self) -> list[Problem]:
        """Return what was found."""
        spec = self._spec
        self._check_places()
        user = self._resolve(spec.user, spec.group, self._origin("uid"), add_groups=spec.add_groups)
        for hook in spec.hooks:
            drops = hook.phase.startswith("as-user") and not spec.master_as_root
            self._check_hook(hook, user if drops else None)
        for daemon in spec.daemons:
            self._check_daemon(daemon, user)
        if any(daemon.pidfile is not None for daemon in spec.daemons):
            self._check_state_directory(None if spec.master_as_root else user)
        return self._problems

    def _origin(self, key: str, value: str = "") -> Origin:
        """Return the place of one of the master's own options."""
        for origin in reversed(self._spec.origins):
            if origin.key == key and value in ("", origin.value):
                return origin
        return Origin(self._file, 0, key, value)

    def _say(
        self, origin: Origin, reason: str, daemon: str = "", advice: str = "", *, is_error: bool
    ) -> None:
        self._problems.append(Problem(origin, reason, daemon, advice, is_error=is_error))

    def _resolve(
        self,
        user: str | None,
        group: str | None,
        origin: Origin,
        daemon: str = "",
        add_groups: Sequence[str] = (),
    ) -> Identity | None:
        try:
            return self._facts.resolve_identity(user, group, origin, daemon, add_groups)
        except PlanError as error:
            problem = error.problem
            if not daemon:
                place = self._origin(problem.origin.key, problem.origin.value)
                problem = problem.replace(origin=place)
            self._problems.append(problem)
            return None

    def _check_places(self) -> None:
        """Check the master's own directories."""
        chdir = self._spec.chdir
        if chdir is not None and not self._facts.is_directory(chdir):
            self._say_missing(self._origin("chdir", chdir), "is not a directory")
        for field, key in _DIRECTORY_FIELDS:
            self._check_parent(key, getattr(self._spec, field))
        if self._spec.cgroup is not None and (why := self._facts.judge_cgroup(self._spec.cgroup)):
            self._say(self._origin("cgroup"), why, is_error=True)
        for path in self._spec.master_fifo:
            self._check_parent("master-fifo", path)
        for path in self._spec.touch_reload:
            self._check_parent("touch-reload", path)
        for path in self._spec.touch_logrotate:
            self._check_parent("touch-logrotate", path)
        for path in self._spec.touch_logreopen:
            self._check_parent("touch-logreopen", path)

    def _check_parent(self, key: str, path: str | None) -> None:
        if path is None:
            return
        parent = join_path(self._spec.chdir or "", path).rpartition("/")[0] or "."
        if path.startswith("/") and path.count("/") == 1:
            return
        if not self._facts.is_directory(parent):
            self._say_missing(self._origin(key, path), f"there is no directory {parent}")

    def _say_missing(self, origin: Origin, reason: str, daemon: str = "", advice: str = "") -> None:
        if not self._is_final:
            advice = "; ".join(text for text in (advice, "unless a hook makes it") if text)
        self._say(origin, reason, daemon, advice, is_error=self._is_final)

    def _check_state_directory(self, master: Identity | None) -> None:
        path = self._facts.find_state_directory(self._spec.state_dir, master)
        reason = self._facts.judge_state_directory(path, master)
        if reason:
            advice = "name a directory of which only root and the master's user decide"
            self._say(
                self._origin("state-dir", path), reason, advice=advice, is_error=self._is_final
            )

    def _check_hook(self, hook: Hook, identity: Identity | None) -> None:
        directory = self._spec.chdir or ""
        self._check_parent(hook.origin.key, hook.path or None)
        if not isinstance(hook.deed, Exec):
            return
        problem = self._judge(hook.deed.command, directory, identity)
        if problem is not None:
            self._say(hook.origin, problem[0], advice=problem[1], is_error=True)

    def _check_daemon(self, daemon: DaemonSpec, master: Identity | None) -> None:
        identity = master
        user, group = daemon.user, daemon.group
        if user is not None or group is not None:
            identity = self._resolve(user, group, daemon.origin, daemon.name)
        directory = self._spec.chdir or ""
        self._check_isolation(daemon)
        self._check_limits(daemon)
        if daemon.chdir is not None and daemon.root is None:
            directory = join_path(directory, daemon.chdir)
            if not self._facts.is_directory(directory):
                origin = daemon.origin.replace(key="chdir", value=daemon.chdir)
                self._say_missing(origin, "is not a directory", daemon.name)
                return
        self._check_touch(daemon)
        self._check_log(daemon)
        self._check_pidfile(daemon, identity, master)
        self._check_compound(daemon)
        if daemon.root is not None:
            return  # what it runs is in there, behind links that mean something else out here
        problem = self._judge(daemon.command, directory, identity)
        if problem is not None:
            origin = daemon.origin.replace(key="command", value=daemon.command.text)
            # A mount may be what brings it.
            self._say(origin, problem[0], daemon.name, problem[1], is_error=not daemon.mounts)

    def _check_isolation(self, daemon: DaemonSpec) -> None:
        """Check the places of a daemon's root and mounts; those in its root are not looked at."""
        if daemon.root is not None and not self._facts.is_directory(daemon.root):
            origin = daemon.origin.replace(key="root", value=daemon.root)
            self._say_missing(origin, "is not a directory", daemon.name)
        if daemon.netns is not None and not self._facts.is_there(daemon.netns):
            origin = daemon.origin.replace(key="netns", value=daemon.netns)
            self._say_missing(origin, "is not there", daemon.name)
        places = [keep.source for keep in daemon.mounts]
        if daemon.root is None:
            places += [keep.target for keep in daemon.mounts]
        for place in dict.fromkeys(places):
            if not self._facts.is_there(place):
                origin = daemon.origin.replace(key="mounts", value=place)
                self._say_missing(origin, "is not there", daemon.name)

    def _check_limits(self, daemon: DaemonSpec) -> None:
        """Check that there are controllers for a daemon's limits; who may use them is not known."""
        for file in dict.fromkeys(setting.file for setting in daemon.cgroup):
            reason = self._facts.judge_controller(file.partition(".")[0])
            if reason:
                key = f"cgroup_{file.replace('.', '_')}"
                value = next(each.value for each in daemon.cgroup if each.file == file)
                origin = daemon.origin.replace(key=key, value=value)
                self._say(origin, reason, daemon.name, is_error=True)

    def _check_touch(self, daemon: DaemonSpec) -> None:
        for path in daemon.touch:
            parent = join_path(self._spec.chdir or "", path).rpartition("/")[0] or "/"
            if not self._facts.is_directory(parent):
                origin = daemon.origin.replace(key="touch", value=path)
                self._say_missing(origin, f"there is no directory {parent}", daemon.name)

    def _check_log(self, daemon: DaemonSpec) -> None:
        """Check the directory of a daemon's log file."""
        if daemon.log is None or daemon.log.kind != "file":
            return
        path = join_path(self._spec.chdir or "", daemon.log.path)
        parent = path.rpartition("/")[0] or "/"
        origin = daemon.origin.replace(key="log", value=daemon.log.path)
        if self._facts.is_directory(path):
            self._say(origin, "is a directory", daemon.name, "name a file in it", is_error=True)
        elif not self._facts.is_directory(parent):
            self._say_missing(origin, f"there is no directory {parent}", daemon.name)

    def _check_compound(self, daemon: DaemonSpec) -> None:
        if not daemon.command.compound:
            return
        reason = "a shell runs this and stays: it is the daemon's first process"
        advice = ""
        if daemon.daemonize:
            reason += ", and the pidfile will name it"
            advice = "let one program be the command"
        origin = daemon.origin.replace(key="command", value=daemon.command.text)
        self._say(origin, reason, daemon.name, advice, is_error=False)

    def _check_pidfile(
        self, daemon: DaemonSpec, identity: Identity | None, master: Identity | None
    ) -> None:
        """Check the pidfile of a smart daemon.

        Args:
            daemon: any daemon.
            identity: whom it runs as.
            master: whom the configuration's own `uid` and `gid` stand for.
        """
        if daemon.pidfile is None:
            return
        origin = daemon.origin.replace(key="pidfile", value=daemon.pidfile)
        path = join_path(self._spec.chdir or "", daemon.pidfile)
        wrong = self._judge_pidfile_itself(path)
        if wrong is not None:
            self._say(origin, wrong[0], daemon.name, wrong[1], is_error=True)
            return
        parent = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
        if not self._facts.is_directory(parent):
            reason = f"there is no directory {parent}"
            if daemon.daemonize:
                self._say_missing(origin, reason, daemon.name)
            else:  # many a program makes the directory of its pidfile
                advice = f"unless the program {'' if self._is_final else 'or a hook '}makes it"
                self._say(origin, reason, daemon.name, advice, is_error=False)
            return
        if daemon.daemonize:
            writer = None if self._spec.master_as_root else master
            found = self._doubt_written_pidfile(parent, identity, writer)
        else:
            found = self._doubt_pidfile_of_program(daemon, path, parent, identity)
        for reason, advice in found:
            self._say(origin, reason, daemon.name, advice, is_error=False)

    def _judge_pidfile_itself(self, path: str) -> tuple[str, str] | None:
        """Return reason and advice of what makes a path no pidfile."""
        if self._facts.is_directory(path):
            return "is a directory", "name a file in it"
        if self._facts.is_program(path):
            return "is a program, not a pidfile", "the pidfile comes first"
        return None

    def _doubt_written_pidfile(
        self, parent: str, identity: Identity | None, writer: Identity | None
    ) -> Iterator[tuple[str, str]]:
        """Yield reason and advice of what is strange about a pidfile that lowsuper writes."""
        denial = self._facts.judge_writing(parent, writer)
        if denial:
            yield denial, "use a directory of that user"
        writers = self._facts.name_writers(parent, identity)
        if writers:
            advice = "use a directory that only root can write to, such as /run"
            yield f"{writers} {parent}, and so replace the pidfile", advice

    def _doubt_pidfile_of_program(
        self, daemon: DaemonSpec, path: str, parent: str, identity: Identity | None
    ) -> Iterator[tuple[str, str]]:
        """Yield reason and advice of what is strange about a pidfile that the daemon writes."""
        oddity = self._facts.judge_pidfile(path)
        if oddity:
            yield f"{oddity}, and is not believed", "remove it"
        elif self._facts.judge_writing(path, identity):
            denial = self._facts.judge_writing(parent, identity)
            if denial:
                yield denial, "use a directory of that user"
        if daemon.chdir is not None and not path.startswith("/"):
            reason = "is looked for in the master's directory, not in the daemon's chdir"
            yield reason, "write its whole path"

    def _judge(
        self, command: Command, directory: str, identity: Identity | None
    ) -> tuple[str, str] | None:
        """Return reason and advice when a command's program cannot be run."""
        program = find_program(command)
        if not program:
            return None
        path = self._facts.find_program(program, directory)
        if not path:
            if "/" in program:
                return f"there is no file {join_path(directory, program)}", ""
            return f"there is no program {program} in PATH", "write its whole path"
        reason = self._facts.judge_program(path, identity, by_shell=command.shell)
        if not reason:
            return None
        advice = "begin it with #!/bin/sh" if "neither" in reason else ""
        return f"{path}: {reason}", advice


def join_path(directory: str, path: str) -> str:
    """Return a path as seen from a directory; "" is the working directory."""
    if path.startswith("/") or not directory:
        return path
    return f"{directory.rstrip('/')}/{path}"


def find_problems(spec: MasterSpec, facts: Facts) -> list[Problem]:
    """Return everything in a configuration that this machine cannot do, and some it does oddly.

    Args:
        spec: the configuration.
        facts: the machine.
    """
    return _Checker(spec, facts).check()


def main(argv: Sequence[str]) -> int:
    """Run `lowsuper check` and return its exit status.

    Args:
        argv: what follows `check` on the command line.
    """
    import sys

    own = [word for word in argv if word in ("--json", "--exec", "--help", "-h")]
    rest = [word for word in argv if word not in own]
    if not rest or "--help" in own or "-h" in own:
        (sys.stdout if own else sys.stderr).write(USAGE)
        return 0 if "--help" in own or "-h" in own else EXIT_OWN_FAILURE
    spec, problems = read_and_check(rest, runs_commands="--exec" in own)
    if "--json" in own:
        text = format_json(problems, spec) + "\n"
    else:
        text = "".join(format_problem(problem) + "\n" for problem in problems)
        text += _summarize(rest, spec, problems)
    sys.stdout.write(text.encode("utf-8", "replace").decode())
    return EXIT_CONFIG if any(problem.is_error for problem in problems) else 0


def _summarize(words: Sequence[str], spec: MasterSpec | None, problems: Sequence[Problem]) -> str:
    errors = sum(problem.is_error for problem in problems)
    counts = f"{_count(errors, 'error')}, {_count(len(problems) - errors, 'warning')}"
    if spec is None:
        return f"{words[0]}: {counts}\n"
    return f"{spec.name}: {_count(len(spec.daemons), 'daemon')}, {counts}\n"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def read_and_check(
    words: Sequence[str], *, runs_commands: bool
) -> tuple[MasterSpec | None, Sequence[Problem]]:
    """Return what could be read of the configuration, and all problems."""
    import os

    from lowsuper.kernel.facts import Facts as RealFacts
    from lowsuper.kernel.source import load_config
    from lowsuper.plan import build_environment

    try:
        spec: MasterSpec | None = load_config(words, os.environ, runs_commands=runs_commands)
        problems = list(spec.notices if spec else ())
    except ConfigError as error:
        spec, problems = error.spec, list(error.problems)
    if spec is not None:
        facts = RealFacts(build_environment(os.environ, spec.env).variables)
        known = {(problem.origin, problem.reason) for problem in problems}
        found = find_problems(spec, facts) if spec.jail is None else _find_both(spec, facts)
        if spec.caps or any(daemon.caps for daemon in spec.daemons):
            found += _find_unknown(spec)
        problems += [each for each in found if (each.origin, each.reason) not in known]
        if not spec.daemons and not any(problem.is_error for problem in problems):
            origin = Origin(spec.files[0] if spec.files else "command line", 0, "", "")
            problems.append(Problem(origin, "there is no daemon in it", is_error=False))
    return spec, sort_problems(problems)


def _find_unknown(spec: MasterSpec) -> list[Problem]:
    """Return the capabilities that are to be kept, but cannot be had, as problems."""
    from lowsuper.kernel.caps import find_unknown
    from lowsuper.kernel.privilege import describe_unknown

    missing = find_unknown(spec.caps or ())
    found = [describe_unknown(spec, missing)] if missing else []
    for daemon in spec.daemons:
        if daemon.caps and daemon.caps != spec.caps and (missing := find_unknown(daemon.caps)):
            origin = daemon.origin.replace(key="caps", value="")
            reason = f"this kernel, or this container, does not have {', '.join(missing)}"
            found.append(Problem(origin, reason, daemon.name, "leave it out"))
    return found


def _find_both(spec: MasterSpec, outside: Facts) -> list[Problem]:
    """Return what is wrong outside of the jail of a configuration, and in it."""
    import os

    from lowsuper.kernel.jailed import JailFacts
    from lowsuper.plan import build_environment

    assert spec.jail is not None
    found = find_jail_problems(spec, os.path.exists)
    if spec.jail.links or spec.jail.netns is not None:
        from lowsuper.kernel.network import has_link

        found += find_network_problems(spec, os.path.exists, has_link, _can_import)
    outer, inner = split_jailed(spec)
    found += find_problems(outer, outside)
    if not spec.jail.is_elsewhere:
        found += find_problems(inner, outside)
    elif spec.jail.root is not None and outside.is_directory(spec.jail.root):
        environ = build_environment(os.environ, spec.env).variables
        found += find_problems(inner, JailFacts(environ, spec.jail))
    return found


def _can_import(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def find_network_problems(
    spec: MasterSpec,
    exists: Callable[[str], bool],
    has_link: Callable[[str], bool],
    can_import: Callable[[str], bool],
) -> list[Problem]:
    """Return what the network of a jail lacks on this machine.

    Args:
        spec: with a jail.
        exists: tells whether there is something at a path.
        has_link: tells whether the host has a link of a name.
        can_import: tells whether a module is installed.
    """
    from lowsuper.config.network import LINK_OPTION, find_link_problems

    assert spec.jail is not None
    is_final = not split_jailed(spec)[0].hooks
    found = find_link_problems(spec.origins, has_link, is_final=is_final)
    places = {origin.key: origin for origin in spec.origins}
    if spec.jail.links and not can_import("pyroute2"):
        reason = "pyroute2, which makes links, is not installed"
        found.append(Problem(places[LINK_OPTION], reason, "", "pip install pyroute2"))
    path = spec.jail.netns
    if path is not None and not exists(path):
        reason = f"there is no network namespace {path}"
        advice = f"ip netns add {path.rpartition('/')[2]} makes one" if is_final else ""
        found.append(Problem(places["namespace-net"], reason, "", advice, is_error=is_final))
    return found


def split_jailed(spec: MasterSpec) -> tuple[MasterSpec, MasterSpec]:
    """Return what a configuration with a jail has outside of it, and what inside."""
    inner = build_inner(spec)
    hooks = tuple(hook for hook in spec.hooks if hook not in inner.hooks)
    return spec.replace(daemons=(), hooks=hooks, chdir=None, user=None, group=None), inner


def find_jail_problems(spec: MasterSpec, exists: Callable[[str], bool]) -> list[Problem]:
    """Return what is wrong with the jail itself.

    Args:
        spec: with a jail.
        exists: tells whether there is something at a path.
    """
    jail = spec.jail
    assert jail is not None
    outer, _ = split_jailed(spec)
    is_final = not outer.hooks  # which may make what is missing
    advice = "make it first" if is_final else "unless a hook makes it"
    places = {origin.key: origin for origin in spec.origins}
    found = []
    if jail.root is not None and not exists(f"{jail.root}/."):
        reason = f"there is no directory {jail.root}"
        found.append(Problem(places[jail.way], reason, "", advice, is_error=is_final))
    for keep in jail.keeps:
        if not keep.optional and not exists(keep.source):
            origin = next(
                (each for each in spec.origins if keep.source in each.value.split(":")),
                places["namespace-keep-mount"],
            )
            reason = f"{keep.source} does not exist"
            found.append(Problem(origin, reason, "", advice, is_error=is_final))
    for daemon in spec.daemons:
        if daemon.pidfile is not None and "pid" in jail.namespaces:
            origin = daemon.origin.replace(key="pidfile", value=daemon.pidfile)
            reason = "nothing outlives the jail: this daemon ends with the master all the same"
            found.append(Problem(origin, reason, daemon.name, is_error=False))
    return found


def sort_problems(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems in the order of the files and their lines."""
    files = list(dict.fromkeys(problem.origin.file for problem in problems))
    return sorted(problems, key=lambda each: (files.index(each.origin.file), each.origin.line))
