"""The command line: what is asked for, and the exit code.

Options on the command line are the configuration's own, as in uWSGI; only the verbs are ours.
"""

from __future__ import annotations

import os
import sys

from lowsuper.errors import (
    EXIT_OWN_FAILURE,
    ConfigError,
    KernelError,
    LowsuperError,
    PlanError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowsuper.kernel.gate import Gate
    from lowsuper.kernel.instance import Claim
    from lowsuper.kernel.jail import Supervise
    from lowsuper.kernel.log import Log
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.kernel.teller import Teller
    from lowsuper.model import MasterSpec

USAGE = """\
usage: lowsuper [run] FILE.ini [--OPTION [VALUE]]...
       lowsuper [run] --OPTION [VALUE]...
       lowsuper run [FILE.ini] [--timeout TIME] [--strict] [--keep-logs DIR] -- COMMAND...
       lowsuper check FILE.ini [--json] [--exec]
       lowsuper VERB [NAME]... [-n INSTANCE] [--OPTION]...
       lowsuper enter [--user NAME] FILE|NAME|PID [-- COMMAND...]
       lowsuper doctor [FILE.ini] [--json]
       lowsuper --version | --help

Looks after the daemons of a uWSGI configuration file: starts, restarts, reloads and stops them.

  run      stay in the foreground until the daemons are stopped (the default); with a COMMAND:
           run that when they are ready, then stop them, and end with its exit status
  check    read everything, start nothing, and report every problem
  enter    run a shell or a command in a jail
  doctor   try what this machine lets lowsuper do, and say what to change

A master that runs is asked, and told what to do, with these; VERB --help says more:
  status list why logs events tree legion wait is-active is-ready is-failed
  start stop restart try-restart signal reset-failed adopt
  reload diff apply shutdown instances completion

Every option of a configuration file can be given on the command line:
  lowsuper --attach-daemon "memcached -p 11311 -u nobody"

Signals: SIGTERM and SIGINT stop, a second one kills; SIGHUP reloads; SIGUSR1 prints the state.
Exit status: 0, or that of a control daemon (128 + n for signal n); 1 a hook failed; 78 the
configuration is wrong; 125 lowsuper itself failed.

See lowsuper(8) and lowsuper.conf(5).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with the given arguments, or those of the process; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _fill_standard_descriptors()
    return _guard(lambda: _dispatch(words))


def _guard(act: Callable[[], int]) -> int:
    """Return the exit code of what is done, or of what it has failed with, which is said."""
    try:
        return act()
    except (ConfigError, PlanError) as error:
        for line in _explain(error):
            _complain(line)
        return error.exit_code
    except LowsuperError as error:
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        return EXIT_OWN_FAILURE
    except Exception:  # a bug: whoever started us must be able to tell it from a daemon's failure
        import traceback

        traceback.print_exc()
        return EXIT_OWN_FAILURE


def _dispatch(words: list[str]) -> int:  # noqa: PLR0911  # a table
    match words:
        case [] | ["--help" | "-h" | "help", *_]:
            (sys.stdout if words else sys.stderr).write(USAGE)
            return 0 if words else 2
        case ["--version" | "version", *_]:
            from importlib.metadata import version

            sys.stdout.write(f"lowsuper {version('lowsuper')}\n")
            return 0
        case ["check", *rest]:
            from lowsuper import check

            return check.main(rest)
        case ["doctor", *rest]:
            from lowsuper import doctor

            return doctor.main(rest)
        case ["enter", *rest]:
            from lowsuper import enter

            return enter.main(rest)
        case ["run", *rest] if "--" in rest:
            from lowsuper import run

            return run.main(rest, _serve)
        case _:
            return _ask_or_run(words)


def _ask_or_run(words: list[str]) -> int:
    """Ask a running master if there is a verb for that, else be one."""
    if words[0] == "run":
        return _run(words[1:])
    # A configuration file has a dot or a slash: then nothing need be loaded that knows the verbs.
    if any(word.replace("-", "").isalpha() and not word.startswith("-") for word in words):
        from lowsuper import ctl

        code = ctl.main(words)
        if code is not None:
            return code
    return _run(words)


def _serve(arguments: Sequence[str], teller: Teller) -> int:
    """Be the master behind the process that runs a command."""
    return _guard(lambda: _run(list(arguments), teller))


def _nothing() -> None:
    """Nobody waits for the start."""


def _explain(error: ConfigError | PlanError) -> list[str]:
    from lowsuper.config.wording import format_problem

    problems = error.problems if isinstance(error, ConfigError) else (error.problem,)
    return [format_problem(problem) for problem in problems]


def _fill_standard_descriptors() -> None:
    """See that 0, 1 and 2 are open: what is opened next must not become a daemon's output."""
    fd = os.open("/dev/null", os.O_RDWR)
    while fd <= 2:
        fd = os.open("/dev/null", os.O_RDWR)
    os.close(fd)


def _complain(text: str) -> None:
    # Not sys.stderr, which is None if 2 was closed.
    os.write(2, f"lowsuper: {text}\n".encode("utf-8", "backslashreplace"))


def _run(arguments: list[str], teller: Teller | None = None) -> int:
    """Read the configuration, go to the background if asked to, and supervise."""
    try:
        start = os.getcwd()
    except OSError as error:
        raise KernelError(
            "getcwd", error.errno or 0, "", "start lowsuper from a directory that exists"
        ) from error
    load = _loader(arguments, start, teller)
    spec = load(False)
    from lowsuper.kernel.instance import claim

    claimed = claim(spec, os.environ)
    try:
        return _run_claimed(spec, load, start, claimed, teller)
    finally:
        claimed.close()


def _run_claimed(
    spec: MasterSpec,
    load: Callable[[bool], MasterSpec],
    start: str,
    claimed: Claim,
    teller: Teller | None = None,
) -> int:
    """Go to the background if asked to, and supervise, as the only master of its kind."""
    announce: Callable[[], None] = _nothing
    background = spec.daemonize or spec.daemonize2
    if background:
        from lowsuper.kernel.background import go_to_background

        ready = go_to_background(background)
        claimed.sign()
        if spec.daemonize2:
            announce = ready
    log = _open_log(spec, background)
    if claimed.problem:
        log.put(claimed.problem)
    reload = _reloader(load, log, background, start, spec.jail is not None)
    prepared = ready if spec.daemonize else _nothing
    if spec.jail is None:
        return _supervise(
            spec,
            log,
            reload,
            announce,
            watch=None if teller is None else (teller.fd, teller.take),
            prepared=prepared,
            claim=claimed,
            preview=lambda: load(True),
            teller=teller,
        )
    supervise: Supervise = _supervise
    if teller is not None:
        from functools import partial

        teller.begin_jailed()
        supervise = partial(_supervise, teller=teller)
    from lowsuper.kernel.jail import Warden

    warden = Warden(
        spec,
        log,
        reload,
        announce,
        supervise,
        claim=claimed,
        preview=lambda: load(True),
    )
    if teller is not None:
        warden.relay = teller.relay
    prepared()
    return warden.run()


def _supervise(
    spec: MasterSpec,
    log: Log,
    load: Callable[[], MasterSpec | None],
    announce: Callable[[], None],
    *,
    spawner: Spawner | None = None,
    watch: tuple[int, Callable[[], None]] | None = None,
    null_fd: int = -1,
    prepared: Callable[[], None] = _nothing,
    claim: Claim | None = None,
    preview: Callable[[], MasterSpec] | None = None,
    gate: Gate | None = None,
    teller: Teller | None = None,
) -> int:
    """Run a master in this process until it has ended; see `kernel.world`."""
    from lowsuper.events import Boot
    from lowsuper.kernel.world import World
    from lowsuper.supervisor import Supervisor

    world = World(
        spec,
        log,
        load,
        announce,
        spawner=spawner,
        watch=watch,
        null_fd=null_fd,
        claim=claim,
        preview=preview,
        gate=gate,
    )
    prepared()
    supervisor = Supervisor(spec, world)
    if teller is not None:
        teller.attach(world, supervisor, -1 if spawner is None or watch is None else watch[0])
    supervisor.post(Boot())
    return world.run(supervisor)


def _open_log(spec: MasterSpec, background: str | None) -> Log:
    """Return the log, with what the configuration wants noticed as its first lines."""
    from lowsuper.config.wording import format_problem
    from lowsuper.kernel.log import Log

    log = Log(spec.log_date, spec.log_format)
    path = background or _first_log(spec)
    for notice in spec.notices:
        log.put(format_problem(notice))
    if path:
        log.flush()
        log.open(path)
    return log


def _reloader(
    load: Callable[[bool], MasterSpec],
    log: Log,
    background: str | None,
    start: str,
    is_jailed: bool,
) -> Callable[[], MasterSpec | None]:
    """Return what reads the configuration again, or says what is wrong with it."""

    def reload() -> MasterSpec | None:
        try:
            new = load(True)
            _keep_jail(new, is_jailed)
            path = background or new.logto2 or new.logto
            log.use(path and os.path.join(start, path), new.log_date, new.log_format)
        except (ConfigError, PlanError) as error:
            for line in _explain(error):
                log.put(line)
        except (LowsuperError, OSError) as error:
            log.put(str(error))
        else:
            return new
        log.put("nothing was changed: the new configuration is not good")
        return None

    return reload


def _keep_jail(new: MasterSpec, is_jailed: bool) -> None:
    if (new.jail is not None) != is_jailed:
        raise LowsuperError("no reload makes a jail or leaves it: stop, and start again")


def _first_log(spec: MasterSpec) -> str | None:
    """Return the log file to begin with: logto2 waits for a drop of privileges."""
    drops = not spec.master_as_root and (spec.user is not None or spec.group is not None)
    return spec.logto if drops else spec.logto2 or spec.logto


def _loader(
    arguments: list[str], start: str, teller: Teller | None = None
) -> Callable[[bool], MasterSpec]:
    """Return what reads the configuration, now and at each reload, as from the first directory."""
    environ = dict(os.environ)

    def load(is_reload: bool) -> MasterSpec:
        from lowsuper.kernel.privilege import resolve, resolve_master
        from lowsuper.kernel.source import load_config
        from lowsuper.model import fill_in

        try:
            here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            here = -1  # a user that we became since may not enter it, but is in it
        try:
            if here >= 0:
                _enter_or_root(start)
            spec = fill_in(load_config(arguments, environ, is_reload=is_reload))
            if teller is not None:
                spec = teller.adapt(spec)
            if spec.jail is not None and spec.jail.is_elsewhere:
                from lowsuper.kernel.jail import examine

                examine(spec)
                return spec
            resolve(spec)
            identity = resolve_master(spec)
            if spec.control_allow or spec.control_owner:
                from lowsuper.kernel.peer import resolve_rights

                resolve_rights(spec, identity)
            return spec.replace(chdir=_try_directory(spec, start))
        finally:
            if here >= 0:
                os.fchdir(here)
                os.close(here)

    return load


def _enter_or_root(start: str) -> None:
    """Go to where lowsuper was started; a user that it became since may not enter it."""
    try:
        os.chdir(start)
    except OSError:
        os.chdir("/")


def _try_directory(spec: MasterSpec, start: str) -> str | None:
    """Return the whole path of `chdir`, having entered it; None when nothing is to change.

    Raises:
        ConfigError: it cannot be entered.
    """
    if spec.chdir is None:
        return None
    path = os.path.join(start, spec.chdir)
    try:
        os.chdir(path)
    except OSError as error:
        from lowsuper.model import Origin, Problem

        first = Origin(spec.files[0] if spec.files else "command line", 0, "chdir", spec.chdir)
        origin = next((each for each in spec.origins if each.key == "chdir"), first)
        reason = f"{path} cannot be entered: {error.strerror}"
        raise ConfigError([Problem(origin, reason, advice="make it first")]) from None
    return path
