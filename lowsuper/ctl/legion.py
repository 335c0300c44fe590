"""`lowsuper legion`: the nodes of each legion, who is the lord, and why there is none."""

from __future__ import annotations

from lowsuper.ctl import screen
from lowsuper.ctl.show import put_json
from lowsuper.ctl.table import format_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowsuper.ctl import Call

HEADS = ("NODE", "VALOR", "", "SEEN", "VOTES FOR", "KIND", "UUID", "SCROLL")


def show(call: Call) -> int:
    """Print what the master's agent knows."""
    with call.connect() as master:
        found = master.legions(call.names)
    if call.has("json"):
        put_json({"legions": found})
        return 0
    limit = screen.width() if screen.is_terminal() else 0
    screen.write("\n".join(format_legion(each, limit) for each in found))
    if not found:
        screen.write("nothing is known of a legion\n")
    return 0


def format_legion(legion: dict[str, Any], width: int = 0) -> str:
    """Return a legion as lines, as wide as the terminal; 0: as wide as they are."""
    if legion["lord"] is None:
        state = f"no lord: {legion['note']}" if legion["note"] else "no lord"
    elif legion["lease"] is not None:
        verb = "gives up the lordship, in" if legion["state"] == "resigning" else "is the lord, for"
        state = f"this node {verb} {legion['lease']:.1f} s at most"
    else:
        state = f"{legion['lord']} is the lord"
    if legion["state"] == "suspended":
        state = f"this node keeps out: {legion['note']}"
    quorum = f", {legion['quorum']} needed" if legion["quorum"] else ""
    rows = [
        (
            node["name"],
            str(node["valor"]) if node["valor"] else "arbiter",
            "lord" if node["lord"] else "",
            "this node" if node["self"] else f"{node['seen']:.1f} s ago",
            node["vote"] or "-",
            node["kind"],
            node["uuid"],
            node["scroll"] or "",
        )
        for node in legion["nodes"]
    ]
    lost = f"and {legion['left_out']} more\n" if legion["left_out"] else ""
    table = format_table(rows, HEADS, width=width) if rows else ""
    return f"{legion['name']}: {state} (votes: {legion['votes']}{quorum})\n{table}{lost}"
