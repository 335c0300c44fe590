"""Addresses of statistics, and the pages that are served there."""

from __future__ import annotations

import json

import pytest
from config_world import errors_of, load_lines, warnings_of

from lowsuper.chronicle import Chronicle
from lowsuper.config.stats import parse_endpoint, parse_socket_mode
from lowsuper.control import Place
from lowsuper.events import DaemonDied
from lowsuper.machine import Backoff, Down, Up
from lowsuper.model import Command, DaemonSpec, Endpoint, Origin
from lowsuper.stats import Instance, JsonPage, MetricsPage, View, quote_label

ORIGIN = Origin("test.ini", 1, "attach-daemon", "web")
INSTANCE = Instance("a", 1, 2, 3, "/", ("/f.ini",), "running", 10**9, 2 * 10**9, 10**18)


def view(name="web", state=None, chronicle=None):
    spec = DaemonSpec(name, Command(f'run "{name}"', ("run", name)), ORIGIN)
    return View(spec, state or Down(0), chronicle, Place())


def render(page, *views):
    for each in views:
        page.add(each)
    return page.finish(INSTANCE).decode()


@pytest.mark.parametrize(
    ("text", "kind", "host", "port"),
    [
        ("127.0.0.1:9191", "tcp", "127.0.0.1", 9191),
        (":9191", "tcp", "0.0.0.0", 9191),
        ("localhost:1", "tcp", "127.0.0.1", 1),
        ("[::1]:65535", "tcp6", "::1", 65535),
        ("/run/a:b.sock", "unix", "/run/a:b.sock", 0),
        ("@name", "abstract", "name", 0),
    ],
)
def test_addresses(text, kind, host, port):
    assert parse_endpoint(text) == Endpoint(text, kind, host, port)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9191", "did you mean :9191"),
        ("stats.sock", "none of HOST:PORT"),
        ("", "none of HOST:PORT"),
        ("/run/", "directory"),
        ("@", "@ and a name"),
        ("@" + "x" * 107, "@ and a name"),
        ("example.org:80", "host that is no number"),
        ("127.1:80", "host that is no number"),
        ("127.0.0.256:80", "host that is no number"),
        ("127.0.0.01:80", "host that is no number"),
        ("[x]:80", "no IPv6 address"),
        ("::1:80", "host that is no number"),
        (":0", "port"),
        (":65536", "port"),
        (":http", "port"),
    ],
)
def test_what_is_no_address_says_so(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("text", "mode"), [("660", 0o660), ("true", 0o666), ("", 0o666), ("false", None)]
)
def test_mode(text, mode):
    assert parse_socket_mode(text) == mode


def test_options():
    spec = load_lines("stats-server = :1", "stats-http = 1", "stats-min = 1", "metrics = :2")
    assert (spec.stats, spec.metrics) == (parse_endpoint(":1"), parse_endpoint(":2"))
    assert (spec.stats_http, spec.stats_minified) == (True, True)


def test_what_cannot_be_served_is_refused():
    assert "jail" in str(errors_of("stats = :1", "namespace = /srv/root"))
    assert "two addresses" in str(errors_of("stats = :1", "metrics = :1"))


def test_mode_without_statistics_does_nothing():
    assert "runs no application" in str(warnings_of("chmod-socket = 660"))
    assert not warnings_of("chmod-socket = 660", "stats = /run/s")


@pytest.mark.parametrize("minified", [True, False])
def test_page_is_json_whatever_the_names(minified):
    page = JsonPage(minified=minified)
    names = ['"daemons":[]', "tab\tü\udcff", "\\"]
    told = json.loads(render(page, *map(view, names)))
    assert [daemon["name"] for daemon in told["daemons"]] == names
    assert told["daemons"][0]["cmd"] == f'run "{names[0]}"'
    assert json.loads(render(page))["daemons"] == []


@pytest.mark.parametrize("make", [lambda: JsonPage(minified=True), MetricsPage])
def test_kept_parts_are_made_again_when_something_changes(make):
    page, chronicle = make(), Chronicle()
    views = [view("a", Up(1, 5, 1, 77), chronicle), view("b")]
    first = render(page, *views)
    assert render(page, *views) == first == render(make(), *views)
    chronicle.record(DaemonDied("a", 77, 3 << 8, 5, False, 7, False), 9)
    assert render(page, *views) == render(make(), *views) != first
    views[0] = view("a", Up(2, 5, 2, 78), chronicle)
    assert render(page, *views) == render(make(), *views)


def test_a_restart_counts_when_it_has_happened():
    chronicle = Chronicle()
    chronicle.record(DaemonDied("web", 77, 9, 5, False, 7, False), 9)
    told = json.loads(render(JsonPage(minified=True), view("web", Backoff(1, 1, 10), chronicle)))
    assert told["daemons"][0]["respawns"] == 0
    told = json.loads(render(JsonPage(minified=True), view("web", Up(2, 5, 2, 78), chronicle)))
    assert told["daemons"][0]["respawns"] == 1


def test_metrics():
    chronicle = Chronicle()
    chronicle.record(DaemonDied("web", 77, 9, 5, False, 7, False), 9)
    text = render(MetricsPage(), view("web", Up(2, 10**9, 2, 78), chronicle), view("b"))
    lines = text.splitlines()
    assert 'lowsuper_daemon_up{daemon="b"} 0' in lines
    assert 'lowsuper_daemon_last_exit_code{daemon="web"} 137' in lines
    assert 'lowsuper_daemon_start_time_seconds{daemon="web"} 999999999.000' in lines
    assert quote_label('a"\\\n') == 'a\\"\\\\\\n'
