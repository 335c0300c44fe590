"""From the text of a command to what is executed, with a shell only where one is needed.

Rule 1: a text without shell syntax becomes an argument list that is executed directly, so that
the pid is the daemon's. Rule 2: with shell syntax `/bin/sh -c` runs it; `exec ` is put in before
one simple command only, and whatever is not surely one simple command is left as it is.
"""

from __future__ import annotations

from lowsuper.model import Command
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RESERVED_WORDS = (
    "! { } [[ ]] case coproc do done elif else esac fi for function if in select then time until"
    " while"
)
_BUILTIN_NAMES = (
    ". : [ alias bg bind break builtin caller cd chdir command continue declare dirs disown echo"
    " enable eval exec exit export false fc fg getopts hash help history jobs kill let local"
    " logout mapfile newgrp popd printf pushd pwd read readarray readonly return set shift shopt"
    " source suspend test times trap true type typeset ulimit umask unalias unset wait"
)
_RESERVED = frozenset(_RESERVED_WORDS.split())
_BUILTINS = frozenset(_BUILTIN_NAMES.split())
_BLANKS = " \t"
_OPERATORS = "|&;()\n"
_EXPANDING = "*?[{$`"
# Without any of these a text is words between blanks; other white space is no blank.
_SPECIAL = frozenset("\"'\\#~<>\0\r\v\f\x1c\x1d\x1e\x1f" + _OPERATORS + _EXPANDING)


class _Word(Record):
    """One word of a command line, or an operator."""

    value: str  # with the quotes removed; for an operator the operator itself
    start: int  # its place in the text
    end: int
    operator: bool = False
    quoted: bool = False
    expands: bool = False  # the shell would put something else in its place


