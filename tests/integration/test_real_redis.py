"""redis-server, dumb and smart, by its own protocol on a socket of its own."""

import signal

import pytest
from masters import find_program, is_alive, needs_root, send, status_of
from real_programs import go_through_all
from test_real_memcached import connect


class Client:
    """Speaks RESP, redis's protocol."""

    def __init__(self, address):
        self._socket = connect(address)
        self._file = self._socket.makefile("rwb")

    def ask(self, *words):
        parts = [f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]
        self._file.write("".join(parts).encode())
        self._file.flush()
        head = self._file.readline().decode().rstrip()
        if head.startswith("$"):
            size = int(head[1:])
            return None if size < 0 else self._file.read(size + 2)[:-2].decode()
        return head

    def is_closed(self):
        self._socket.settimeout(20)
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._socket.close()


@pytest.fixture
def redis():
    def command(directory):
        return (
            f"{find_program('redis-server')} --port 0 --unixsocket {directory}/redis.sock "
            f'--unixsocketperm 777 --save "" --appendonly no --dir {directory}'
        )

    return command


def test_redis_lives_and_dies_with_its_master(masters, redis):
    path = f"{masters.directory}/redis.sock"
    master = masters.start(f"attach-daemon = {redis(masters.directory)}\n")
    first = master.pid_of("redis-server")
    with Client(path) as client:
        assert client.ask("SET", "colour", "red") == "+OK"
        assert client.ask("GET", "colour") == "red"
        send(first, signal.SIGKILL)
        assert client.is_closed()
    second = master.wait_started("redis-server")
    second = master.wait_started("redis-server") if second == first else second
    with Client(path) as client:
        assert client.ask("GET", "colour") is None
        assert client.ask("SET", "colour", "blue") == "+OK"
        master.signal(signal.SIGHUP)
        assert client.is_closed()
    master.wait_line("reloaded")
    third = master.pid_of("redis-server")
    assert not is_alive(second)
    with Client(path) as client:
        assert client.ask("GET", "colour") is None
        assert master.stop() == 0
        assert client.is_closed()
    assert not is_alive(third)
    # It had the time to end well: redis says so itself.
    assert master.has_said("ready to exit, bye bye")


def test_redis_dies_with_a_killed_master(masters, redis):
    master = masters.start(f"attach-daemon = {redis(masters.directory)}\n")
    with Client(f"{masters.directory}/redis.sock") as client:
        assert client.ask("PING") == "+PONG"
        master.kill()
        assert client.is_closed()
    master.wait_family_gone()


def test_redis_with_keys_in_a_section(masters, redis):
    """Control, a signal by name, and a pid namespace."""
    master = masters.start(
        "[uwsgi]\n[daemon:store]\n"
        f"command = {redis(masters.directory)}\nstop-signal = INT\ncontrol = true\n"
    )
    with Client(f"{masters.directory}/redis.sock") as client:
        assert client.ask("PING") == "+PONG"
        client.ask("SHUTDOWN", "NOSAVE")
    assert master.wait() == 0
    assert master.has_said("store: pid .* exited with 0 .*it is a control daemon")


@needs_root
def test_redis_and_memcached_as_other_users_together(open_masters, redis):
    """The README's main job: both at once, as users of their own, ready, and gone at the end."""
    directory = open_masters.directory
    memcached = find_program("memcached")
    master = open_masters.start(
        f"attach-daemon2 = cmd={redis(directory)},uid=nobody,name=redis\n"
        f"attach-daemon2 = cmd={memcached} -s {directory}/mc.sock,uid=www-data,name=cache,ns_pid\n"
    )
    assert status_of(master.pid_of("redis"))["Uid"].split() == ["65534"] * 4
    assert status_of(master.pid_of("cache"))["Uid"].split() == ["33"] * 4
    with Client(f"{directory}/redis.sock") as client:
        assert client.ask("PING") == "+PONG"
    connect(f"{directory}/mc.sock").close()
    assert master.stop() == 0
    assert not master.family()


def test_smart_redis_lives_through_it_all(masters, redis):
    """With `daemonize yes` it puts itself into the background."""
    masters.allow_survivors()
    directory = masters.directory
    pidfile = directory / "redis.pid"

    def work():
        with Client(f"{directory}/redis.sock") as client:
            before = int(client.ask("GET", "number") or 0)
            assert client.ask("INCR", "number") == f":{before + 1}"
            numbers.append(before)

    numbers = []
    go_through_all(
        masters,
        f"smart-attach-daemon = {pidfile} {redis(directory)} --daemonize yes"
        f" --pidfile {pidfile} --logfile {directory}/redis.log\n",
        name="redis-server",
        pidfile=pidfile,
        work=work,
    )
    # The same one all the time, until it was killed.
    assert numbers == [*range(len(numbers) - 1), 0]
