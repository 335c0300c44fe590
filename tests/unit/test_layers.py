"""Imports point only down, and pure modules reach for nothing outside.

`MAY_IMPORT` is the architecture: a module, or a package for all of its modules, and what it may
import when it runs. `typing` lists what only the type checker follows upwards.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "lowsuper"

MAY_IMPORT = {
    # Values.
    "record": "",
    "units": "",
    "errors": "",
    "model": "record units",
    "events": "record units",
    "identity": "record script",
    "script": "record",
    "wire": "",
    # Decisions.
    "backoff": "units",
    "machine": "backoff errors events record units machine",
    "master": "errors events machine model record units master",
    "state": "machine record",
    "chronicle": "events record",
    "changes": "record",
    "report": "errors events machine units",
    "stats": "chronicle control machine model record units wire",
    "plan": "record units",
    "command": "model record",
    "control": "changes chronicle events machine model record report units wire",
    "config": "command errors model record units config",
    "config.legion": "command legion model units config",
    "foreground": "errors record units",
    "legion": "record units legion",
    "legion.words": "record units wire",
    "legion.libc": "errors units",
    "legion.sockets": "errors model legion",
    "legion.confine": "errors legion kernel.caps kernel.native",
    "legion.udp": "errors model record units legion",
    "legion.agent": "errors model record units legion",
    "legion.etcd": "errors model record units legion",
    "legion.gateway": "errors model units wire legion",
    "legion.cipher": "errors model legion",
    "legion.orders": "model record units wire",
    "jail": "backoff events model record report units",
    # The world.
    "kernel": "errors events plan record units kernel",
    "kernel.source": "config",
    "kernel.instance": "errors model record kernel",
    "kernel.peer": "errors model plan record kernel",
    "kernel.control": "control errors units kernel",
    "kernel.aside": "control errors units kernel",
    "kernel.door": "errors model plan units kernel",
    "kernel.gate": "kernel",
    "kernel.lobby": "changes control events model kernel",
    "kernel.answers": "changes chronicle control errors events machine master model record report"
    " supervisor units wire kernel",
    "kernel.deeds": "errors model kernel",
    "kernel.hooks": "errors events model plan units kernel",
    "kernel.surroundings": "errors events model plan",
    "kernel.facts": (
        "errors model plan units kernel.accounts kernel.controllers kernel.records kernel.trust"
    ),
    "kernel.caps": "errors units kernel.native",
    "kernel.legion": "errors events legion model plan record report units kernel",
    "kernel.stats": "chronicle control errors model stats supervisor units kernel",
    "kernel.sockets": "errors model plan kernel",
    "kernel.envfile": "errors model plan kernel",
    "kernel.setns": "errors model units kernel",
    "kernel.ways": "errors model record kernel",
    "kernel.phase": "errors events model plan report kernel",
    "kernel.jailed": "model plan kernel",
    "kernel.links": "config.network kernel",
    "kernel.wiring": "config.network errors events plan report units kernel",
    "kernel.premises": "kernel",
    "kernel.privilege": "errors model plan kernel.caps kernel.facts",
    "kernel.attendance": "plan kernel",
    "kernel.notify": "errors events units kernel",
    "kernel.readiness": "command errors events plan record units kernel",
    "kernel.vantage": "plan kernel",
    "kernel.world": "chronicle errors events model plan report kernel",
    "kernel.adoption": "errors events identity kernel",
    "kernel.smart": "events identity units kernel",
    "kernel.territory": "identity kernel",
    "kernel.native": "errors record _native",
    "kernel.jail": "errors events jail model plan report units kernel",
    "kernel.enter": "errors plan record kernel",
    "kernel.foreground": "kernel",
    "kernel.front": "errors foreground units kernel",
    "kernel.teller": "chronicle control errors events machine master model report supervisor units"
    " kernel",
    "kernel.inspect": "command errors identity model script units",
    "kernel.pidfile": "errors identity kernel",
    "kernel.log": "errors wire kernel.loop kernel.sink",
    "kernel.logger": "errors model plan record kernel",
    "kernel.logs": "model plan kernel.logger",
    "kernel.tail": "errors model plan units kernel",
    "kernel.records": "errors identity kernel",
    # The program.
    "supervisor": "changes errors events machine master",
    "check": "command config errors jail kernel.caps kernel.facts kernel.jailed kernel.network"
    " kernel.privilege kernel.source model plan",
    "doctor": "check config.wording errors kernel.premises kernel.probe model",
    "enter": "kernel model",
    "run": "units kernel",
    "client": "errors units wire kernel.instance",
    "ctl": "client errors record units wire ctl",
    "cli": "check ctl doctor enter run config.wording errors events kernel model supervisor",
    "__main__": "cli",
    "__init__": "client",
}
UPWARDS_FOR_TYPES = {
    "errors": "model",
    "events": "model",
    "backoff": "model",
    "changes": "model",
    "chronicle": "units",
    "machine": "model",
    "state": "",
    "plan": "model",
    "kernel": "model",
    "kernel.world": "legion machine supervisor units",
    "kernel.answers": "legion",
    "control": "legion",
    "kernel.adoption": "model plan units",
    "kernel.attendance": "events machine model units",
    "supervisor": "model units",
}

PURE = {
    *(
        "record",
        "units",
        "errors",
        "model",
        "events",
        "identity",
        "script",
        "wire",
        "backoff",
        "foreground",
        "jail",
        "machine",
        "master",
        "state",
    ),
    *("report", "stats", "plan", "command", "config", "supervisor"),
}
STDLIB_OF_PURE = {"_collections", "_signal", "collections"}
STDLIB_OF_PURE_BY_MODULE = {
    "config.logic": {"re"},
    "config.network": {"ipaddress"},
    "wire": {"_json"},
}
STDLIB_OF_PURE_WHEN_CALLED = {"difflib", "json", "os.strerror"}  # where something is wrong already


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


class Imports(ast.NodeVisitor):
    """What a module imports: at once, when a function is called, and for types only."""

    def __init__(self):
        self.found = {"now": set(), "called": set(), "types": set()}
        self.when = "now"

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._visit_as("types", node.body)
            self._visit_as(self.when, node.orelse)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self._visit_as("called" if self.when == "now" else self.when, node.body)

    def visit_Import(self, node):
        self.found[self.when].update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self.found[self.when].update(f"{node.module}.{alias.name}" for alias in node.names)

    def _visit_as(self, when, nodes):
        before, self.when = self.when, when
        for node in nodes:
            self.visit(node)
        self.when = before


@functools.cache
def read_imports(name):
    visitor = Imports()
    visitor.visit(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    return visitor.found


def own(imports):
    """The modules of ours among the imports."""
    found = set()
    for text in imports:
        first, _, rest = text.partition(".")
        if first != "lowsuper":
            continue
        while rest and rest not in MODULES and rest != "_native":
            rest = rest.rpartition(".")[0]
        found.add(rest or "__init__")
    return found


def foreign(imports):
    return {text for text in imports if text.partition(".")[0] not in ("lowsuper", "__future__")}


def row(table, name):
    package = name.partition(".")[0]
    return table[name] if name in table else table.get(package, "")


def allows(words, target):
    return any(target == word or target.startswith(f"{word}.") for word in words.split())


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_lies_below(name):
    imports = read_imports(name)
    allowed = row(MAY_IMPORT, name)
    upwards = [
        target for target in own(imports["now"] | imports["called"]) if not allows(allowed, target)
    ]
    assert upwards == []
    for_types = f"{allowed} {row(UPWARDS_FOR_TYPES, name)}"
    assert [target for target in own(imports["types"]) if not allows(for_types, target)] == []


def test_table_has_every_module_and_no_other():
    assert {name for name in MODULES if not row_exists(name)} == set()
    packages = {name.partition(".")[0] for name in MODULES}
    assert (
        MAY_IMPORT.keys() | UPWARDS_FOR_TYPES.keys() | PURE
    ) - MODULES.keys() - packages == set()


def row_exists(name):
    return name in MAY_IMPORT or name.partition(".")[0] in MAY_IMPORT


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_table_allows_nothing_that_is_not_used(name):
    members = [
        other
        for other in MODULES
        if other == name or row(MAY_IMPORT, other) == row(MAY_IMPORT, name)
    ]
    used = set()
    for member in members:
        imports = read_imports(member)
        used |= own(imports["now"] | imports["called"] | imports["types"])
    assert [
        word for word in MAY_IMPORT[name].split() if not any(allows(word, t) for t in used)
    ] == []


def test_imports_have_no_circle():
    graph = {name: own(read_imports(name)["now"]) - {"_native"} for name in MODULES}
    for name, targets in graph.items():
        seen, ahead = set(), set(targets)
        while ahead:
            target = ahead.pop()
            seen.add(target)
            ahead |= graph[target] - seen
        # What a package takes from itself when it is imported is its modules.
        assert name not in seen - {"config"}, f"{name} imports itself by way of others"


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name in PURE or name.partition(".")[0] in PURE]
)
def test_pure_module_reaches_for_nothing_outside(name):
    imports = read_imports(name)
    allowed = STDLIB_OF_PURE | STDLIB_OF_PURE_BY_MODULE.get(name, set())
    assert {text.partition(".")[0] for text in foreign(imports["now"])} <= allowed
    lazy = {
        text if text.startswith("os.") else text.partition(".")[0]
        for text in foreign(imports["called"])
    }
    assert lazy <= STDLIB_OF_PURE_WHEN_CALLED | allowed


def test_pyroute2_is_imported_by_the_helper_alone():
    users = [
        name
        for name in MODULES
        if any(
            text.partition(".")[0] == "pyroute2"
            for each in read_imports(name).values()
            for text in each
        )
    ]
    assert users == ["kernel.links"]


def test_extension_is_imported_in_one_place():
    users = [
        name
        for name in MODULES
        if "_native" in own(read_imports(name)["now"] | read_imports(name)["called"])
    ]
    assert users == ["kernel.native"]
