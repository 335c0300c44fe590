#!/usr/bin/env python3
"""Write the tables of options and daemon keys into the documentation.

They come from the parser's own tables (`lowsuper.config.options`, `lowsuper.config.keys`) and
stand between the lines `.. generated: NAME` and `.. end of generated`. With `--check` nothing is
written, and the status is 1 if a page is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lowsuper.config import keys, options  # noqa: E402  # the path above comes first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PAGES = tuple(ROOT / name for name in ("README.rst", "docs/lowsuper.conf.5.rst"))

KIND_VALUES = {
    options.FLAG: "boolean",
    options.ACCEPTED: "boolean",
    options.TEXT: "text",
    options.TEXTS: "text",
    options.DIRECTORY: "directory",
    options.MODE: "mode",
    options.DURATION: "time",
    options.EXEC_HOOK: "command",
    options.HOOK: "HANDLER:ARGUMENTS",
    options.MOUNT_HOOK: "FSTYPE SOURCE DIRECTORY [FLAGS [DATA]]",
    options.UMOUNT_HOOK: "DIRECTORY [FLAGS]",
    options.TOUCH_HOOK: "FILE HANDLER:ARGUMENTS",
    options.TOUCH_EXEC: "FILE COMMAND",
    options.ENV: "NAME=text",
    options.UNENV: "NAME",
    options.ENVDIR: "directory",
    options.DAEMON: "command",
    options.DAEMON2: "key=value,...",
    options.SMART: "PIDFILE[,FREQ] COMMAND",
    options.LOG_DATE: "boolean or format",
    options.LOG: "text",
    options.NAME: "name",
    options.PREFIX: "text",
    options.RUNG: "kind",
    options.STATS: "address",
    options.STATS_MODE: "mode",
    options.CGROUP: "text",
    options.CONTROL: "text",
    options.NAMESPACE: "ROOT[:HOSTNAME]",
    options.KEEP: "[ro:][optional:]PATH[:PATH]",
    options.JAIL_FLAG: "boolean",
    options.NETWORK: "boolean, name or path",
    options.LINK: "KIND:NAME[,key=value,...]",
    options.CHROOT: "ROOT",
    options.PIVOT: "NEW_ROOT [OLD_ROOT]",
    options.UNSHARE: "names",
    options.SETNS: "socket",
    options.CAPS: "names",
    options.SETNS_SOCKET: "socket",
    options.SETNS_SKIP: "names",
    options.LEGION: "text",
    options.LEGION_DAEMON: "NAME command",
    options.LEGION_SMART: "NAME PIDFILE[,FREQ] COMMAND",
}
REPEATABLE = {
    options.TEXTS,
    *options.HOOK_KINDS,
    options.ENV,
    options.UNENV,
    options.ENVDIR,
    options.DAEMON,
    options.DAEMON2,
    options.SMART,
    options.KEEP,
    options.LINK,
    options.UNSHARE,
    options.SETNS_SKIP,
    options.LEGION,
    options.LEGION_DAEMON,
    options.LEGION_SMART,
}
PARSER_VALUES = {
    "parse_command": "command",
    "parse_name": "name",
    "parse_names": "names",
    "parse_bool": "boolean",
    "parse_touch": "files",
    "parse_signal": "signal",
    "parse_duration": "time",
    "parse_patience": "time",
    "parse_env": "NAME=text",
    "parse_envfile": "file",
    "parse_listen": "ADDRESS [NAME]",
    "parse_pidfile": "file",
    "parse_limit": "soft[:hard]",
    "parse_umask": "mode",
    "parse_output": "where",
    "parse_maxsize": "size",
    "parse_backups": "number",
    "parse_caps": "names",
    "parse_namespaces": "names",
    "parse_hostname": "name",
    "parse_legion": "name",
    "parse_netns": "network",
    "parse_root": "directory",
    "parse_ready": "how",
    "parse_type": "type",
    "parse_access": "processes",
    "parse_mounts": "mounts",
    "parse_nice": "number",
    "parse_oom_score": "number",
    "parse": "value",
    "parse_setting": "value",
    "_parse_text": "text",
}
BLOCK = re.compile(
    r"^\.\. generated: (?P<name>\S+)\n.*?^\.\. end of generated$", re.DOTALL | re.MULTILINE
)


def list_keys() -> Iterator[str]:
    """Yield a definition list of the daemon keys, as a manual page has it."""
    for key in keys.KEYS:
        value = PARSER_VALUES[key.parse.__name__]
        names = ", ".join(f"**{name}**" for name in key.names)
        yield f"{names} = *{value}*"
        yield f"    {key.help[0].upper()}{key.help[1:]}."
        yield ""


def list_options() -> Iterator[str]:
    """Yield a definition list of the options."""
    for row in options.OPTIONS:
        names = ", ".join(f"**{name}**" for name in row.names)
        short = f" (on the command line also **-{row.short}**)" if row.short else ""
        again = " Can be given several times." if row.kind in REPEATABLE else ""
        yield f"{names} = *{KIND_VALUES[row.kind]}*"
        yield f"    {row.help[0].upper()}{row.help[1:]}{short}.{again}"
        yield ""


def tabulate_keys() -> Iterator[str]:
    """Yield a table of the daemon keys for the README."""
    rows = [
        (
            ", ".join(f"``{name}``" for name in key.names),
            PARSER_VALUES[key.parse.__name__],
            key.help,
        )
        for key in keys.KEYS
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    ruler = " ".join("=" * width for width in widths)
    yield ruler
    for row in rows:
        yield " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ruler
    yield ""


BLOCKS: dict[str, Callable[[], Iterable[str]]] = {
    "keys": list_keys,
    "options": list_options,
    "key-table": tabulate_keys,
}


def render(text: str) -> str:
    """Return a page with every generated block made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return "\n".join((f".. generated: {name}", "", *BLOCKS[name](), ".. end of generated"))

    return BLOCK.sub(replace, text)


def main() -> int:
    """Write, or with `--check` compare, every page; return the exit status."""
    stale = False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        wanted = render(text)
        if wanted == text:
            continue
        stale = True
        if "--check" in sys.argv[1:]:
            sys.stderr.write(f"{page.relative_to(ROOT)} is out of date: run docs/generate.py\n")
        else:
            page.write_text(wanted, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
