"""The verbs of the command line that a running master answers: what is typed, and the exit code.

One table has all verbs, with their options and what does the work; the help comes from it. The
work is done by the modules beside this one, each loaded when it is needed.
"""

from __future__ import annotations

from lowsuper.errors import LowsuperError
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from lowsuper.client import Client, ClientError

# Exit codes: the init scripts' (LSB), and that of timeout(1).
FAILED, USAGE, UNKNOWN_VERB, NO_PERMISSION, NO_SUCH_DAEMON, NOT_RUNNING = 1, 2, 3, 4, 5, 7
STATUS_DEAD_WITH_PIDFILE, STATUS_NOT_RUNNING, STATUS_UNKNOWN = 1, 3, 4
TIMED_OUT, INTERRUPTED, BROKEN_PIPE = 124, 130, 141

# How many names a verb takes.
NONE, ANY, SOME, ONE = "none", "any", "some", "one"


class Switch(Record):
    """An option of verbs."""

    name: str
    letter: str = ""
    value: str = ""  # what follows it, for people; "": nothing does
    text: str = ""


class Verb(Record):
    """A verb."""

    group: str
    function: str  # MODULE.FUNCTION of this package: (Call) -> exit code
    text: str  # what it does, in a few words
    names: str = NONE
    words: str = ""  # what is written behind it, where that is not NAME
    switches: tuple[str, ...] = ()


COMMON = (
    Switch("instance", "n", "NAME", "the master of this name, configuration file or socket"),
    Switch("json", "", "", "one JSON object for programs"),
    Switch("quiet", "q", "", "print nothing but errors"),
    Switch("timeout", "", "TIME", "wait no longer than that (exit status 124)"),
    Switch("no-block", "", "", "do not wait until it is done"),
    Switch("color", "", "WHEN", "auto, always or never"),
    Switch("help", "h", "", "what a verb does, and its options"),
)
"""Options that every verb takes; where one means nothing it does nothing."""

SWITCHES = (
    Switch("watch", "w", "", "show it again whenever something happens"),
    Switch("memory", "m", "", "memory, too, where many daemons are not shown on a terminal"),
    Switch("all", "a", "", "all daemons"),
    Switch("follow", "f", "", "go on with what is written from now on"),
    Switch("lines", "n", "N", "the last N lines"),
    Switch("signal", "s", "SIGNAL", "name or number"),
    Switch("running", "", "", "until it runs"),
    Switch("ready", "", "", "until it is ready (the default)"),
    Switch("stopped", "", "", "until nothing of it is left"),
    Switch("exited", "", "", "until it has ended once more"),
    Switch("kill", "", "", "at once, with SIGKILL"),
)
"""Options of some verbs. A letter that a common one has, too, is the verb's behind the verb."""

LOOK, STEER, MASTER = "Look", "Steer", "Master"

