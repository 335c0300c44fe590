"""Read uWSGI's ini dialect: from files, arguments and environment to a list of options.

Rule 1: no I/O; what is needed is asked for (`requests`). Rule 2: what uWSGI reads is read alike,
in the same order: magic variables in the raw text, options in the order of the lines with some
acting at once (`include`, `for`, `set`, `strict`, ...), then `$(...)`, `@(...)` and `%(...)` over
all values, then `inherit`. Rule 3: everything wrong is collected, and no value loses its place.
"""

from __future__ import annotations

from lowsuper.config import expand, logic, options
from lowsuper.config.requests import UNKNOWN, AskFact, Failure, ReadDirectory
from lowsuper.config.text import (
    DAEMON_PREFIX,
    FACT_MAGIC,
    FIRST_MAGIC,
    build_magic,
    find_magic,
    parse_lines,
)
from lowsuper.model import Origin, Problem
from lowsuper.record import Record
from lowsuper.units import parse_bool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.config.requests import Asking, FileText
    from lowsuper.config.text import Line, Parsed

_SECTIONS = ("uwsgi", "lowsuper")
_OTHER_ENDINGS = (".xml", ".yml", ".yaml", ".json", ".js")
_MOST_OPTIONS = 100_000


class Option(Record):
    """One option, as it is to be applied."""

    name: str
    value: str
    origin: Origin
    daemon: str = ""  # the NAME of its [daemon:NAME] section, or ""
    bare: bool = False  # written without "="
    fixed: bool = False  # its value is not expanded any more
    placeholder: bool = False  # it was said to be one, or comes from the environment


class Reading(Record):
    """The result of reading."""

    options: tuple[Option, ...]
    problems: tuple[Problem, ...]
    files: tuple[str, ...]  # absolute, in the order of reading
    used: frozenset[str]  # names that some %(name) or if-opt asked for


def split_section(asked: str) -> tuple[str, str]:
    """Return the path and the section of `file:section`; the section may be ""."""
    scheme, _ = expand.split_scheme(asked)
    head, slash, tail = asked.rpartition("/") if scheme else ("", "", asked)
    path, colon, section = tail.rpartition(":")
    return (head + slash + path, section) if colon else (asked, "")


