"""What hooks do: the handlers, and the syntax of what follows each of them.

`HANDLER:ARGUMENTS`, where the arguments are cut at blanks as in uWSGI. Besides, a word that holds
blanks can be put into quotes, and what is wrong is found when the file is read, not when the hook
runs.
"""

from __future__ import annotations

from lowsuper.command import parse_command
from lowsuper.config import options
from lowsuper.model import (
    ChangeDirectory,
    ChangeMode,
    ChangeOwner,
    EnvChange,
    Exec,
    Exit,
    Hook,
    MakeDirectory,
    Mount,
    Print,
    SetVariable,
    Unlink,
    Unmount,
    Write,
    WriteFifo,
)
from lowsuper.units import nearest_name, parse_mode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.model import Deed, Origin

# See mount(2); the kernel's own numbers, in linux/mount.h.
MOUNT_FLAGS = {
    "defaults": 0,
    "rw": 0,
    "ro": 0x1,
    "rdonly": 0x1,
    "readonly": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "sync": 0x10,
    "remount": 0x20,
    "mandlock": 0x40,
    "dirsync": 0x80,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "bind": 0x1000,
    "move": 0x2000,
    "rec": 0x4000,
    "recursive": 0x4000,
    "unbindable": 1 << 17,
    "private": 1 << 18,
    "slave": 1 << 19,
    "shared": 1 << 20,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_RECURSIVE = -1
UMOUNT_FLAGS = {"force": 1, "detach": 2, "nofollow": 8, "rec": _RECURSIVE, "recursive": _RECURSIVE}

_OF_UWSGI = ("alarm", "call", "callint", "callintret", "callret", "retryrpc", "rpc", "unix_signal")
_LATER = (
    *("hostname", "spinningfifo"),
    *("wait_for_dir", "wait_for_file", "wait_for_fs", "wait_for_socket"),
)


def take_word(text: str) -> tuple[str, str]:
    """Return the first word of a text and what follows it after one blank.

    Raises:
        ValueError: a quote has no end.
    """
    if text[:1] in ("'", '"'):
        word, quote, rest = text[1:].partition(text[0])
        if not quote or (rest and rest[0] != " "):
            raise ValueError(f"has a {text[0]} without an end")
        return word, rest[1:]
    word, _, rest = text.partition(" ")
    return word, rest


def _split(text: str, count: int, usage: str) -> list[str]:
    """Return `count` words, none of them empty, the last of which is all the rest."""
    words: list[str] = []
    rest = text
    for _ in range(count - 1):
        word, rest = take_word(rest)
        words.append(word)
    if not all(words) or not rest:
        raise ValueError(f"is not {usage}")
    return [*words, rest]


def _parse_path(text: str, usage: str) -> str:
    word, rest = take_word(text)
    # As in uWSGI, a path alone may hold blanks as it is.
    path = text if rest else word
    if not path:
        raise ValueError(f"is not {usage}")
    return path


def _parse_flags(text: str, known: dict[str, int]) -> list[int]:
    found = []
    for name in text.split(",") if text else ():
        if name not in known and "=" in name and known is MOUNT_FLAGS:
            raise ValueError(f"has no flag {name}: put the flags first, as in: defaults {text}")
        if name not in known:
            near = nearest_name(name, known)
            advice = f": did you mean {near}?" if near else f": it is none of {', '.join(known)}"
            raise ValueError(f"has no flag {name}{advice}")
        found.append(known[name])
    return found


def parse_mount(text: str) -> Mount:
    """Return what `FSTYPE SOURCE DIRECTORY [FLAGS [DATA]]` stands for.

    Raises:
        ValueError: it is not that.
    """
    usage = "FSTYPE SOURCE DIRECTORY [FLAGS [DATA]]"
    fstype, source, rest = _split(text, 3, usage)
    target, rest = take_word(rest)
    names, data = take_word(rest)
    if not target:
        raise ValueError(f"is not {usage}")
    flags = 0
    for flag in _parse_flags(names, MOUNT_FLAGS):
        flags |= flag
    return Mount(fstype, source, target, flags, data)


def parse_unmount(text: str) -> Unmount:
    """Return what `DIRECTORY [FLAGS]` stands for.

    Raises:
        ValueError: it is not that.
    """
    target, names = take_word(text)
    if not target:
        raise ValueError("is not DIRECTORY [FLAGS]")
    flags = _parse_flags(names, UMOUNT_FLAGS)
    number = 0
    for flag in flags:
        number |= 0 if flag == _RECURSIVE else flag
    return Unmount(target, number, _RECURSIVE in flags)


def _parse_exec(text: str) -> Exec:
    return Exec(parse_command(text))


def _parse_safe_exec(text: str) -> Exec:
    return Exec(parse_command(text), safe=True)


def _parse_write(text: str) -> Write:
    path, rest = _split(text, 2, "FILE TEXT")
    return Write(path, rest)


def _parse_write_line(text: str) -> Write:
    write = _parse_write(text)
    return write.replace(text=f"{write.text}\n")


def _parse_append(text: str) -> Write:
    return _parse_write(text).replace(append=True)


def _parse_append_line(text: str) -> Write:
    path, rest = take_word(text)
    if not path:
        raise ValueError("is not FILE [TEXT]")
    return Write(path, f"{rest}\n", append=True)


def _parse_create(text: str) -> Write:
    return Write(_parse_path(text, "FILE"), "")


def _parse_write_fifo(text: str) -> WriteFifo:
    path, rest = _split(text, 2, "FIFO TEXT")
    return WriteFifo(path, rest)


def _parse_unlink(text: str) -> Unlink:
    return Unlink(_parse_path(text, "FILE"))


def _parse_mkdir(text: str) -> MakeDirectory:
    return MakeDirectory(_parse_path(text, "DIRECTORY"))


def _parse_chmod(text: str) -> ChangeMode:
    path, mode = _split(text, 2, "FILE MODE")
    return ChangeMode(path, parse_mode(mode))


def _parse_sticky(text: str) -> ChangeMode:
    return ChangeMode(_parse_path(text, "FILE"), 0o1000, add=True)


def _parse_chown(text: str) -> ChangeOwner:
    path, user, group = _split(text, 3, "FILE USER GROUP")
    if " " in group:
        raise ValueError("is not FILE USER GROUP")
    return ChangeOwner(path, user, group)


def _parse_cd(text: str) -> ChangeDirectory:
    return ChangeDirectory(_parse_path(text, "DIRECTORY"))


def _parse_putenv(text: str) -> SetVariable:
    name, equals, value = text.partition("=")
    if not name.strip():
        raise ValueError("is not NAME=value")
    return SetVariable(EnvChange(name, value if equals else None))


def _parse_exit(text: str) -> Exit:
    if text and not (text.isascii() and text.isdigit() and int(text) < 256):
        raise ValueError("is not a status from 0 to 255")
    return Exit(int(text or 0))


HANDLERS: dict[str, Callable[[str], Deed]] = {
    "exec": _parse_exec,
    "safeexec": _parse_safe_exec,
    "mount": parse_mount,
    "umount": parse_unmount,
    "cd": _parse_cd,
    "chdir": _parse_cd,
    "print": Print,
    "log": Print,
    "write": _parse_write,
    "writen": _parse_write_line,
    "append": _parse_append,
    "appendn": _parse_append_line,
    "create": _parse_create,
    "creat": _parse_create,
    "writefifo": _parse_write_fifo,
    "unlink": _parse_unlink,
    "mkdir": _parse_mkdir,
    "chmod": _parse_chmod,
    "sticky": _parse_sticky,
    "chown": _parse_chown,
    "chown2": _parse_chown,
    "putenv": _parse_putenv,
    "exit": _parse_exit,
}
"""What stands before the colon, and how what follows it is read."""


def parse_handler(text: str) -> tuple[Deed, bool]:
    """Return what `HANDLER:ARGUMENTS` stands for, and whether it is kept out of messages.

    Raises:
        ValueError: there is no such handler, or its arguments are wrong.
    """
    name, colon, rest = text.partition(":")
    private = name.startswith("!")
    name = name.removeprefix("!")
    if not colon:
        raise ValueError("is not HANDLER:ARGUMENTS, such as exec:COMMAND")
    parse = HANDLERS.get(name)
    if parse is not None:
        return parse(rest), private
    if name in _OF_UWSGI:
        raise ValueError(f"{name} calls what is inside uWSGI, and lowsuper has not")
    if name in _LATER:
        raise ValueError(f"{name} is not available in this version of lowsuper")
    near = nearest_name(name, HANDLERS)
    raise ValueError(f"there is no handler {name}" + (f": did you mean {near}?" if near else ""))


def parse_hook(kind: str, phase: str, origin: Origin) -> Hook:
    """Return the hook that an option stands for.

    Args:
        kind: one of `options.HOOK_KINDS`.
        phase: one of PHASES.
        origin: the option, by the name to show, and its value.

    Raises:
        ValueError: the value is wrong.
    """
    text, path = origin.value, ""
    if kind in (options.TOUCH_HOOK, options.TOUCH_EXEC):
        usage = "FILE HANDLER:ARGUMENTS" if kind == options.TOUCH_HOOK else "FILE COMMAND"
        path, text = _split(text, 2, usage)
    parse = _FORMS.get(kind, parse_handler)
    deed, private = parse(text)
    return Hook(phase, deed, origin, private, path)


_FORMS: dict[str, Callable[[str], tuple[Deed, bool]]] = {
    options.EXEC_HOOK: lambda text: (Exec(parse_command(text)), False),
    options.TOUCH_EXEC: lambda text: (Exec(parse_command(text)), False),
    options.MOUNT_HOOK: lambda text: (parse_mount(text), False),
    options.UMOUNT_HOOK: lambda text: (parse_unmount(text), False),
}