VERBS = {
    "status": Verb(
        LOOK, "show.status", "the daemons in a table", ANY, switches=("watch", "memory")
    ),
    "list": Verb(LOOK, "show.names", "the names of the daemons", ANY),
    "why": Verb(LOOK, "show.why", "what happened to a daemon, and what comes next", ONE),
    "logs": Verb(LOOK, "show.logs", "what it wrote", ONE, switches=("follow", "lines")),
    "events": Verb(LOOK, "show.events", "what happens, one JSON object a line", ANY),
    "tree": Verb(LOOK, "tree.show", "the processes of each daemon", ANY),
    "legion": Verb(LOOK, "legion.show", "the nodes of each legion, and the lord", ANY),
    "wait": Verb(
        LOOK,
        "show.wait",
        "wait for daemons",
        SOME,
        "NAME... [--running|--ready|--stopped|--exited]",
        ("running", "ready", "stopped", "exited", "all"),
    ),
    "is-active": Verb(LOOK, "show.is_active", "exit status 0 if all of them run", SOME),
    "is-ready": Verb(LOOK, "show.is_ready", "exit status 0 if all of them are ready", SOME),
    "is-failed": Verb(LOOK, "show.is_failed", "exit status 0 if one of them was given up", SOME),
    "start": Verb(STEER, "act.start", "start daemons", SOME, switches=("all",)),
    "stop": Verb(STEER, "act.stop", "stop daemons, and keep them down", SOME, switches=("all",)),
    "restart": Verb(STEER, "act.restart", "stop daemons, and start them", SOME, switches=("all",)),
    "try-restart": Verb(STEER, "act.try_restart", "the same if they run", SOME, switches=("all",)),
    "signal": Verb(STEER, "act.signal", "send a signal", SOME, "SIGNAL NAME...", ("signal", "all")),
    "reset-failed": Verb(STEER, "act.reset", "forget failures", ANY, switches=("all",)),
    "adopt": Verb(STEER, "act.adopt", "take a process for a smart daemon", SOME, "NAME PID"),
    "reload": Verb(
        MASTER, "act.reload", "read the configuration again; of daemons: have them do it", ANY
    ),
    "diff": Verb(MASTER, "act.diff", "what a reload would change"),
    "apply": Verb(MASTER, "act.apply", "change what differs, and leave the rest running"),
    "shutdown": Verb(MASTER, "act.shutdown", "stop everything", switches=("kill",)),
    "instances": Verb(MASTER, "show.instances", "the masters that run"),
    "completion": Verb(
        MASTER, "completion.write", "a script that completes all this in a shell", ONE, "SHELL"
    ),
}
"""All verbs, in the order of the help."""

OTHER_VERBS = ("run", "check", "enter", "doctor", "help", "version")
"""Those that ask no master."""

SEE_ALSO = "See lowsuper(8) for the exit status and lowsuper.conf(5) for the configuration.\n"


class UsageError(LowsuperError):
    """What was typed is not understood."""

    exit_code = USAGE


class Call(Record):
    """One verb as it was typed."""

    verb: str
    names: tuple[str, ...]
    options: dict[str, str]  # by long name; "" where nothing follows
    connect: Callable[[], Client]

    def has(self, name: str) -> bool:
        """Return whether an option was given."""
        return name in self.options

    @property
    def timeout(self) -> float | None:
        """The seconds that may be waited for; None: any number of them."""
        return float(self.options["timeout"]) if "timeout" in self.options else None

    @property
    def end(self) -> float | None:
        """The same as a point in time, of `time.monotonic`, if it begins now."""
        from time import monotonic

        return None if self.timeout is None else monotonic() + self.timeout


def find_verb(words: Sequence[str]) -> int:
    """Return at which place of a command line its verb is; -1: it is no request to a master.

    Before a verb there may be common options; whatever else comes first is a configuration file or
    an option of it.
    """
    place = 0
    while place < len(words):
        word = words[place]
        if not word.startswith("-"):
            return place if word in VERBS else -1
        name, equals, _ = word.removeprefix("--").partition("=")
        switch = next((s for s in COMMON if word.startswith("--") and s.name == name), None)
        if switch is None:
            switch = next((s for s in COMMON if s.letter and word.startswith(f"-{s.letter}")), None)
            equals = word[2:]
        if switch is None or switch.name == "help":
            return -1
        place += 2 if switch.value and not equals else 1
    return -1


def main(words: Sequence[str]) -> int | None:
    """Do what was typed; return the exit code, or None: there is no verb in it."""
    if find_verb(words) < 0:
        text = explain_unknown(words[0])
        if text:
            complain(text)
        return USAGE if text else None
    try:
        call = parse(words)
        return _do(call)
    except UsageError as error:
        complain(str(error))
        return USAGE
    except BrokenPipeError:
        return BROKEN_PIPE  # who read it has enough
    except KeyboardInterrupt:
        return INTERRUPTED


def explain_unknown(word: str) -> str:
    """Return what is wrong with a word that looks like a verb; "": it may be something else."""
    from os.path import lexists

    if not word.replace("-", "").isalpha() or word.startswith("-") or lexists(word):
        return ""
    from lowsuper.units import nearest_name

    near = nearest_name(word, (*VERBS, *OTHER_VERBS))
    hint = f"; did you mean {near}?" if near else "; see lowsuper --help"
    return f"{word} is neither a verb nor a file{hint}"


