"""From the options that were read to a `MasterSpec`, or to all that is wrong with them.

Pure. One function per kind of option; the daemons are `daemons`' work.
"""

from __future__ import annotations

from lowsuper.config import keys, options
from lowsuper.config.daemons import DaemonBuilder
from lowsuper.config.expand import has_unknown, suggest
from lowsuper.config.logic import is_block_line
from lowsuper.config.pidfiles import find_clashes
from lowsuper.errors import ConfigError
from lowsuper.model import EnvChange, Listen, MasterSpec, Problem
from lowsuper.units import parse_bool, parse_duration, parse_mode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowsuper.config.dialect import Option, Reading
    from lowsuper.config.legion import LegionBuilder
    from lowsuper.config.options import OptionRow
    from lowsuper.model import ControlRule, DaemonSpec, Endpoint, Hook, Origin

DEFAULT_LOG_DATE = "%a %b %e %H:%M:%S %Y"
"""What `log-date` without a format means: ctime(3)'s."""

DEFAULT_NAME = "lowsuper"
_RUNGS = ("auto", "cgroup", "shim")
_ROOTS = ("0", "root")
_FOR_APPLICATIONS = "does nothing here: lowsuper runs no application"


class Builder:
    """Collects one specification; `build` does it, once."""

    def __init__(self, reading: Reading, directories: Mapping[str, tuple[EnvChange, ...]]) -> None:
        """Take what was read.

        Args:
            reading: the options.
            directories: what each `envdir` holds.
        """
        self._reading = reading
        self._directories = directories
        self._problems = list(reading.problems)
        self._fields: dict[str, object] = {}
        self._lists: dict[str, list[str]] = {}
        self._hooks: list[tuple[str, Hook]] = []
        self._env: list[EnvChange] = []
        self._sockets: list[Option] = []  # each `socket`
        self._socket_place = 0  # of what there is to say of it, among the problems
        self._late_env: list[EnvChange] = []
        self._origins: list[Origin] = []
        self._noticed: set[str] = set()
        self._rules: list[ControlRule] = []
        self._jail: dict[str, list[Option]] = {}
        self._cgroup: dict[str, list[Option]] = {}
        self._legions: LegionBuilder | None = None
        self._daemons = DaemonBuilder(self._problems)
        self._kinds: dict[str, Callable[[OptionRow, Option], None]] = {
            options.FLAG: self._take_flag,
            options.TEXT: self._take_text,
            options.DIRECTORY: self._take_directory,
            options.MODE: self._take_mode,
            options.DURATION: self._take_duration,
            options.TEXTS: self._take_texts,
            **dict.fromkeys(options.HOOK_KINDS, self._take_hook),
            options.ENV: self._take_env,
            options.UNENV: self._take_unenv,
            options.ENVDIR: self._take_envdir,
            options.DAEMON: self._take_daemon,
            options.DAEMON2: self._take_daemon2,
            options.SMART: self._take_smart,
            options.LOG_DATE: self._take_log_date,
            options.LOG: self._take_log,
            options.NAME: self._take_name,
            options.PREFIX: self._take_prefix,
            options.RUNG: self._take_rung,
            options.CONTROL: self._take_control,
            options.NAMESPACE: self._take_jail,
            options.KEEP: self._take_jail,
            options.JAIL_FLAG: self._take_jail,
            options.NETWORK: self._take_network,
            options.LINK: self._take_jail,
            options.CHROOT: self._take_jail,
            options.PIVOT: self._take_jail,
            options.UNSHARE: self._take_jail,
            options.SETNS: self._take_jail,
            options.CAPS: self._take_caps,
            options.SETNS_SOCKET: self._take_setns_socket,
            options.SETNS_SKIP: self._take_setns_skip,
            options.STATS: self._take_stats,
            options.STATS_MODE: self._take_socket_mode,
            options.CGROUP: self._take_cgroup,
            options.LEGION: self._take_legion,
            options.LEGION_DAEMON: self._take_legion_daemon,
            options.LEGION_SMART: self._take_legion_smart,
            options.ACCEPTED: self._take_accepted,
        }

    def build(self) -> MasterSpec:
        """Return the specification.

        Raises:
            ConfigError: with everything that is wrong, and the warnings too.
        """
        for option in self._reading.options:
            if option.daemon:
                if not is_block_line(option.name):
                    self._daemons.add_key(option)
            elif not option.placeholder and not options.find_reader_option(option.name):
                self._take(option)
        daemons = self._daemons.finish()
        lists = {field: tuple(values) for field, values in self._lists.items()}
        spec = MasterSpec(
            name=self._find_name(),
            files=self._reading.files,
            daemons=daemons,
            hooks=tuple(hook for _, hook in sorted(self._hooks, key=_hook_rank)),
            env=(*self._env, *self._late_env),
            origins=tuple(self._origins),
        ).replace(**self._fields, **lists)
        if self._jail:
            spec = self._add_jail(spec)
        if self._cgroup:
            spec = self._add_cgroup(spec)
        if self._legions is not None or any(each.legion is not None for each in daemons):
            spec = self._legion_builder.finish(spec)
        spec = self._bind_sockets(spec)
        self._judge_listen(spec)
        self._require_root(spec)
        if spec.caps is not None and not spec.master_as_root:
            self._require_caps(spec)
        self._judge_logs(spec)
        self._require_cgroups(spec)
        self._refuse_clashes(spec)
        self._judge_order(spec)
        self._notice_hooks_of_no_jail(spec)
        self._judge_stats(spec)
        problems = tuple(dict.fromkeys(self._problems))
        if any(problem.is_error for problem in problems):
            raise ConfigError(problems, spec)
        return spec.replace(notices=problems)

    def _find_name(self) -> str:
        name = self._fields.pop("name", "")
        if not name and self._reading.files:
            base = self._reading.files[0].rpartition("/")[2]
            name = keys.clean_name(base.removesuffix(".ini"))
        return str(name or DEFAULT_NAME)

    def _fault(self, option: Option, reason: str, advice: str = "") -> None:
        self._problems.append(Problem(option.origin, reason, advice=advice))

    def _warn(self, option: Option, reason: str, advice: str = "") -> None:
        self._problems.append(Problem(option.origin, reason, advice=advice, is_error=False))

    def _take(self, option: Option) -> None:
        """Apply one option, or say why not."""
        row = options.find_row(option.name)
        if row is not None and row.kind == options.LEGION:
            option = hide_secret(row, option)
        if row is None:
            self._take_other(option)
        elif has_unknown(option.value):
            self._warn(option, "was not looked at: a command gives its value", "use --exec")
        elif "\0" in option.value:
            self._fault(option, "holds a NUL byte")
        else:
            self._origins.append(option.origin.replace(key=row.names[0]))
            try:
                self._kinds[row.kind](row, option)
            except ValueError as error:
                self._fault(option, str(error))

    def _take_other(self, option: Option) -> None:
        """Judge an option that is not applied."""
        name = option.name
        if options.is_refused(name):
            self._fault(option, *options.explain_refusal(name))
        elif options.is_ignored(name):
            self._notice_ignored(option)
        elif name not in self._reading.used and option.origin.file != "environment":
            self._warn_unused(option)

    def _notice_ignored(self, option: Option) -> None:
        if option.name in self._noticed:
            if option.name == "socket":
                self._sockets.append(option)
            return
        self._noticed.add(option.name)
        if option.name == "socket":
            self._sockets.append(option)
            self._socket_place = len(self._problems)
        else:
            self._warn(option, _FOR_APPLICATIONS)

    def _bind_sockets(self, spec: MasterSpec) -> MasterSpec:
        """Give the addresses of `socket` to daemons that ask for them; else say that it is idle."""
        askers = [
            daemon
            for daemon in spec.daemons
            if any(each.endpoint.kind == keys.SOCKET for each in daemon.listen)
        ]
        if not askers:
            if self._sockets:
                reason = "binds only if a daemon asks for it"
                idle = Problem(self._sockets[0].origin, reason, is_error=False)
                self._problems.insert(self._socket_place, idle)
            return spec
        found: list[Endpoint] = []
        from lowsuper.config.stats import parse_endpoint

        for option in self._sockets:
            try:
                found.append(parse_endpoint(option.value))
            except ValueError as error:
                self._fault(option, str(error))
        if not self._sockets:
            for daemon in askers:
                origin = self._daemons.find_origin(daemon.name, "listen")
                reason = "asks for the addresses of socket, and there is no such option"
                self._problems.append(Problem(origin, reason, daemon.name, "add socket = ADDRESS"))
        changed = {daemon.name: _replace_sockets(daemon, found) for daemon in askers}
        daemons = tuple(changed.get(daemon.name, daemon) for daemon in spec.daemons)
        return spec.replace(daemons=daemons)

    def _judge_listen(self, spec: MasterSpec) -> None:
        """Refuse a descriptor that is to be two things."""
        for daemon in spec.daemons:
            ready = daemon.ready
            if not daemon.listen or ready is None or ready.kind != "fd":
                continue
            last = 2 + len(daemon.listen)
            if int(ready.target) <= last:
                origin = self._daemons.find_origin(daemon.name, "ready")
                reason = f"the descriptors from 3 to {last} are those of listen"
                self._problems.append(Problem(origin, reason, daemon.name, f"use fd:{last + 1}"))

    def _warn_unused(self, option: Option) -> None:
        first, blank, rest = option.name.partition(" ")
        if blank and options.is_option(first):
            after = f"={option.value}" if option.value else ""
            advice = f"did you mean {first} = {rest.strip()}{after}?"
            self._warn(option, "there is no such option: a key ends at the =", advice)
            return
        self._warn(
            option,
            "there is no such option, and nothing uses it as a placeholder",
            suggest(option.name, options.list_names(), 0.75),
        )

    # One function for each kind.

    def _take_flag(self, row: OptionRow, option: Option) -> None:
        self._fields[row.field] = parse_bool(option.value)

    def _take_text(self, row: OptionRow, option: Option) -> None:
        if not option.value:
            raise ValueError("needs a value")
        if option.name == "procname" and row.field in self._fields:
            return
        self._fields[row.field] = option.value
        if row.names[0].startswith("procname"):
            self._fields["auto_procname"] = True

    def _take_directory(self, row: OptionRow, option: Option) -> None:
        if not option.value.startswith("/"):
            raise ValueError("is not an absolute path: begin it with /")
        self._fields[row.field] = option.value

    def _take_prefix(self, row: OptionRow, option: Option) -> None:
        self._fields[row.field] = option.value + " "
        self._fields["auto_procname"] = True

    def _take_mode(self, row: OptionRow, option: Option) -> None:
        self._fields[row.field] = parse_mode(option.value)

    def _take_duration(self, row: OptionRow, option: Option) -> None:
        self._fields[row.field] = parse_duration(option.value)

    def _take_texts(self, row: OptionRow, option: Option) -> None:
        if not option.value:
            raise ValueError("needs a value")
        self._lists.setdefault(row.field, []).append(option.value)

    def _take_hook(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.hooks import parse_hook  # long, and many files have no hook

        origin = option.origin.replace(key=row.names[0])
        self._hooks.append((row.kind, parse_hook(row.kind, row.field, origin)))

    def _take_env(self, _row: OptionRow, option: Option) -> None:
        name, equals, value = option.value.partition("=")
        if not equals or not name.strip():
            raise ValueError("is not NAME=value")
        self._env.append(EnvChange(name, value))

    def _take_unenv(self, _row: OptionRow, option: Option) -> None:
        if not option.value or "=" in option.value:
            raise ValueError("is not the name of a variable")
        self._env.append(EnvChange(option.value, None))

    def _take_envdir(self, _row: OptionRow, option: Option) -> None:
        # As in uWSGI, what envdir says comes after all of env.
        self._late_env.extend(self._directories.get(option.value, ()))

    def _take_daemon(self, row: OptionRow, option: Option) -> None:
        self._daemons.add_command(option, control=bool(row.field))

    def _take_daemon2(self, _row: OptionRow, option: Option) -> None:
        self._daemons.add_keyval(option)

    def _take_smart(self, row: OptionRow, option: Option) -> None:
        self._daemons.add_smart(option, daemonize=bool(row.field))

    def _take_log_date(self, row: OptionRow, option: Option) -> None:
        try:
            self._fields[row.field] = DEFAULT_LOG_DATE if parse_bool(option.value) else None
        except ValueError:
            self._fields[row.field] = option.value

    def _take_log(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config import logs  # few files say anything of it

        if row.field == "log_format" and option.value not in logs.FORMATS:
            # In uWSGI's files it is how an application's requests are logged.
            self._warn(option, _FOR_APPLICATIONS, "text and json are formats of lowsuper's lines")
            return
        self._fields[row.field] = logs.parse_option(row.field, option.value)

    def _take_name(self, row: OptionRow, option: Option) -> None:
        self._fields[row.field] = keys.parse_name(option.value)

    def _take_rung(self, row: OptionRow, option: Option) -> None:
        if option.value not in _RUNGS:
            raise ValueError(f"is none of {', '.join(_RUNGS)}")
        self._fields[row.field] = option.value

    def _take_control(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config import control  # few files say anything of it

        if row.field == "control_allow":
            self._rules.append(control.parse_rule(option.value))
            self._fields[row.field] = tuple(self._rules)
        elif row.field == "control_owner":
            self._fields[row.field] = control.parse_owner(option.value)
        else:
            self._fields[row.field] = control.parse_socket(option.value)

    def _take_caps(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.isolation import parse_master_caps

        self._fields[row.field] = parse_master_caps(option.value)

    def _take_stats(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.stats import parse_endpoint  # few files have any

        self._fields[row.field] = parse_endpoint(option.value)

    def _take_socket_mode(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.stats import parse_socket_mode

        self._fields[row.field] = parse_socket_mode(option.value)

    def _take_jail(self, row: OptionRow, option: Option) -> None:
        self._jail.setdefault(row.field, []).append(option)

    def _take_network(self, row: OptionRow, option: Option) -> None:
        """Take whether a jail has a network of its own, or which one it joins: the last counts."""
        try:
            parse_bool(option.value)
        except ValueError:
            self._jail.setdefault("netns", []).append(option)
        else:
            self._jail.pop("netns", None)
            self._jail.setdefault(row.field, []).append(option)

    def _take_setns_socket(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.jail import parse_socket

        self._fields[row.field] = parse_socket(option.value)

    def _take_setns_skip(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.jail import parse_skip

        self._lists.setdefault(row.field, []).extend(parse_skip(option.value))

    def _add_jail(self, spec: MasterSpec) -> MasterSpec:
        from lowsuper.config.jail import read_jail  # few files have one

        jail, problems = read_jail(self._jail)
        self._problems += problems
        if "netns" in self._jail or "links" in self._jail:
            from lowsuper.config.network import add_network  # even fewer have

            jail, problems = add_network(jail, self._jail)
            self._problems += problems
        if jail is not None and not jail.has_cgroups and spec.kill_domain == "cgroup":
            origin = next(each for each in reversed(spec.origins) if each.key == "kill-domain")
            reason = "there are no cgroups in a jail"
            self._problems.append(Problem(origin, reason, advice="leave it out"))
        return spec.replace(jail=jail)

    def _take_cgroup(self, row: OptionRow, option: Option) -> None:
        self._cgroup.setdefault(row.field, []).append(option)

    def _add_cgroup(self, spec: MasterSpec) -> MasterSpec:
        from lowsuper.config.cgroups import read_cgroup  # few files have one

        fields, problems = read_cgroup(self._cgroup)
        self._problems += problems
        return spec.replace(**fields)

    def _require_cgroups(self, spec: MasterSpec) -> None:
        """Refuse limits of a cgroup where daemons get none."""
        if spec.jail is not None and not spec.jail.has_cgroups:
            reason, advice = "there are no cgroups in a jail", "use cgroup and cgroup-opt"
        elif spec.kill_domain == "shim":
            reason, advice = "needs a cgroup, and kill-domain = shim makes none", "use auto"
        else:
            return
        for daemon in spec.daemons:
            if daemon.cgroup:
                origin = self._daemons.find_origin(daemon.name, "cgroup_memory_max")
                self._problems.append(Problem(origin, reason, daemon.name, advice))

    @property
    def _legion_builder(self) -> LegionBuilder:
        if self._legions is None:
            from lowsuper.config.legion import LegionBuilder  # most files have none

            self._legions = LegionBuilder(self._problems)
        return self._legions

    def _take_legion(self, row: OptionRow, option: Option) -> None:
        self._legion_builder.take(row.names[0], option)

    def _take_legion_daemon(self, _row: OptionRow, option: Option) -> None:
        from lowsuper.config.legion import split_name

        name, command = split_name(option.value, "a command")
        self._daemons.add_command(option.replace(value=command), control=False, legion=name)

    def _take_legion_smart(self, row: OptionRow, option: Option) -> None:
        from lowsuper.config.legion import split_name

        name, rest = split_name(option.value, "a pidfile and a command")
        self._daemons.add_smart(option.replace(value=rest), daemonize=bool(row.field), legion=name)

    def _take_accepted(self, _row: OptionRow, option: Option) -> None:
        parse_bool(option.value)

    def _require_root(self, spec: MasterSpec) -> None:
        """Refuse daemons that want another identity than that to which the master drops."""
        drops = spec.user not in (None, *_ROOTS) or spec.group not in (None, *_ROOTS)
        if not drops or spec.master_as_root:
            return
        for daemon in spec.daemons:
            for mine, its, key in (
                (spec.user, daemon.user, "uid"),
                (spec.group, daemon.group, "gid"),
            ):
                if its is not None and its != mine:
                    origin = self._daemons.find_origin(daemon.name, key)
                    reason = "the master drops its privileges and cannot change to it"
                    advice = "set master-as-root = true"
                    self._problems.append(Problem(origin, reason, daemon.name, advice))

    def _require_caps(self, spec: MasterSpec) -> None:
        """Refuse daemons whose start takes a capability that the master does not keep."""
        from lowsuper.config.isolation import find_lost

        drops = spec.user not in (None, *_ROOTS)
        for daemon in spec.daemons:
            for key, names in find_lost(daemon, spec.caps or ()):
                if drops and key in ("uid", "gid"):
                    continue  # it is the same as the master's
                origin = self._daemons.find_origin(daemon.name, key)
                reason = f"the master does not keep {', '.join(names)}, which it takes"
                advice = "add it to cap, or set master-as-root = true"
                self._problems.append(Problem(origin, reason, daemon.name, advice))

    def _judge_logs(self, spec: MasterSpec) -> None:
        """Refuse what cannot be done with logs."""
        keys_of_file = ("log_maxsize", "log_max_age", "log_backups", "log_backupname")
        fields = [field for field in keys_of_file if getattr(spec, field) is not None]
        rotated = [
            daemon
            for daemon in spec.daemons
            if (daemon.log is not None and daemon.log.kind == "ring")
            or (daemon.log_maxsize, daemon.log_max_age, daemon.log_backups) != (None, None, None)
        ]
        if not fields and not rotated:
            return
        from lowsuper.config import logs

        for daemon, key, reason, advice, is_error in logs.find_faults(spec, fields, rotated):
            if daemon:
                origin = self._daemons.find_origin(daemon, key)
            else:
                origin = next(each for each in reversed(spec.origins) if each.key == key)
            self._problems.append(Problem(origin, reason, daemon, advice, is_error=is_error))

    def _notice_hooks_of_no_jail(self, spec: MasterSpec) -> None:
        for hook in spec.hooks:
            if hook.phase == "post-jail" and (spec.jail is None or not spec.jail.post_jail):
                reason = "does nothing without a jail"
                if spec.jail is not None:
                    reason = f"does nothing with {spec.jail.way}, only with namespace or unshare"
                self._problems.append(Problem(hook.origin, reason, is_error=False))

    def _judge_stats(self, spec: MasterSpec) -> None:
        """Refuse statistics that cannot be served, and notice what says nothing of any."""
        served = {"stats": spec.stats, "metrics": spec.metrics}
        for origin in spec.origins:
            if origin.key == "chmod-socket":
                if not any(served.values()):
                    self._problems.append(Problem(origin, _FOR_APPLICATIONS, is_error=False))
            elif origin.key not in served:
                continue
            elif spec.jail is not None:
                reason = "is not available for a jail: what is in it could not be reached there"
                advice = "leave it out, and use lowsuper status --json"
                self._problems.append(Problem(origin, reason, advice=advice))
            elif spec.stats == spec.metrics:
                reason = "is where the other of stats and metrics is served"
                self._problems.append(Problem(origin, reason, advice="use two addresses"))

    def _refuse_clashes(self, spec: MasterSpec) -> None:
        """Refuse daemons that would take each other's, or the master's, pidfile for their own."""
        for name, reason in find_clashes(spec):
            origin = self._daemons.find_origin(name, "pidfile")
            advice = "give each a pidfile of its own"
            self._problems.append(Problem(origin, reason, name, advice))

    def _judge_order(self, spec: MasterSpec) -> None:
        """Refuse an order and a readiness that cannot come about."""
        if not any(map(has_order, spec.daemons)):
            return
        from lowsuper.config.readiness import find_problems  # many files have neither

        found = find_problems(spec.daemons, self._daemons.list_names())
        for name, key, reason, advice, is_error in found:
            origin = self._daemons.find_origin(name, key)
            self._problems.append(Problem(origin, reason, name, advice, is_error=is_error))


def hide_secret(row: OptionRow, option: Option) -> Option:
    """Return an option of the Legion whose origin shows no secret."""
    from lowsuper.config.legion import redact

    shown = redact(row.names[0], option.origin.value)
    return option.replace(origin=option.origin.replace(value=shown))


def _replace_sockets(daemon: DaemonSpec, found: list[Endpoint]) -> DaemonSpec:
    listen: list[Listen] = []
    for each in daemon.listen:
        if each.endpoint.kind == keys.SOCKET:
            listen += (Listen(endpoint, each.name) for endpoint in found)
        else:
            listen.append(each)
    return daemon.replace(listen=tuple(listen))


def has_order(daemon: DaemonSpec) -> bool:
    """Tell whether a daemon has something that only fits together with other things."""
    return (
        daemon.ready is not None
        or daemon.kind != "simple"
        or daemon.start_timeout is not None
        or bool(daemon.requires or daemon.wants or daemon.after)
    )


def _hook_rank(hook: tuple[str, Hook]) -> int:
    """Return the place of a hook's kind; as in uWSGI, in a phase one kind comes after the other."""
    return options.HOOK_KINDS.index(hook[0])


def build_spec(reading: Reading, directories: Mapping[str, tuple[EnvChange, ...]]) -> MasterSpec:
    """Return what the options mean.

    Args:
        reading: the options, as `dialect` read them.
        directories: the changes that each directory named by `envdir` asks for.

    Raises:
        ConfigError: with all problems; its warnings are among them.
    """
    return Builder(reading, directories).build()
