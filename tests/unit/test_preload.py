"""All that is imported late can be imported in a jail, where nothing is imported any more."""

from __future__ import annotations

import sys

from test_layers import MODULES, foreign, own, read_imports

from lowsuper.kernel import jail

ROOTS = ("kernel.world", "supervisor")
NEVER_IN_A_JAIL = {
    "config": "files are read outside",
    "kernel.source": "files are read outside",
    "kernel.parent": "the process outside tells who has started it",
    "kernel.peer": "who asks is looked at outside",
    "kernel.lobby": "it is the process outside",
    "kernel.door": "it is the process outside",
    "stats": "a configuration with a jail and statistics is refused",
    "kernel.fences": "a configuration with a jail and a legion is refused",
    "kernel.legion": "a configuration with a jail and a legion is refused",
    "kernel.tail": "control clients are served outside",
    "kernel.logger": "a configuration with a jail and such a log is refused",
    "kernel.stats": "a configuration with a jail and statistics is refused",
    "kernel.setns": "the process outside shares the namespaces",
    "kernel.controllers": "limits of cgroups are refused where a jail hides the cgroups",
}
BUILT_IN = {*sys.builtin_module_names, "_frozen_importlib"}
NOT_ASKED = {
    *("pwd", "grp"),  # `accounts.use_files` comes first
    *("_json", "json"),  # `wire` calls for what it needs when it is imported itself
}


def reach(roots):
    """Return the modules that are loaded with these, and those they import when called."""
    loaded, late, at_once, outside = set(), set(), set(), set()
    ahead = set(roots)
    while ahead:
        name = ahead.pop()
        if name in loaded or name == "_native":
            continue
        loaded.add(name)
        imports = read_imports(name)
        ahead |= own(imports["now"])
        late |= own(imports["called"])
        at_once |= modules(imports["now"])
        outside |= modules(imports["called"])
    return loaded, late - {"_native"}, outside - at_once


def modules(imports):
    return {text.rpartition(".")[0] or text for text in foreign(imports)}


def test_everything_that_is_imported_late_is_preloaded():
    listed = {
        name
        for names in (
            jail.PRELOAD,
            jail.PRELOAD_SMART,
            jail.PRELOAD_HOOKS,
            jail.PRELOAD_TITLE,
            jail.PRELOAD_ENVFILE,
            jail.PRELOAD_LISTEN,
            jail.PRELOAD_ATTENDANCE,
            jail.PRELOAD_CAPS,
            jail.PRELOAD_DROP,
            jail.PRELOAD_USERS,
            jail.PRELOAD_JSON,
        )
        for name in names
    }
    ours = {name.removeprefix("lowsuper.") for name in listed if name.startswith("lowsuper.")}
    assert ours <= MODULES.keys()
    loaded, late, outside = reach({*ROOTS, *ours})
    missing = {
        name
        for name in late - loaded
        if name not in NEVER_IN_A_JAIL and name.partition(".")[0] not in NEVER_IN_A_JAIL
    }
    assert missing == set()
    assert outside - BUILT_IN - NOT_ASKED - listed == set()