def _do(call: Call) -> int:
    if call.has("help"):
        from lowsuper.ctl.screen import write

        write(explain_verb(call.verb))
        return 0
    try:
        return find_function(call.verb)(call)
    except UsageError:
        raise
    except LowsuperError as error:
        return _fail(call, error)


def _fail(call: Call, error: LowsuperError) -> int:
    """Say what went wrong; return the exit code."""
    from lowsuper.client import ClientError

    if not isinstance(error, ClientError):
        complain(str(error))
        return FAILED
    if call.has("json"):
        from lowsuper import wire
        from lowsuper.ctl.screen import write

        failed = {"schema": 1, "ok": False, "error": error.code, "message": error.message}
        write(wire.encode(error.answer or failed) + "\n")
    else:
        complain(error.message + _suggest(call, error))
    return exit_code(call, error)


def _suggest(call: Call, error: ClientError) -> str:
    """Return the nearest names for those that are unknown."""
    if error.code != "unknown-name" or "did you mean" in error.message:
        return ""
    from lowsuper.units import nearest_name

    with call.connect() as master:
        known = list(master.status())
    nearest = [nearest_name(name, known) for name in call.names if name not in known]
    found = " or ".join(name for name in nearest if name)
    return f"; did you mean {found}?" if found else ""


def exit_code(call: Call, error: ClientError) -> int:
    """Return the exit code for a request that failed."""
    code = error.code
    if code == "timeout":
        return TIMED_OUT
    if call.verb == "status":
        return STATUS_UNKNOWN
    if code == "unknown-name":
        return STATUS_UNKNOWN if call.verb.startswith("is-") else NO_SUCH_DAEMON
    return {
        "unknown-verb": UNKNOWN_VERB,
        "not-permitted": NO_PERMISSION,
        "not-running": NOT_RUNNING,
    }.get(code, FAILED)


def find_function(verb: str) -> Callable[[Call], int]:
    """Return what does the work of a verb."""
    module, _, name = VERBS[verb].function.partition(".")
    return getattr(_load(module), name)  # type: ignore[no-any-return]  # as the table says


def _load(module: str) -> ModuleType:
    if module == "show":
        from lowsuper.ctl import show

        return show
    if module == "act":
        from lowsuper.ctl import act

        return act
    if module == "completion":
        from lowsuper.ctl import completion

        return completion
    if module == "legion":
        from lowsuper.ctl import legion

        return legion
    from lowsuper.ctl import tree

    return tree


def complain(text: str) -> None:
    """Write a line to standard error."""
    from lowsuper.ctl.screen import clean, write

    write("".join(f"lowsuper: {clean(line)}\n" for line in text.split("\n")), fd=2)


# What was typed.


def parse(words: Sequence[str]) -> Call:
    """Return the call that a command line is; options stand before or after names.

    Raises:
        UsageError: an option is unknown or lacks its value, or the names are too few or too many.
    """
    place = find_verb(words)
    verb = words[place]
    options = _Words(words[:place], verb, COMMON).options
    own = tuple(each for each in SWITCHES if each.name in VERBS[verb].switches)
    found = _Words(words[place + 1 :], verb, own + COMMON)
    options |= found.options
    if "timeout" in options:
        options["timeout"] = _parse_timeout(options["timeout"])
    target = options.get("instance")

    def connect() -> Client:
        from lowsuper import client

        return client.connect(target)

    call = Call(verb, tuple(found.names), options, connect)
    if "help" not in options:
        _require_names(call)
    return call.replace(names=("*",)) if "all" in options and verb != "signal" else call


