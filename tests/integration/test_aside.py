"""What hangs, as a file server that does not answer, hangs who asked for it and nobody else."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from pathlib import Path

import pytest
from masters import DEADLINE, need, needs_root
from steering import Client, socket_of

WEB = "attach-daemon2 = name=web,cmd=sleep 1000{}\n"
MNT_FORCE, MNT_DETACH = 1, 2


class DeadServer:
    """A mounted file system that answers the first question (FUSE_INIT) and no other."""

    def __init__(self, place: Path):
        self.place = os.fsencode(place)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if self._libc.mount(b"dead", self.place, b"fuse", 6, options):
            number = ctypes.get_errno()
            os.close(self._fd)
            need(False, f"a FUSE mount: {os.strerror(number)}")
        head = struct.unpack_from("IIQ", os.read(self._fd, 1 << 17))
        body = struct.pack("IIIIHHIIHHI", 7, 31, 0, 0, 12, 10, 4096, 1, 0, 0, 0) + bytes(24)
        os.write(self._fd, struct.pack("IiQ", 16 + len(body), 0, head[2]) + body)
        self.asked = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        """Take the first question, and say nothing."""
        try:
            os.read(self._fd, 1 << 17)
        except OSError:
            return
        self.asked.set()

    def close(self) -> None:
        self._libc.umount2(self.place, MNT_FORCE | MNT_DETACH)
        self._thread.join()
        os.close(self._fd)


@needs_root
@pytest.mark.parametrize("request_", ["logs", "follow", "why"])
def test_log_on_a_dead_server_hangs_nobody_else(masters, tmp_path, request_):
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse")
    place = tmp_path / "dead"
    place.mkdir()
    log = place / "web.log"
    masters.start(WEB.format(f",log={log}"))
    server = DeadServer(place)
    try:
        with Client(socket_of(masters)) as client, Client(socket_of(masters)) as other:
            words = {
                "logs": b'{"do":"logs","name":"web"}\n',
                "follow": b'{"do":"logs","name":"web","follow":true}\n',
                "why": b'{"do":"why","name":"web"}\n',
            }
            client.send(words[request_])
            assert server.asked.wait(DEADLINE)
            began = time.monotonic()
            assert other.daemon("web")["state"] == "running"
            other.done("restart", "web") if request_ == "why" else other.done("hello")
            assert time.monotonic() - began < 1
            if request_ == "why":
                found = client.next()
                assert found["lines"] == []
                assert "does its file system answer?" in found["no_lines"]
    finally:
        server.close()


def test_configuration_that_is_not_read_to_its_end_hangs_nobody_else(masters):
    """Nor does it cost the master more than the trial: nothing is reloaded."""
    part = masters.directory / "part"
    part.write_text("1")
    master = masters.start(WEB.format("") + "x = @({T}/part)\n")
    part.unlink()
    os.mkfifo(part)
    writer = os.open(part, os.O_RDWR)
    try:
        with Client(socket_of(masters)) as other:
            for verb in ("diff", "reload", "apply"):
                with Client(socket_of(masters)) as client:
                    client.send(f'{{"do":"{verb}"}}\n'.encode())
                    began = time.monotonic()
                    assert other.daemon("web")["state"] == "running"
                    assert time.monotonic() - began < 1
    finally:
        os.close(writer)
    master.expect_silence("reload")


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero


def put_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")


@pytest.mark.parametrize(
    ("put", "expected"),
    [(put_fifo, "not-possible"), pytest.param(put_device, "not-possible", marks=needs_root),
     (put_huge, None)],
)  # fmt: skip
def test_log_that_is_no_usual_file(masters, put, expected):
    log = masters.directory / "web.log"
    masters.start(WEB.format(f",log={log}"))
    log.unlink()
    put(log)
    with Client(socket_of(masters)) as client:
        began = time.monotonic()
        found = client.ask("logs", name="web", lines=1)
        assert found.get("error") == expected, found
        if expected is None:
            assert found["lines"] == ["last"]
            assert len(client.done("logs", name="web", lines=100)["lines"]) == 2
        assert time.monotonic() - began < DEADLINE / 2


def test_many_ask_at_once_and_each_is_answered(masters):
    log = masters.directory / "web.log"
    masters.start(WEB.format(f",log={log}"))
    log.write_text("one\n")
    clients = [Client(socket_of(masters)) for _ in range(30)]
    try:
        for client in clients:
            client.send(b'{"do":"logs","name":"web"}\n{"do":"diff"}\n')
        for client in clients:
            assert client.next()["lines"] == ["one"]
            assert client.next()["changes"]["added"] == []
    finally:
        for client in clients:
            client.__exit__()


def test_too_many_streams_are_refused_and_those_of_who_is_gone_do_not_count(masters):
    log = masters.directory / "web.log"
    master = masters.start(WEB.format(f",log={log}"))
    log.write_text("one\n")
    family = master.family()
    for _ in range(3):
        clients = [Client(socket_of(masters)) for _ in range(33)]
        answers = []
        try:
            for client in clients:
                client.send(b'{"do":"logs","name":"web","follow":true}\n')
            answers = [client.next() for client in clients]
        finally:
            for client in clients:
                client.__exit__()
        assert [each.get("error") for each in answers].count("too-many") == 1
        end = time.monotonic() + DEADLINE
        while master.family() != family:
            assert time.monotonic() < end
