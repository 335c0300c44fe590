"""nginx as a smart daemon, and its upgrade in place: another process takes the pidfile over."""

import select
import signal
import time
import urllib.request

import pytest
from masters import (
    DEADLINE,
    children_of,
    find_program,
    free_port,
    is_alive,
    name_of,
    needs_root,
    send,
    status_of,
    wait_file,
    wait_gone,
)
from real_programs import (
    begin_adopting,
    begin_smart,
    count_starts,
    end_and_reap,
    go_through_all,
    read_pid,
    reload_without,
    replace_killed,
)
from test_real_memcached import connect

CONFIGURATION = """\
daemon on;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
user nobody nogroup;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 "worker $pid"; }}
  }}
}}
"""


class Site:
    """An nginx with a directory and a port of its own."""

    def __init__(self, directory):
        self.port = free_port()
        self.pidfile = directory / "nginx.pid"
        # It restarts itself as it was called, without a search in PATH.
        self.command = f"{find_program('nginx')} -e {directory}/error.log -c {directory}/nginx.conf"
        self.text = f"smart-attach-daemon = {self.pidfile} {self.command}\n"
        configuration = CONFIGURATION.format(directory=directory, port=self.port)
        (directory / "nginx.conf").write_text(configuration)

    def work(self):
        connect(("127.0.0.1", self.port)).close()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/") as answer:
            assert answer.read().startswith(b"worker ")

    def start_successor(self, pid):
        """Have it start its binary anew, which it does not do while what launched it is there."""
        parent = int(status_of(pid)["PPid"])
        if name_of(parent) == "nginx":
            wait_gone(parent)
        wait_workers(pid)
        send(pid, signal.SIGUSR2)

    def upgrade(self, old):
        """Have it start its binary anew; return the new master, once the old one has ended."""
        self.start_successor(old)
        wait_file(self.pidfile.with_name("nginx.pid.oldbin"))
        wait_file(self.pidfile)
        self.work()
        end_and_reap(old, signal.SIGQUIT)
        return read_pid(self.pidfile)


def wait_workers(pid):
    """Wait until an nginx has started its workers: what it is sent before, it may sleep over."""
    end = time.monotonic() + DEADLINE
    while not children_of(pid):
        assert time.monotonic() < end, f"nginx {pid} has no workers"
        select.select([], [], [], 0.005)


@pytest.fixture
def site(open_masters):
    open_masters.allow_survivors()
    return Site(open_masters.directory)


@needs_root
def test_nginx_lives_through_it_all(open_masters, site):
    """Its workers outlive a killed master of theirs, and keep the port: they have to go too."""
    go_through_all(open_masters, site.text, name="nginx", pidfile=site.pidfile, work=site.work)


@needs_root
def test_upgrade_of_nginx_is_followed(open_masters, site):
    master, old = begin_smart(open_masters, site.text, "nginx")
    site.work()
    site.start_successor(old)
    new = master.wait_moved("nginx")
    assert new == read_pid(site.pidfile) != old
    assert is_alive(old)
    site.work()
    send(old, signal.SIGWINCH)  # its workers end
    site.work()
    send(old, signal.SIGQUIT)
    wait_gone(old)
    site.work()
    reload_without(master, "nginx", new)

    # No other was started, and the next master knows which one it is.
    assert count_starts(master, "nginx") == 1
    master.kill()
    site.work()
    master = begin_adopting(open_masters, site.text, "nginx", new)
    newest = replace_killed(master, "nginx", new)
    assert newest == read_pid(site.pidfile)
    site.work()


@needs_root
def test_upgrade_of_nginx_without_a_master_is_found_out(open_masters, site):
    master, old = begin_smart(open_masters, site.text, "nginx")
    site.work()
    master.kill()
    new = site.upgrade(old)
    master = begin_adopting(open_masters, site.text, "nginx", new)
    site.work()

    # And one of an nginx that was only found.
    newest = site.upgrade(new)
    assert master.wait_moved("nginx") == newest
    site.work()
    master.expect_silence("nginx: started,")


@needs_root
def test_rolled_back_upgrade_of_nginx_is_followed_back(open_masters, site):
    """The new master is told to go, and the old one has the pidfile again."""
    master, old = begin_smart(open_masters, site.text, "nginx")
    site.start_successor(old)
    new = master.wait_moved("nginx")
    wait_workers(new)
    send(new, signal.SIGQUIT)
    wait_gone(new)
    assert master.wait_moved("nginx") == old == read_pid(site.pidfile)
    site.work()
    assert count_starts(master, "nginx") == 1