class _Words:
    """The words of a command line, parted into options and names."""

    def __init__(self, words: Sequence[str], verb: str, switches: tuple[Switch, ...]) -> None:
        """Part them; a letter is that of the first switch that has it."""
        self.names: list[str] = []
        self.options: dict[str, str] = {}
        self._verb, self._switches = verb, switches
        self._rest = list(reversed(words))
        while self._rest:
            word = self._rest.pop()
            if word == "--":
                self.names += reversed(self._rest)
                break
            if word.startswith("--"):
                self._take_long(word)
            elif word.startswith("-") and word != "-":
                self._take_letters(word)
            else:
                self.names.append(word)

    def _take_long(self, word: str) -> None:
        name, equals, value = word[2:].partition("=")
        if name == "no-color":
            name, equals, value = "color", "=", "never"
        switch = next((each for each in self._switches if each.name == name), None)
        if switch is None:
            from lowsuper.units import nearest_name

            near = nearest_name(name, [each.name for each in self._switches])
            hint = f"; did you mean --{near}?" if near else ""
            raise self._wrong(f"there is no option --{name}{hint}")
        if switch.value:
            self.options[name] = value if equals else self._next(switch, f"--{name}")
        elif equals:
            raise self._wrong(f"--{name} takes no value")
        else:
            self.options[name] = ""

    def _take_letters(self, word: str) -> None:
        letters = word[1:]
        if self._verb == "signal" and (letters.isdigit() or letters[0].isupper()):
            self.options["signal"] = letters  # -HUP, as kill(1) has it
            return
        if self._verb == "logs" and letters.isdigit():
            self.options["lines"] = letters  # -20, as tail(1) has it
            return
        while letters:
            letter, letters = letters[0], letters[1:]
            switch = next((each for each in self._switches if each.letter == letter), None)
            if switch is None:
                raise self._wrong(f"there is no option -{letter}")
            if switch.value:
                given = letters.removeprefix("=")
                self.options[switch.name] = given or self._next(switch, f"-{letter}")
                return
            self.options[switch.name] = ""

    def _next(self, switch: Switch, word: str) -> str:
        if not self._rest:
            raise self._wrong(f"{word} needs a value: {switch.value}")
        return self._rest.pop()

    def _wrong(self, text: str) -> UsageError:
        return UsageError(f"{self._verb}: {text}; see lowsuper {self._verb} --help")


def _parse_timeout(text: str) -> str:
    from lowsuper.units import SECOND, parse_duration

    try:
        return str(parse_duration(text) / SECOND)
    except ValueError as error:
        raise UsageError(f"--timeout {text}: {error}") from None


def _require_names(call: Call) -> None:
    verb, count = VERBS[call.verb], len(call.names)
    wanted = _synopsis(call.verb)
    if verb.names == NONE and count:
        raise UsageError(f"{call.verb} takes no names: {wanted}")
    if verb.names == ONE and count != 1:
        raise UsageError(f"{call.verb} takes one name: {wanted}")
    if verb.names == SOME and not count and not call.has("all"):
        hint = "; --all for all of them" if "all" in verb.switches else ""
        raise UsageError(f"{call.verb} needs names: {wanted}{hint}")
    if call.has("all") and count and call.verb != "signal":
        raise UsageError(f"{call.verb}: names, or --all, but not both")


# Help.


def _synopsis(name: str) -> str:
    verb = VERBS[name]
    words = verb.words or {NONE: "", ANY: "[NAME]...", SOME: "NAME...", ONE: "NAME"}[verb.names]
    return f"lowsuper {name} {words}".rstrip()


def explain_verb(name: str) -> str:
    """Return the help of a verb."""
    verb = VERBS[name]
    own = [each for each in SWITCHES if each.name in verb.switches]
    taken = {each.letter for each in own}
    lines = [f"usage: {_synopsis(name)} [OPTION]...", "", f"  {verb.text}", ""]
    for switch in (*own, *COMMON):
        letter = switch.letter
        if switch not in own and letter in taken:
            letter = ""
        short = f"-{letter}, " if letter else "    "
        lines.append(f"  {short}{f'--{switch.name} {switch.value}':<18}  {switch.text}")
    return "\n".join(lines) + "\n\n" + SEE_ALSO
