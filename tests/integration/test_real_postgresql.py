"""A PostgreSQL cluster as a smart daemon: it refuses to be root, and has a pidfile of 8 lines."""

import glob
import grp
import pwd
import select
import signal
import subprocess
import time

import pytest
from masters import find_program, is_alive, name_of, needs_root, send, status_of, wait_text
from real_programs import (
    begin_adopting,
    begin_smart,
    end_and_reap,
    go_through_all,
    read_pid,
    stop_without,
)

SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{directory}'
logging_collector = on
log_directory = '{directory}/log'
log_filename = 'server.log'
log_file_mode = 0644
shared_buffers = 1MB
max_connections = 10
fsync = off
"""

pytestmark = needs_root


class Cluster:
    """A new cluster of databases in a directory that the user postgres can reach."""

    def __init__(self, directory):
        (binaries, *_) = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), reverse=True) or [
            find_program("postgres")
        ]
        self.binaries = binaries.removesuffix("/postgres")
        self.directory = directory
        self.data = directory / "db"
        self.pidfile = self.data / "postmaster.pid"
        self.command = f"{binaries} -D {self.data}"
        self._rows = 0
        self._run("initdb", "-D", self.data, "--no-sync", "--auth=trust", "--locale=C")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS.format(directory=directory))

    def _run(self, program, *arguments):
        return subprocess.run(
            [f"{self.binaries}/{program}", *arguments],
            cwd=self.directory,
            user="postgres",
            group="postgres",
            extra_groups=[],
            capture_output=True,
            text=True,
            check=program != "psql",
        )

    def query(self, text):
        """Return the answer, as soon as the server, which was started a moment ago, gives it."""
        end = time.monotonic() + 20
        words = ["-h", self.directory, "-d", "postgres", "-Atq", "-v", "ON_ERROR_STOP=1"]
        while True:
            done = self._run("psql", *words, "-c", text)
            if done.returncode == 0:
                return done.stdout.strip()
            assert time.monotonic() < end, done.stderr
            select.select([], [], [], 0.02)

    def work(self):
        """Add a row to a table, and find those of the times before."""
        self._rows += 1
        self.query("create table if not exists work (at timestamp default now())")
        self.query("insert into work default values")
        assert self.query("select count(*) from work") == str(self._rows)

    def shut_down(self):
        """End it well: killed, it would leave its piece of System V shared memory behind."""
        if not self.pidfile.exists():
            return
        lines = self.pidfile.read_text().splitlines()
        pid = int(lines[0])
        if is_alive(pid) and name_of(pid) == "postgres":
            end_and_reap(pid, signal.SIGINT)
        elif len(lines) > 6:
            _, number = lines[6].split()
            subprocess.run(["ipcrm", "-m", number], check=False, capture_output=True)

    def wait_log(self, text):
        wait_text(self.data.parent / "log" / "server.log", text)

    def count_log(self, text):
        return (self.directory / "log" / "server.log").read_text().count(text)


@pytest.fixture
def cluster(open_masters):
    try:
        pwd.getpwnam("postgres"), grp.getgrnam("postgres")
    except KeyError:
        pytest.fail("PostgreSQL is not installed; vagrant/provision.sh installs it")
    cluster = Cluster(open_masters.directory)
    open_masters.allow_survivors(cluster.shut_down)
    return cluster


def assert_is_postgres(pid):
    """Assert that a process has nothing of root's."""
    status = status_of(pid)
    user = pwd.getpwnam("postgres")
    assert status["Uid"].split() == [str(user.pw_uid)] * 4
    assert status["Gid"].split() == [str(user.pw_gid)] * 4
    assert "0" not in status["Groups"].split()


def test_postgresql_by_the_uid_key_lives_through_it_all(open_masters, cluster):
    _, pid = go_through_all(
        open_masters,
        f"attach-daemon2 = cmd={cluster.command},pidfile={cluster.pidfile},uid=postgres,"
        "stopsignal=INT,name=db\n",
        name="db",
        pidfile=cluster.pidfile,
        work=cluster.work,
    )
    assert_is_postgres(pid)