class Reader:
    """One reading of a configuration; `read` does it, once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Start with nothing read.

        Args:
            environ: for `$(NAME)` and `if-env`; it is copied.
        """
        self._environ = dict(environ)
        self._options: list[Option] = []
        self._problems: list[Problem] = []
        self._files: list[str] = []
        self._used: set[str] = set()
        self._custom: dict[str, str] = {}
        self._facts: dict[str, str] = {}
        self._first_magic: dict[str, str] = {}
        self._last_file = ""  # as it was written
        self._chain: list[tuple[str, str]] = []  # the files being read, with their sections
        self._inner_chain: tuple[tuple[str, str], ...] = ()  # the same for the last one finished
        self._daemon_files: set[str] = set()
        self._strict = False
        self._opener: Option | None = None
        self._block = logic.Block((), is_loop=False)
        self._nested: Origin | None = None  # of a block in a block
        self._unopened_ends = 0  # that are to be passed over

    def read(self, arguments: Sequence[Option]) -> Asking[Reading]:
        """Return all options that the arguments and what they load amount to.

        Args:
            arguments: the options of environment and command line, in this order.
        """
        for argument in arguments:
            yield from self._add(argument)
        if self._opener is not None:
            origin = self._opener.origin
            self._fault(origin, "the block has no end", "close it with endif or endfor")
            self._opener = None
        yield from self._expand_all()
        yield from self._inherit_all()
        if self._strict:
            self._require_known()
        self._options = [
            each for option in self._options for each in self._expand_custom(option, ())
        ]
        return Reading(
            tuple(self._options),
            tuple(self._problems),
            tuple(self._files),
            frozenset(self._used),
        )

    # Problems and facts.

    def _fault(self, origin: Origin, reason: str, advice: str = "") -> None:
        self._problems.append(Problem(origin, reason, advice=advice))

    def _warn(self, origin: Origin, reason: str, advice: str = "") -> None:
        self._problems.append(Problem(origin, reason, advice=advice, is_error=False))

    def _ask_fact(self, name: str) -> Asking[str]:
        if name not in self._facts:
            answer = yield AskFact(name)
            assert isinstance(answer, str)
            self._facts[name] = answer
        return self._facts[name]

    def _find_first(self, name: str) -> str | None:
        """Return the first value of an option, which counts as a use of it."""
        for wanted in (name, options.normalize(name)):
            for option in self._options:
                if not option.daemon and wanted in (option.name, options.normalize(option.name)):
                    self._used.add(option.name)
                    return option.value
        return None

    # One option after the other.

    def _add(self, option: Option, *, in_block: bool = False) -> Asking[None]:
        """Take one option in, as uWSGI's add_exported_option does."""
        keyword = "" if option.placeholder else options.find_reader_option(option.name)
        if option.daemon and not logic.is_block_line(option.name):
            keyword = ""
        if not in_block:
            if keyword in logic.ENDS:
                self._end_block(option)
            elif keyword == "else":
                self._else_block(option)
            elif self._opener is not None:
                yield from self._repeat(option)
                return
        if len(self._options) >= _MOST_OPTIONS:
            return
        self._options.append(option.replace(fixed=True) if keyword else option)
        if len(self._options) == _MOST_OPTIONS:
            self._fault(option.origin, f"there are more than {_MOST_OPTIONS} options")
        if keyword:
            yield from self._act(keyword, option, in_block=in_block)

    def _require_known(self) -> None:
        """Refuse placeholders that were not declared, wherever `strict` stands."""
        for option in self._options:
            is_open = not (option.daemon or option.placeholder or option.name in self._custom)
            if is_open and not options.is_option(option.name):
                near = expand.suggest(option.name, options.list_names())
                advice = near or "define a placeholder with set-ph"
                self._fault(option.origin, "strict: there is no such option", advice)

    def _repeat(self, option: Option) -> Asking[None]:
        for item in self._block.items:
            value = option.value if item is None else option.value.replace("%(_)", item)
            origin = option.origin.replace(value=value)
            yield from self._add(option.replace(value=value, origin=origin), in_block=True)

    def _end_block(self, option: Option) -> None:
        if self._opener is None and not self._unopened_ends:
            self._fault(option.origin, "there is no open block here")
        elif self._opener is None:
            self._unopened_ends -= 1
        self._opener = None

    def _else_block(self, option: Option) -> None:
        if self._opener is None or self._block.is_loop:
            self._fault(option.origin, "there is no open if here")
        else:
            self._block = logic.switch_to_else(self._block)

    def _act(self, keyword: str, option: Option, *, in_block: bool) -> Asking[None]:
        """Do what an option does while files are read."""
        if logic.is_opener(keyword):
            yield from self._open(keyword, option, in_block=in_block)
        elif keyword in ("ini", "config", "include"):
            yield from self._load(option, is_template=keyword == "include")
        elif keyword in ("set", "set-ph", "set-placeholder"):
            yield from self._set(option, only_placeholder=keyword != "set", in_block=in_block)
        elif keyword == "strict":
            self._set_strict(option)
        elif keyword in ("declare-option", "declare-option2"):
            self._declare(option)
        elif keyword == "early-envdir":
            yield from self._load_environment(option)

    def _open(self, keyword: str, option: Option, *, in_block: bool) -> Asking[None]:
        if in_block:
            # Its end will come too; once is enough for a block that is repeated.
            self._unopened_ends = 1
            if self._nested != option.origin:
                self._fault(option.origin, "blocks cannot be nested, as in uWSGI")
            self._nested = option.origin
            return
        block = yield from logic.open_block(keyword, option.value, self._environ, self._find_first)
        if isinstance(block, Failure):
            advice = block.advice or expand.advise_on_path(option.value, option.origin.file)
            self._fault(option.origin, block.reason, advice)
            block = logic.Block((), is_loop=keyword in logic.OPENERS_FOR)
        self._block, self._opener = block, option

    def _set_strict(self, option: Option) -> None:
        try:
            self._strict = parse_bool(option.value)
        except ValueError as error:
            self._fault(option.origin, str(error))

    def _set(self, option: Option, *, only_placeholder: bool, in_block: bool) -> Asking[None]:
        name, equals, value = option.value.partition("=")
        if not equals:
            self._fault(option.origin, "is not NAME=value")
            return
        if only_placeholder and options.is_option(name):
            self._fault(option.origin, f"{name} is an option and cannot be a placeholder")
            return
        new = Option(
            name,
            value,
            option.origin.replace(key=name, value=value),
            fixed=only_placeholder,
            placeholder=only_placeholder or not options.is_option(name),
        )
        yield from self._add(new, in_block=in_block)

    def _declare(self, option: Option) -> None:
        name, equals, template = option.value.partition("=")
        if not equals:
            self._fault(option.origin, "is not NAME=template")
        elif options.is_option(name):
            self._warn(option.origin, f"{name} is an option already, which this does not replace")
        else:
            self._custom[name] = template

    def _load_environment(self, option: Option) -> Asking[None]:
        answer = yield ReadDirectory(option.value)
        if isinstance(answer, Failure):
            self._fault(option.origin, answer.reason, answer.advice)
            return
        assert isinstance(answer, tuple)
        for name, text in (pair for pair in answer if isinstance(pair, tuple)):
            if text:
                self._environ[name] = text
            else:
                self._environ.pop(name, None)

    # Files.

    def _load(self, option: Option, *, is_template: bool, inherited: bool = False) -> Asking[None]:
        """Read the file that an option names, at the place of the option."""
        asked, section = split_section(option.value)
        path = asked or self._last_file
        if asked.endswith(_OTHER_ENDINGS) or not path:
            reason = "lowsuper reads ini files only" if path else "no file was read yet"
            self._fault(option.origin, reason)
            return
        source = yield from expand.read_source(path)
        if isinstance(source, Failure):
            advice = source.advice or expand.advise_on_path(path, option.origin.file)
            self._fault(option.origin, source.reason, advice)
            return
        if source.text == UNKNOWN:
            self._warn(option.origin, "was not run, so what it holds is unknown")
            return
        self._last_file = path
        link = (source.path or path, section)
        if link in self._chain:
            chain = " -> ".join(":".join(filter(None, each)) for each in [*self._chain, link])
            self._fault(option.origin, f"includes itself: {chain}")
            return
        if source.path and source.path not in self._files:
            self._files.append(source.path)
        self._chain.append(link)
        magic = yield from self._build_magic(path, section, source, is_template=is_template)
        parsed = parse_lines(source.text, magic)
        yield from self._take_file(option, link, parsed, fixed=inherited)
        self._inner_chain = tuple(self._chain)
        self._chain.pop()

    def _take_file(
        self, option: Option, link: tuple[str, str], parsed: Parsed, *, fixed: bool
    ) -> Asking[None]:
        path, section = self._last_file, link[1]
        for odd in parsed.odd:
            origin = Origin(path, odd.number, odd.text, "")
            (self._fault if odd.is_error else self._warn)(origin, odd.reason, odd.advice)
        wanted = (section,) if section else _SECTIONS
        self._judge_sections(option, path, parsed, wanted)
        with_daemons = not section or len(self._chain) == 1
        with_daemons = with_daemons and link[0] not in self._daemon_files
        if with_daemons:
            self._daemon_files.add(link[0])
        # A file that is loaded inside a block has blocks of its own.
        outer, self._opener = self._opener, None
        outer_block = self._block
        yield from self._take_lines(path, parsed, wanted, with_daemons=with_daemons, fixed=fixed)
        if outer is not None:
            if self._opener is not None:
                self._fault(self._opener.origin, "the block has no end in this file")
            self._opener, self._block = outer, outer_block

    def _build_magic(
        self, path: str, section: str, source: FileText, *, is_template: bool
    ) -> Asking[dict[str, str]]:
        magic = build_magic(path, source.path or path, source.inode, section)
        if not self._first_magic and not is_template:
            self._first_magic = {key: magic[key.lower()] for key in FIRST_MAGIC}
        magic.update(self._first_magic)
        for char in find_magic(source.text) & FACT_MAGIC.keys():
            magic[char] = yield from self._ask_fact(FACT_MAGIC[char])
        return magic

    def _judge_sections(
        self, option: Option, path: str, parsed: Parsed, wanted: tuple[str, ...]
    ) -> None:
        """Warn when a file has no section that is read."""
        names = [name for _, name in parsed.headers]
        if any(name in wanted or name.startswith(DAEMON_PREFIX) for name in names):
            return
        near = expand.suggest(wanted[0], names)
        text = " or ".join(f"[{name}]" for name in wanted)
        self._warn(option.origin.replace(value=path), f"has no section {text}", near)

    def _take_lines(
        self, path: str, parsed: Parsed, wanted: tuple[str, ...], *, with_daemons: bool, fixed: bool
    ) -> Asking[None]:
        places: list[tuple[int, Line | str]] = [(line.number, line) for line in parsed.lines]
        if with_daemons:
            headers = (each for each in parsed.headers if each[1].startswith(DAEMON_PREFIX))
            places = sorted(places + list(headers), key=lambda place: place[0])
        done: set[str] = set()
        for number, place in places:
            if not isinstance(place, str):
                if place.section in wanted:
                    yield from self._add(_option_of(path, place, "", fixed=fixed))
            elif place not in done:
                done.add(place)
                name = place.removeprefix(DAEMON_PREFIX).strip()
                origin = Origin(path, number, f"[{place}]", "")
                self._options.append(Option("", name, origin, daemon=name or place, fixed=True))
                yield from self._take_daemon(path, place, parsed.lines, fixed=fixed)
        self._warn_of_orphans(path, parsed)

    def _warn_of_orphans(self, path: str, parsed: Parsed) -> None:
        for line in parsed.lines:
            if not line.section:
                origin = Origin(path, line.number, line.key, line.value)
                self._warn(origin, "stands before any section and is ignored", "put it in [uwsgi]")
                return

    def _take_daemon(
        self, path: str, section: str, lines: Sequence[Line], *, fixed: bool
    ) -> Asking[None]:
        """Take one [daemon:NAME] section in; its blocks are its own."""
        outer, outer_block, self._opener = self._opener, self._block, None
        daemon = section.removeprefix(DAEMON_PREFIX).strip() or section
        for line in lines:
            if line.section == section:
                yield from self._add(_option_of(path, line, daemon, fixed=fixed))
        if self._opener is not None:
            self._fault(self._opener.origin, "the block has no end in this section")
        self._opener, self._block = outer, outer_block

    # After all files.

    def _expand_all(self) -> Asking[None]:
        """Replace `$(...)`, then `@(...)`, then `%(...)`, each in all values."""
        for index, option in enumerate(self._options):
            self._replace(index, self._pass(option, "$", self._environ.get))
        for index, option in enumerate(self._options):
            if not option.fixed and "@(" in option.value:
                try:
                    self._replace(index, (yield from expand.replace_files(option.value)))
                except expand.ExpandError as error:
                    self._fault(option.origin, error.reason, error.advice)
        places = self._index_names()

        def look_up(name: str) -> str | None:
            place = places.get(name, places.get(options.normalize(name)))
            if place is None:
                return None
            self._used.add(self._options[place].name)
            return self._options[place].value

        for index, option in enumerate(self._options):
            value = self._pass(option, "%", lambda key: expand.compute_placeholder(key, look_up))
            self._replace(index, value)

    def _index_names(self) -> dict[str, int]:
        """Return the place of each name's first option; names as written come first."""
        places: dict[str, int] = {}
        for index, option in enumerate(self._options):
            if not option.daemon:
                places.setdefault(option.name, index)
        for name, index in list(places.items()):
            places.setdefault(options.normalize(name), index)
        return places

    def _pass(self, option: Option, symbol: str, look_up: expand.LookUp) -> str:
        if option.fixed or symbol + "(" not in option.value:
            return option.value
        try:
            return expand.replace_references(option.value, symbol, look_up)
        except expand.ExpandError as error:
            self._fault(option.origin, error.reason, error.advice)
            return option.value

    def _replace(self, index: int, value: str) -> None:
        option = self._options[index]
        if value != option.value:
            # What was not looked up is shown as it was written.
            shown = option.origin.value if expand.has_unknown(value) else value
            origin = option.origin.replace(value=shown)
            self._options[index] = option.replace(value=value, origin=origin)

    def _inherit_all(self) -> Asking[None]:
        """Load what `inherit` names after everything else; its values are not expanded."""
        # The files through which each option came; those read first came through none.
        chains: list[tuple[tuple[str, str], ...]] = [()] * len(self._options)
        index = 0
        while index < len(self._options):
            option = self._options[index]
            if options.find_reader_option(option.name) == "inherit" and not option.placeholder:
                self._chain = list(chains[index])
                self._inner_chain = chains[index]
                yield from self._load(option, is_template=True, inherited=True)
                chain = self._inner_chain
                chains += [chain] * (len(self._options) - len(chains))
            index += 1
        self._chain = []

    def _expand_custom(self, option: Option, outer: tuple[str, ...]) -> list[Option]:
        """Return the options that one of `declare-option`'s stands for, or the option itself."""
        template = self._custom.get(option.name)
        if template is None or option.daemon or options.is_option(option.name):
            return [option]
        self._used.add(option.name)
        if option.name in outer:
            self._fault(option.origin, "declare-option refers to itself")
            return []
        result: list[Option] = []
        words = [word for word in option.value.split(" ") if word]
        for part in (each for each in template.split(";") if each):
            name, equals, value = part.partition("=")
            if not equals:
                break
            for number, word in enumerate(words, 1):
                name = name.replace(f"${number}", word)
                value = value.replace(f"${number}", word)
            new = option.replace(
                name=name, value=value, origin=option.origin.replace(key=name, value=value)
            )
            if options.find_reader_option(name):
                self._fault(option.origin, f"declare-option cannot use {name}")
            else:
                result.extend(self._expand_custom(new, (*outer, option.name)))
        return result


def _option_of(path: str, line: Line, daemon: str, *, fixed: bool) -> Option:
    origin = Origin(path, line.number, line.key, line.value)
    return Option(line.key, line.value, origin, daemon=daemon, bare=line.bare, fixed=fixed)
