"""Real etcd clusters on the loopback, what disturbs them, and nodes that contend for a title there.

A contender is a process with the real engine and the part of a master that matters here: it starts
a daemon when it is the lord and ends it in time. The daemon is a process of its own, which holds a
lock for as long as it lives and sees to its deadline itself, as the guard does for real ones: it
does not matter what has become of its contender. `clash` in the journal is the proof of two.

    python etcds.py contend ORDERS      what a Contender runs
    python etcds.py hold JOURNAL ...    what that runs as its daemon
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

DEADLINE = 20.0
SECOND = 1_000_000_000
MS = SECOND // 1000


# The cluster.


def free_ports(count: int) -> list[int]:
    """Return ports that nobody had a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Member:
    """One server of a cluster."""

    def __init__(
        self, name: str, url: str, arguments: list[str], log: Path, context: ssl.SSLContext | None
    ):
        self.name, self.url, self.arguments, self.log = name, url, arguments, log
        self.port = int(url.rpartition(":")[2])
        self._context = context
        self.process: subprocess.Popen | None = None
        self.pidfd = -1

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["etcd", *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """Kill it, and reap it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()
        self.process = None
        os.close(self.pidfd)

    def ask(self, path: str, **body: object) -> dict:
        """Ask it without any library of ours. OSError: it cannot, or does not want to."""
        data = json.dumps(body).encode()
        url = f"{self.url}/v3/{path}"
        with urllib.request.urlopen(url, data, timeout=2, context=self._context) as answer:
            return json.load(answer)

    def is_leader(self) -> bool:
        status = self.ask("maintenance/status")
        return status.get("leader") == status["header"]["member_id"]


class Cluster:
    """An etcd of `size` members. Use `close` at the end."""

    def __init__(self, directory: Path, size: int = 3, *, tls: Certificates | None = None):
        assert shutil.which("etcd"), "see `need`"
        self.directory, self.size, self.tls = directory, size, tls
        for attempt in range(5):
            self.members = self._make(attempt)
            for member in self.members:
                member.start()
            if self.wait_ready():
                return
            self.close()
        raise AssertionError(self.members[0].log.read_text())

    def _make(self, attempt: int) -> list[Member]:
        ports = free_ports(2 * self.size)
        scheme = "https" if self.tls else "http"
        peers = {f"m{n}": f"http://127.0.0.1:{ports[self.size + n]}" for n in range(self.size)}
        members = []
        for number, (name, peer) in enumerate(peers.items()):
            client = f"{scheme}://127.0.0.1:{ports[number]}"
            place = self.directory / f"{name}-{attempt}"
            arguments = [
                *("--name", name, "--data-dir", str(place), "--unsafe-no-fsync"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", ",".join(f"{n}={url}" for n, url in peers.items())),
                *("--heartbeat-interval", "50", "--election-timeout", "500"),
                *("--logger", "zap", "--log-level", "error"),
            ]
            if self.tls:
                arguments += [
                    *("--cert-file", self.tls.server[0], "--key-file", self.tls.server[1]),
                    *("--trusted-ca-file", self.tls.ca, "--client-cert-auth"),
                ]
            log = self.directory / f"{name}.log"
            context = self.tls.context if self.tls else None
            members.append(Member(name, client, arguments, log, context))
        return members

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def wait_ready(self) -> bool:
        """Return whether all members are up; False: one has ended, a port was taken."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if any(member.process.poll() is not None for member in self.members):
                return False
            if self.find_leader() is not None and self._has_all():
                return True
            select.select([], [], [], 0.02)
        return False

    def _has_all(self) -> bool:
        try:
            return all(member.ask("kv/range", key="AA==") for member in self.members)
        except OSError:
            return False

    def find_leader(self) -> Member | None:
        for member in self.members:
            try:
                if member.is_leader():
                    return member
            except OSError:
                pass
        return None

    def close(self) -> None:
        for member in self.members:
            member.kill()


class Certificates:
    """A certificate authority, a certificate of a server, one of a client; and a stranger's."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._now = int(time.time())
        ca_key, self._issuer, self.ca = self._make_ca("ca")
        self.server = self._make("server", ca_key)
        # etcd takes no common name over its gateway where there are users.
        self.client = self._make("client", ca_key, has_name=False)
        self.named = self._make("named", ca_key)
        _, _, self.other_ca = self._make_ca("other")
        self.context = ssl.create_default_context(cafile=self.ca)
        self.context.load_cert_chain(*self.client)

    def _build(self, name: str, key, issuer, sign_with, *, is_ca: bool):
        from datetime import UTC, datetime, timedelta
        from ipaddress import ip_address

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import NameOID

        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        now = datetime.fromtimestamp(self._now, UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(address, critical=False)
            .sign(sign_with, hashes.SHA256())
        )
        return subject, certificate

    def _write(self, name: str, key, certificate) -> tuple[str, str]:
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        paths = (self.directory / f"{name}.pem", self.directory / f"{name}.key")
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(paths[0]), str(paths[1])

    def _make_ca(self, name: str):
        key = self._make_key()
        subject, certificate = self._build(name, key, None, key, is_ca=True)
        return key, subject, self._write(name, key, certificate)[0]

    def _make(self, name: str, ca_key, *, has_name: bool = True) -> tuple[str, str]:
        key = self._make_key()
        subject = name if has_name else ""
        _, certificate = self._build(subject, key, self._issuer, ca_key, is_ca=False)
        return self._write(name, key, certificate)

    @staticmethod
    def _make_key():
        from cryptography.hazmat.primitives.asymmetric import ec

        return ec.generate_private_key(ec.SECP256R1())


class Proxy:
    """A way to a server that can be bad: `delay` seconds later, or never if `is_deaf`."""

    def __init__(self, port: int):
        self.target = port
        self.delay = 0.0
        self.is_deaf = False
        self._over = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._sockets: list[socket.socket] = [self._server]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
                outer = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self._sockets += [inner, outer]
            for pair in ((inner, outer), (outer, inner)):
                thread = threading.Thread(target=self._copy, args=pair)
                thread.start()
                self._threads.append(thread)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.delay:
                    self._over.wait(self.delay)
                if not self.is_deaf:
                    target.sendall(data)
        except OSError:
            pass
        finally:
            self._shut(target)

    @staticmethod
    def _shut(each: socket.socket) -> None:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._over.set()
        for each in self._sockets:
            self._shut(each)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


# Contenders, as tests see them.


class Contender:
    """A node of a legion."""

    def __init__(self, arena: Arena, servers: list[str], **options: object):
        self.lines: list[dict] = []
        self._seen = 0
        self._partial = b""
        orders = {
            "servers": servers,
            "valor": 1,
            "ttl": 3.0,
            "patience": 0.3,
            "node": "n",
            "journal": str(arena.journal),
            "legion": arena.legion,
            "lifeline": arena.lifeline,
            **options,
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "contend", json.dumps(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(arena.lifeline,),
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        os.set_blocking(self.process.stdout.fileno(), False)

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def say(self, text: str) -> None:
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()

    def read(self, timeout: float) -> bool:
        """Take what it has said; return False at its end."""
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, timeout))
        if not ready:
            return True
        data = os.read(self.process.stdout.fileno(), 65536)
        *lines, self._partial = (self._partial + data).split(b"\n")
        self.lines += map(json.loads, lines)
        return bool(data)

    def wait(self, kind: str, timeout: float = DEADLINE, **fields: object) -> dict:
        """Return its next message of that kind with these fields; those before are consumed."""
        end = time.monotonic() + timeout
        while True:
            while self._seen < len(self.lines):
                line = self.lines[self._seen]
                self._seen += 1
                if line["kind"] == kind and all(
                    value in line[key] if isinstance(value, str) else line[key] == value
                    for key, value in fields.items()
                ):
                    return line
            alive = self.read(end - time.monotonic())
            assert alive, f"ended, and no {kind} {fields} in {self.brief()}"
            assert time.monotonic() < end, f"no {kind} {fields} in {self.brief()}"

    def brief(self) -> str:
        """Return what it has said, for a message."""
        left_out = ("legion", "nodes", "votes", "quorum", "left_out")
        lines = [{k: v for k, v in line.items() if k not in left_out} for line in self.lines]
        return "\n".join(map(str, lines[-60:]))

    def drain(self) -> list[dict]:
        """Return all that it has said so far."""
        before = -1
        while len(self.lines) != before:
            before = len(self.lines)
            self.read(0.0)
        return self.lines

    def close(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        os.close(self.pidfd)


class Arena:
    """A legion, its nodes and the journal of its daemons. Use `close` at the end."""

    def __init__(self, directory: Path, servers: list[str]):
        self.journal = directory / "journal"
        self.legion = f"test/{os.getpid()} {directory.name}"
        self.servers = servers
        self.contenders: list[Contender] = []
        self.lifeline, self._end = os.pipe()

    def enter(self, **options: object) -> Contender:
        servers = options.pop("servers", self.servers)
        contender = Contender(self, servers, **options)
        self.contenders.append(contender)
        return contender

    @property
    def entries(self) -> list[dict]:
        if not self.journal.exists():
            return []
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def of(self, what: str) -> list[dict]:
        return [entry for entry in self.entries if entry["what"] == what]

    def wait(self, number: int, timeout: float = DEADLINE) -> dict:
        """Return what that start of a daemon has written, once it has."""
        end = time.monotonic() + timeout
        while len(found := self.of("up")) < number:
            assert time.monotonic() < end, (
                self.entries,
                "\n\n".join(contender.brief() for contender in self.contenders),
            )
            for contender in self.contenders:
                contender.read(0.0)
            select.select([], [], [], 0.01)
        return found[number - 1]

    def check(self) -> None:
        """Assert that there were never two daemons at once, and that tokens grew."""
        assert not self.of("clash"), self.entries
        tokens = [int(entry["token"]) for entry in self.of("up")]
        assert tokens == sorted(set(tokens)), tokens

    def close(self) -> None:
        os.close(self._end)
        os.close(self.lifeline)
        for contender in self.contenders:
            contender.close()
        # A daemon may outlive its contender; it does not outlive the lifeline.
        end = time.monotonic() + DEADLINE
        if self.journal.exists():
            lock = os.open(f"{self.journal}.lock", os.O_RDWR)
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < end, "a daemon does not end"
                    select.select([], [], [], 0.01)
            os.close(lock)


# What they run.


def now_boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def contend(orders: dict) -> None:
    """Be a node: the engine, and as much of a master as it takes."""
    from lowsuper.legion import words
    from lowsuper.legion.etcd import EtcdLegion
    from lowsuper.model import Etcd, Legion, Origin, Secret

    etcd = Etcd(
        tuple(orders["servers"]),
        int(orders["ttl"] * SECOND),
        orders.get("ca"),
        orders.get("certificate"),
        orders.get("key"),
        orders.get("user"),
        Secret(orders["password"]) if "password" in orders else None,
    )
    legion = Legion(
        orders["legion"],
        Origin("", 0, "", ""),
        orders["valor"],
        death_on_lord_error=int(orders.get("suspension", 0) * SECOND),
        scroll=orders.get("scroll", ""),
        etcd=etcd,
    )
    Master(orders, legion, words, EtcdLegion).run()


class Master:
    """What starts and ends the daemon of a contender."""

    def __init__(self, orders: dict, legion, words, engine) -> None:
        self.orders, self.words = orders, words
        self.patience = int(orders["patience"] * SECOND)
        self.legion = engine(legion, orders["node"], self.patience, self.take)
        self.poll = select.poll()
        self.daemon: subprocess.Popen | None = None
        self.pidfd = -1
        self.until = self.read = 0
        self.is_lord = False
        self.commands: list[str] = []

    def run(self) -> None:
        self.poll.register(0, select.POLLIN)
        self.poll.register(self.legion.fileno(), select.POLLIN)
        while not self.legion.is_over:
            self.legion.wake(now_boot())
            self.lapse()
            self.obey_all()
            times = [self.legion.next_wake()]
            if self.is_lord:
                times.append(self.until - self.patience)
            wait = max(0, min(times) - now_boot())
            fds = {fd for fd, _ in self.poll.poll(min(wait // 10**6 + 1, 60_000))}
            if self.legion.fileno() in fds:
                self.legion.take()
            if self.pidfd in fds:
                self.reap()
            if 0 in fds:
                self.hear_command()
        self.tell({"kind": "Over"})

    def tell(self, line: dict) -> None:
        os.write(1, (json.dumps(line) + "\n").encode())

    def take(self, message) -> None:
        """Hear the engine."""
        line = {"kind": type(message).__name__}
        for field in message.__match_args__:
            value = getattr(message, field)
            if field == "nodes":
                value = [dict(zip(n.__match_args__, n, strict=True)) for n in value]
            elif field == "node":
                value = value.name
            line[field] = value
        self.tell(line)
        if line["kind"] == "Lease":
            self.renew(message)
        elif line["kind"] == "Resign":
            self.lose()

    def renew(self, lease) -> None:
        self.read = self.until = lease.until
        self.is_lord = now_boot() < self.until - self.patience
        if self.is_lord and self.daemon is None:
            orders = self.orders
            words = (orders["journal"], orders["node"], lease.token, str(orders["lifeline"]))
            self.daemon = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, "hold", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(orders["lifeline"],),
                # What is sent to the group of a contender is not for it.
                start_new_session=True,
            )
            self.pidfd = os.pidfd_open(self.daemon.pid)
            self.poll.register(self.pidfd, select.POLLIN)
        self.order(f"until {self.until}")
        self.say_busy()

    def lapse(self) -> None:
        if self.is_lord and now_boot() >= self.until - self.patience:
            self.lose()

    def lose(self) -> None:
        self.is_lord = False
        self.order("stop")
        self.say_busy()

    def order(self, text: str) -> None:
        if self.daemon is not None:
            # If it has ended its pidfd tells.
            with contextlib.suppress(BrokenPipeError):
                os.write(self.daemon.stdin.fileno(), f"{text}\n".encode())

    def reap(self) -> None:
        self.poll.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        self.daemon.stdin.close()
        self.daemon.wait()
        self.daemon = None
        self.say_busy()

    def say_busy(self) -> None:
        # Not at once: the engine is in the midst of a step.
        self.commands.append("busy")

    def hear_command(self) -> None:
        data = os.read(0, 4096)
        if not data:
            os._exit(1)
        self.commands += data.decode().split()

    def obey_all(self) -> None:
        while self.commands:
            self.obey(self.commands.pop(0))

    def obey(self, command: str) -> None:
        words, name = self.words, self.orders["legion"]
        if command == "busy":
            busy = self.is_lord or self.daemon is not None
            self.legion.hear(words.Busy(name, busy, self.read))
        elif command == "quit":
            self.legion.hear(words.Quit())
        elif command == "fail":
            self.legion.hear(words.HookFailed(name))


def hold(journal: str, node: str, token: str, lifeline: str) -> None:
    """Be a daemon: be alone, until told otherwise or until the deadline."""

    def note(what: str) -> None:
        fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        entry = {"what": what, "node": node, "token": token, "at": now_boot(), "pid": os.getpid()}
        os.write(fd, (json.dumps(entry) + "\n").encode())
        os.close(fd)

    lock = os.open(f"{journal}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(int(lifeline), select.POLLIN)
    until, is_up, orders = now_boot() + SECOND // 4, False, b""
    while (now := now_boot()) < until:
        ready = {fd for fd, _ in poll.poll((until - now) // 10**6 + 1)}
        if int(lifeline) in ready:
            break
        if 0 not in ready:
            continue
        data = os.read(0, 4096)
        if not data:
            poll.unregister(0)  # its contender is dead, and it lives on until its deadline
        *lines, orders = (orders + data).split(b"\n")
        if b"stop" in lines:
            break
        until = max([until, *(int(line.split()[1]) for line in lines)]) if lines else until
        if lines and not is_up and now_boot() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note("clash")
                os._exit(9)
            note("up")
            is_up = True
    if is_up:
        note("down")
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "contend":
        contend(json.loads(sys.argv[2]))
    else:
        hold(*sys.argv[2:])