def test_postgresql_by_the_uid_of_the_master_lives_through_it_all(open_masters, cluster):
    """The example of uWSGI's documentation: the master itself becomes postgres."""
    master, pid = go_through_all(
        open_masters,
        f"uid = postgres\nsmart-attach-daemon = {cluster.pidfile} {cluster.command}\n",
        name="postgres",
        pidfile=cluster.pidfile,
        work=cluster.work,
    )
    assert_is_postgres(master.pid)
    assert_is_postgres(pid)


def test_postgresql_notifies_when_it_takes_queries(open_masters, cluster):
    """Debian builds it with libsystemd; its socket would be there earlier."""
    text = f"[daemon:db]\ncommand = {cluster.command}\nuid = postgres\nstop-signal = INT\n"
    master = open_masters.begin(text + "ready = notify\nstart-timeout = 20s\n")
    pid = master.wait_started("db")
    master.wait_line(f"db: pid {pid} is ready after ")
    assert cluster.query("select 1") == "1"
    assert master.stop() == 0


def test_touch_shuts_postgresql_down_cleanly_and_starts_it_again(open_masters, cluster):
    touched = open_masters.directory / "touched"
    touched.write_text("")
    text = (
        f"[daemon:db]\ncommand = {cluster.command}\npidfile = {cluster.pidfile}\n"
        f"uid = postgres\nstop-signal = INT\ntouch = {touched}\n"
    )
    master, first = begin_smart(open_masters, text, "db")
    cluster.work()
    touched.touch()
    second = master.wait_started("db")
    assert second == read_pid(cluster.pidfile) != first
    cluster.work()
    assert cluster.count_log("received fast shutdown request") == 1
    assert cluster.count_log("database system is shut down") == 1

    # The same of one that it has only found.
    stop_without(master, "db", second)
    master = begin_adopting(open_masters, text, "db", second)
    touched.touch()
    third = master.wait_started("db")
    assert third == read_pid(cluster.pidfile) != second
    cluster.work()
    assert cluster.count_log("received fast shutdown request") == 2
    assert cluster.count_log("database system is shut down") == 2
    assert not cluster.count_log("was interrupted")


def test_notified_postgresql_shuts_down_cleanly_with_its_master(open_masters, cluster):
    text = (
        f"attach-daemon2 = cmd={cluster.command},pidfile={cluster.pidfile},uid=postgres,"
        "stopsignal=INT,reloadsignal=HUP,notifypid,name=db\n"
    )
    master, pid = begin_smart(open_masters, text, "db")
    cluster.work()
    # At a reload it reads its settings again.
    master.signal(signal.SIGHUP)
    master.wait_line(rf"db: reload: left running, pid {pid}, told by SIGHUP \(1\)")
    cluster.wait_log("received SIGHUP, reloading configuration files")
    cluster.work()
    assert master.stop() == 0
    assert master.has_said(rf"db: stop: left running, pid {pid}, told by SIGINT \(2\)")
    # Nobody waited for it.
    cluster.wait_log("received fast shutdown request")
    cluster.wait_log("database system is shut down")
    assert not cluster.count_log("was interrupted")


def test_shut_down_postgresql_is_started_again(open_masters, cluster):
    """By somebody else: the pidfile goes first, which is not a crash, and then the process."""
    text = (
        f"attach-daemon2 = cmd={cluster.command},pidfile={cluster.pidfile},uid=postgres,name=db\n"
    )
    master, pid = begin_smart(open_masters, text, "db")
    cluster.work()
    send(pid, signal.SIGINT)
    master.wait_line(rf"db: pid {pid} exited with 0 after")
    new = master.wait_started("db")
    assert new == read_pid(cluster.pidfile) != pid
    cluster.work()
    assert cluster.count_log("database system is shut down") == 1