class _Scanner:
    """Cut a command line into words and operators as POSIX 2.3 says."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def scan(self) -> Iterator[_Word]:
        """Yield words and operators; a comment comes as the operator `#`.

        Raises:
            ValueError: a quote or a substitution has no end.
        """
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char in _BLANKS:
                self._at += 1
            elif char in _OPERATORS or char in "<>":
                yield self._scan_operator()
            elif char == "#":
                start, end = self._at, text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
                yield _Word("#", start, self._at, operator=True)
            elif text.startswith("\\\n", self._at):
                self._at += 2
            else:
                yield self._scan_word()

    def _scan_operator(self) -> _Word:
        start = self._at
        for operator in ("<<-", "<<", ">>", "<&", ">&", "<>", ">|", "&&", "||", ";;"):
            if self._text.startswith(operator, start):
                self._at += len(operator)
                return _Word(operator, start, self._at, operator=True)
        self._at += 1
        return _Word(self._text[start], start, self._at, operator=True)

    def _scan_word(self) -> _Word:
        text, start = self._text, self._at
        value: list[str] = []
        quoted = expands = False
        while self._at < len(text) and text[self._at] not in _BLANKS + _OPERATORS + "<>":
            char = text[self._at]
            if char == "'":
                value.append(self._scan_single())
                quoted = True
            elif char == '"':
                part, part_expands = self._scan_double()
                value.append(part)
                quoted, expands = True, expands or part_expands
            elif char == "\\":
                value.append(text[self._at + 1 : self._at + 2].replace("\n", "") or "")
                # A backslash at the very end is kept by shells, each in its own way.
                expands = expands or self._at + 1 == len(text)
                quoted = True
                self._at += 2
            else:
                expands = expands or char in _EXPANDING or self._is_tilde(start)
                value.append(self._scan_plain())
        self._at = min(self._at, len(text))
        return _Word("".join(value), start, self._at, quoted=quoted, expands=expands)

    def _is_tilde(self, word_start: int) -> bool:
        """Tell whether a shell might put a home directory here."""
        text, at = self._text, self._at
        return text[at] == "~" and (at == word_start or text[at - 1] in "=:")

    def _scan_plain(self) -> str:
        """Take one unquoted character, or a whole substitution."""
        start = self._at
        if self._text[start] in "$`":
            self._skip_substitution()
        else:
            self._at += 1
        return self._text[start : self._at]

    def _scan_single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise ValueError("a ' has no end")
        part = self._text[self._at + 1 : end]
        self._at = end + 1
        return part

    def _scan_double(self) -> tuple[str, bool]:
        text = self._text
        self._at += 1
        value: list[str] = []
        expands = False
        while self._at < len(text):
            char = text[self._at]
            if char == '"':
                self._at += 1
                return "".join(value), expands
            if char == "\\" and text[self._at + 1 : self._at + 2] in tuple('$`"\\\n'):
                value.append(text[self._at + 1].replace("\n", ""))
                self._at += 2
            elif char in "$`":
                expands = True
                value.append(self._scan_plain())
            else:
                value.append(char)
                self._at += 1
        raise ValueError('a " has no end')

    def _skip_substitution(self) -> None:
        """Go past `$(...)`, `${...}`, a backquoted command, or a lone `$`."""
        text = self._text
        if text[self._at] == "`":
            self._at += 1
            while text[self._at : self._at + 1] not in ("`", ""):
                self._at += 2 if text[self._at] == "\\" else 1
            if self._at >= len(text):
                raise ValueError("a ` has no end")
            self._at += 1
            return
        opener = text[self._at + 1 : self._at + 2]
        self._at += 1
        if opener in ("(", "{"):
            self._skip_nested(opener)

    def _skip_nested(self, opener: str) -> None:
        text, closer = self._text, ")" if opener == "(" else "}"
        depth = 0
        while self._at < len(text):
            char = text[self._at]
            if char == "'":
                self._scan_single()
            elif char == '"':
                self._scan_double()
            elif char in "$`" and text[self._at : self._at + 2] != "$" + opener:
                self._skip_substitution()
            else:
                depth += (char == opener) - (char == closer)
                self._at += 2 if char == "\\" else 1
                if not depth:
                    return
        raise ValueError(f"a ${opener} has no end")


def _is_assignment(word: _Word, text: str) -> bool:
    """Tell whether a shell would take the word for NAME=value."""
    name, equals, _ = text[word.start : word.end].partition("=")
    return bool(equals) and name.isascii() and name.isidentifier()


def _is_redirection_number(words: list[_Word], index: int) -> bool:
    """Tell whether a word is the 2 of `2>file`."""
    word = words[index]
    follower = words[index + 1] if index + 1 < len(words) else None
    return (
        follower is not None
        and follower.operator
        and follower.value[0] in "<>"
        and follower.start == word.end
        and word.value.isdigit()
        and not word.quoted
    )


def _simple_words(words: list[_Word]) -> list[_Word] | None:
    """Return the words of one simple command without its redirections.

    Returns:
        None when it is not one simple command: pipes, lists, here-documents, groups.
    """
    plain: list[_Word] = []
    index = 0
    while index < len(words):
        word = words[index]
        if not word.operator:
            if not _is_redirection_number(words, index):
                plain.append(word)
        elif word.value[0] in "<>" and not word.value.startswith("<<"):
            index += 1
            if index >= len(words) or words[index].operator:
                return None
        elif word.value != "#":
            return None
        index += 1
    return plain


def _find_command_word(words: list[_Word] | None, text: str) -> _Word | None:
    """Return the word before which `exec` can stand, or None when that is not certain."""
    if words is None:
        return None
    for word in words:
        if _is_assignment(word, text):
            continue
        is_builtin = word.value in _BUILTINS
        is_reserved = word.value in _RESERVED and not word.quoted
        is_open = word.expands and "/" not in word.value
        return None if is_builtin or is_reserved or is_open else word
    return None


def _needs_no_shell(words: list[_Word]) -> bool:
    """Tell whether the words are the arguments as they stand."""
    if any(word.operator or word.expands for word in words):
        return False
    first = words[0].value
    return "=" not in first and first not in _BUILTINS and first not in _RESERVED


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:,@%+- \t")


def _split_plain(text: str) -> list[str]:
    """Return the words of a text that has nothing special in it, else []: most lines are such."""
    if not _PLAIN.issuperset(text):
        return []
    words = text.split()
    return [] if not words or words[0] in _BUILTINS or words[0] in _RESERVED else words


def parse_command(text: str) -> Command:
    """Return how to execute a command line.

    Args:
        text: what the user wrote.

    Returns:
        A command whose argv is the words of the text, or `/bin/sh -c` where the text has shell
        syntax.

    Raises:
        ValueError: there is no command, a quote has no end, or there is a NUL byte.
    """
    if text.isascii() and _SPECIAL.isdisjoint(text):
        words_only = text.split()
        first = words_only[0] if words_only else "="
        if "=" not in first and first not in _BUILTINS and first not in _RESERVED:
            return Command(text, tuple(words_only))
    if "\0" in text:
        raise ValueError("holds a NUL byte")
    plain = _split_plain(text)
    if plain:
        return Command(text, tuple(plain))
    words = list(_Scanner(text).scan())
    while words and words[-1].operator and words[-1].value in (";", "\n"):
        words.pop()  # nothing comes after it, so it separates nothing
    if not words or (words[0].value == "" and not words[0].operator):
        raise ValueError("there is no command")
    if _needs_no_shell(words):
        return Command(text, tuple(word.value for word in words))
    simple = _simple_words(words)
    place = _find_command_word(simple, text)
    if place is not None:
        script = text[: place.start] + "exec " + text[place.start :]
        return Command(text, ("/bin/sh", "-c", script), True)
    execs = bool(simple) and simple is not None and simple[0].value == "exec" and len(simple) > 1
    return Command(text, ("/bin/sh", "-c", text), True, not execs)


def find_program_name(text: str) -> str:
    """Return the base name of the first program that a command line runs, or "".

    Assignments and shell builtins (`cd /srv && ./run`) are passed over.

    Raises:
        ValueError: as `parse_command`.
    """
    plain = _split_plain(text)
    if plain:
        return plain[0].rstrip("/").rpartition("/")[2]
    expects_program, is_target = True, False
    words = list(_Scanner(text).scan())
    for index, word in enumerate(words):
        if word.operator:
            is_target = word.value[0] in "<>"
            expects_program = expects_program or not is_target
            continue
        is_passed_over = is_target or _is_redirection_number(words, index)
        is_target = False
        if not expects_program or is_passed_over or _is_assignment(word, text):
            continue
        expects_program = word.value == "exec" or word.value in _RESERVED
        is_name = word.value not in _BUILTINS and (not word.expands or "/" in word.value)
        if not expects_program and is_name:
            return word.value.rstrip("/").rpartition("/")[2]
    return ""


def find_program(command: Command) -> str:
    """Return the program that a command surely runs first, or "" when only a shell knows.

    Args:
        command: as `parse_command` made it.
    """
    if not command.shell:
        return command.argv[0]
    if command.compound:
        return ""
    word = _find_command_word(_simple_words(list(_Scanner(command.text).scan())), command.text)
    return "" if word is None or word.expands else word.value


def find_words(command: Command) -> tuple[str, ...]:
    """Return the program that a command surely runs, and its arguments as it gets them.

    An argument that a shell would put something else in place of is "".

    Args:
        command: as `parse_command` made it.

    Returns:
        () when only a shell knows the program.
    """
    if not command.shell:
        return command.argv
    words = None if command.compound else _simple_words(list(_Scanner(command.text).scan()))
    if not words:
        return ()
    if words[0].value == "exec" and not words[0].quoted:
        words = words[1:]
    program = _find_command_word(words, command.text)
    if program is None or program.expands or program.value.startswith("-"):
        return ()
    place = words.index(program)
    if any(word.value.startswith("PATH=") for word in words[:place]):
        return ()
    return tuple("" if word.expands else word.value for word in words[place:])
