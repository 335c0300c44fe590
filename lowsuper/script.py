"""Which script an interpreter runs, read from its command line.

The same reading is used for the command that is configured and for the process that a pidfile
names, so what matters is that both come out alike; a line that cannot be read gives nothing, and
is then no proof of anything.
"""

from __future__ import annotations

from lowsuper.record import Record


class _Syntax(Record):
    """The options of one kind of interpreter, as far as a word after them is not the script."""

    values: str = ""  # letters that take a value, in the same word or the next
    scripts: str = ""  # letters whose value is the script: a text, a module, a file
    attached: str = ""  # letters that take the rest of their word
    long_values: tuple[str, ...] = ()  # whole words that take the next word
    long_scripts: tuple[str, ...] = ()  # whole words, the script is the next one
    clusters: bool = True  # one dash begins a row of letters


_PYTHON = _Syntax("WXQ", "cm", long_values=("--check-hash-based-pycs",))
_PERL = _Syntax("I", "eE", "0CDFMTVilmx")
_RUBY = _Syntax("CEIr", "e", "0FKTWilx", ("--encoding", "--disable", "--enable"))
_PHP = _Syntax("cdtz", "frS")
# The -c of a shell is a mere flag: its text is the first word that is no option.
_SHELL = _Syntax("oO", long_values=("--rcfile", "--init-file"))
_LUA = _Syntax("el")
_AWK = _Syntax("Fv", "fE")
_EXPECT = _Syntax("c", "f")
_NODE = _Syntax(
    long_values=("-r", "--require", "--import", "--loader", "-C", "--conditions", "--title"),
    long_scripts=("-e", "--eval", "-p", "--print", "-pe"),
    clusters=False,
)
_JAVA_VALUES = (
    "-cp -classpath --class-path -p --module-path --upgrade-module-path --add-modules --add-opens"
    " --add-exports --add-reads --limit-modules --patch-module --enable-native-access --source"
)
_JAVA = _Syntax(
    long_values=tuple(_JAVA_VALUES.split()),
    long_scripts=("-jar", "-m", "--module"),
    clusters=False,
)
_PLAIN = _Syntax(clusters=False)

_SYNTAX = {
    "python": _PYTHON,
    "pypy": _PYTHON,
    "perl": _PERL,
    "ruby": _RUBY,
    "php": _PHP,
    "lua": _LUA,
    "luajit": _LUA,
    "node": _NODE,
    "nodejs": _NODE,
    "java": _JAVA,
    "expect": _EXPECT,
}
_SHELLS = "sh ash bash dash hush ksh mksh pdksh yash zsh"
_AWKS = "awk gawk mawk nawk original-awk"
_OTHERS = "beam.smp bun csh deno dotnet erl fish guile jruby julia mono R tclsh tcsh wish"
_SYNTAX |= dict.fromkeys(_SHELLS.split(), _SHELL)
_SYNTAX |= dict.fromkeys(_AWKS.split(), _AWK)
_SYNTAX |= dict.fromkeys(_OTHERS.split(), _PLAIN)
_VERSION = "0123456789.-_"
_BUILDS = frozenset(("cgi", "d", "dbg", "dm", "m", "mu", "t", "td", "u"))
_MULTI_CALL = ("busybox", "coreutils", "toybox")
# They wait for what they run, and what that is only they know.
_WRAPPER_NAMES = (
    "bwrap chroot doas env firejail flock gdb ltrace nsenter runuser script setarch strace su sudo"
    " timeout unshare valgrind"
)
_WRAPPERS = frozenset(_WRAPPER_NAMES.split())
_LOADERS = ("ld-linux", "ld-musl", "ld.so", "ld64.so", "qemu-")


def base_name(path: str) -> str:
    """Return what comes after the last slash."""
    return path.rpartition("/")[2]


def _find_syntax(program: str) -> _Syntax | None:
    """Return the options of an interpreter by its base name: python3.11-dbg is a python."""
    bare = program.rstrip(_VERSION)
    found = _SYNTAX.get(program) or _SYNTAX.get(bare)
    if found is None:
        stem, dash, build = bare.rpartition("-")
        if not dash:
            stem, build = _cut_digits(program)
        found = _SYNTAX.get(stem.rstrip(_VERSION)) if build in _BUILDS else None
    return found


def _cut_digits(program: str) -> tuple[str, str]:
    """Return what comes up to the last digit, and what comes after it: python3.13, t."""
    build = program
    for digit in "0123456789":
        build = build.rpartition(digit)[2]
    return program[: len(program) - len(build)], build


def needs_script(program: str) -> bool:
    """Tell whether an executable says too little: what it is depends on its command line.

    Args:
        program: its path or base name; without links, since /bin/httpd may be a busybox.
    """
    name = base_name(program)
    return (
        name in _WRAPPERS
        or name.startswith(_MULTI_CALL)
        or name.startswith(_LOADERS)
        or _find_syntax(name) is not None
    )


def find_script(argv: tuple[str, ...], program: str) -> str:
    """Return what an interpreter runs: a file, a module, a text, an applet; "" if unknown.

    Args:
        argv: the command line of the interpreter, its own name first.
        program: path or base name of its executable, which decides the meaning of options.
    """
    name = base_name(program)
    if name in _WRAPPERS or not argv:
        return ""
    if name.startswith(_MULTI_CALL):
        return _find_applet(argv)
    return _find_operand(argv[1:], _find_syntax(name) or _PLAIN)


def _find_applet(argv: tuple[str, ...]) -> str:
    """Return the applet of a multi-call program, or the script of an applet that is a shell."""
    applet = base_name(argv[0].removeprefix("-"))
    if applet.startswith(_MULTI_CALL):
        argv = argv[1:]
        if not argv or argv[0].startswith("-"):
            return ""
        applet = argv[0]
    return find_script(argv, applet) if needs_script(applet) else applet


def _find_operand(words: tuple[str, ...], syntax: _Syntax) -> str:
    """Return the first word that is neither an option nor an option's value, or ""."""
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return _at(words, index + 1)
        if word[:1] not in ("-", "+") or (word[0] == "+" and syntax is not _SHELL):
            return word
        if word == "-":
            return ""  # it reads its script from standard input
        kind, rest = _read_option(word, syntax)
        if kind == "script":
            return rest or _at(words, index + 1)
        index += 2 if kind == "value" and not rest else 1
    return ""


def _read_option(word: str, syntax: _Syntax) -> tuple[str, str]:
    """Return ("script" or "value" or "", what of the value is in the word itself)."""
    if word in syntax.long_scripts:
        return "script", ""
    if word in syntax.long_values:
        return "value", ""
    if not syntax.clusters or word.startswith("--"):
        return "", ""
    for place, letter in enumerate(word[1:], 2):
        if letter in syntax.scripts:
            return "script", word[place:]
        if letter in syntax.values:
            return "value", word[place:]
        if letter in syntax.attached:
            break
    return "", ""


def _at(words: tuple[str, ...], index: int) -> str:
    return words[index] if index < len(words) else ""
