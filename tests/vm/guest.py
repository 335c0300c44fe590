"""Small virtual machines for tests: a Debian kernel, Python, lowsuper, and what a test adds.

The root file system is an initramfs that is put together here from the interpreter and the
packages that the tests themselves run with, so nothing is downloaded. The kernel is that of a
Debian package which vagrant/provision.sh has unpacked below the virtual environment, never
installed. QEMU emulates (TCG), since a /dev/kvm that can be opened may still not work;
LOWSUPER_VM_ACCEL=kvm is for who knows better. A guest has no network.

`boot` in conftest.py runs a script in a guest. The script tells results as JSON lines over a
virtio-serial port (`inside.py`), and they alone count: QEMU's exit status is 0 whatever happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import py_compile
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.util import cache_from_source, find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent

SCALE = 10.0
"""How much longer things may take in an emulated guest; scripts find it in `inside.SCALE`."""

SITE = "/opt/lowsuper"
"""Where lowsuper and the modules that it needs are in the guest."""

QEMU = "qemu-system-x86_64"

Content = str | bytes | Path
"""A file of the guest: a text, bytes, or a file or whole directory of this machine."""


class MissingError(Exception):
    """What guests need cannot be had here; the text says what, and the way out."""


# The kernel.


def find_kernel() -> tuple[Path, Path]:
    """Return the kernel's image and the directory of its modules.

    Raises:
        MissingError: there is none, or no QEMU to run it with.
    """
    if os.uname().machine != "x86_64":
        raise MissingError("a machine of the guests' kind, x86_64")
    if shutil.which(QEMU) is None:
        raise MissingError(f"{QEMU}: sh vagrant/provision.sh setup installs it")
    place = Path(os.environ.get("LOWSUPER_VM_KERNEL", f"{sys.prefix}/vm"))
    images = sorted(place.glob("boot/vmlinuz-*"))
    if not images:
        raise MissingError(
            f"a kernel in {place}/boot: sh vagrant/provision.sh setup puts one there"
        )
    version = images[-1].name.removeprefix("vmlinuz-")
    for modules in (place / "lib/modules" / version, place / "usr/lib/modules" / version):
        if modules.is_dir():
            return images[-1], modules
    raise MissingError(f"the modules of {images[-1]}: unpack the whole package")


def unpack_kernel(image: Path) -> bytes:
    """Return the ELF kernel in a bzImage, which boots a second sooner, or what there is.

    The payload's place is in the setup header: see Linux's Documentation/arch/x86/boot.rst.
    """
    data = image.read_bytes()
    setup = (data[0x1F1] or 4) * 512 + 512
    offset, size = struct.unpack_from("<II", data, 0x248)
    payload = data[setup + offset : setup + offset + size]
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
        # The last four bytes are the unpacked size.
        command = ("zstd", "--decompress", "--quiet", "--stdout")
        return subprocess.run(command, input=payload[:-4], capture_output=True, check=True).stdout
    return data


def find_modules(modules: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of these modules, each after those that it needs.

    One that is built into the kernel is left out.

    Raises:
        MissingError: the kernel has no such module.
    """
    files = {name_of(path): path for path in modules.rglob("*.ko*")}
    built_in = set(map(name_of, map(Path, (modules / "modules.builtin").read_text().split())))
    found: list[Path] = []

    def add(name: str) -> None:
        if name in built_in or files.get(name) in found:
            return
        if name not in files:
            raise MissingError(f"the module {name} of {modules.name}")
        # The section .modinfo has "depends=a,b", NUL at its end.
        match = re.search(rb"\0depends=([^\0]*)\0", read_module(files[name]))
        for other in filter(None, (match[1] if match else b"").decode().split(",")):
            add(other.replace("-", "_"))
        found.append(files[name])

    for name in names:
        add(name.replace("-", "_"))
    return found


def name_of(module: Path) -> str:
    return module.name.partition(".")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """Return a module as the kernel takes it."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


# The root file system.

_WORDS_LEFT_OUT = """
test tests idlelib tkinter lib2to3 pydoc_data ensurepip turtledemo turtle.py distutils sqlite3 dbm
curses wsgiref xmlrpc venv site-packages __pycache__ pydoc.py doctest.py LICENSE.txt Makefile
"""
_LEFT_OUT = frozenset(_WORDS_LEFT_OUT.split())
_LEFT_OUT_BEGINNINGS = (
    "config-",
    "_test",
    "xx",
    "_tkinter",
    "_sqlite3",
    "_codecs_",
    "_curses",
    "nis.",
    "audioop.",
    "readline.",
    "_xx",
    "_dbm",
    "_gdbm",
)


class Archive:
    """A cpio archive of the kind that the kernel unpacks: see its buffer-format document."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()
        self._size = 0

    def _put(self, data: bytes) -> None:
        padding = -(self._size + len(data)) % 4
        self._parts += [data, bytes(padding)]
        self._size += len(data) + padding

    def _entry(self, name: str, mode: int, data: bytes = b"", *, mtime: int = 0) -> None:
        self._names.add(name)
        coded = os.fsencode(name)
        number = 0 if name == "TRAILER!!!" else len(self._names)
        fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(coded) + 1, 0)
        self._put(b"070701" + b"".join(b"%08X" % field for field in fields) + coded + b"\0")
        self._put(data)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Make a directory and those above it; names have no / in front."""
        if name and name not in self._names:
            self.directory(name.rpartition("/")[0])
            self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644, *, mtime: int = 0) -> None:
        """Make a file."""
        if name not in self._names:
            self.directory(name.rpartition("/")[0])
            self._entry(name, stat.S_IFREG | mode, data, mtime=mtime)

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link."""
        if name not in self._names:
            self.directory(name.rpartition("/")[0])
            self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def copy(self, source: Path, name: str) -> None:
        """Copy a file or a whole directory of this machine."""
        if source.is_dir():
            self.directory(name)
            for entry in sorted(source.iterdir()):
                if entry.name != "__pycache__":
                    self.copy(entry, f"{name}/{entry.name}")
        else:
            status = source.stat()
            self.file(name, source.read_bytes(), status.st_mode & 0o777, mtime=int(status.st_mtime))

    def python(self, source: Path, name: str, work: Path) -> None:
        """Copy a Python file, and what it compiles to: compiling is slow in a guest."""
        status = source.stat()
        self.file(name, source.read_bytes(), 0o644, mtime=int(status.st_mtime))
        compiled = Path(cache_from_source(str(source)))
        head = struct.pack("<II", int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        if not compiled.is_file() or compiled.read_bytes()[4:16] != bytes(4) + head:
            compiled = work / "compiled.pyc"
            py_compile.compile(str(source), str(compiled), dfile=f"/{name}", doraise=True)
        self.file(cache_from_source(name), compiled.read_bytes())

    def write(self, path: Path) -> None:
        """Write it all."""
        self._entry("TRAILER!!!", 0)
        # What is appended must begin at a multiple of 4.
        path.write_bytes(b"".join(self._parts))


def list_base() -> dict[str, Path]:
    """Return the files that every guest has: their names in it, and where they are here."""
    found: dict[str, Path] = {}
    interpreter = Path(os.path.realpath(sys.executable))
    library = Path(os.path.dirname(os.path.realpath(os.__file__)))
    found[str(interpreter)[1:]] = interpreter
    for path in list_python(library):
        found[str(path)[1:]] = path
    package = Path(find_spec("lowsuper").submodule_search_locations[0])
    for path in list_python(package):
        found[f"{SITE[1:]}/lowsuper/{path.relative_to(package)}"] = path
    for name in ("_cffi_backend", "prctl", "_prctl"):
        path = Path(find_spec(name).origin)
        found[f"{SITE[1:]}/{path.name}"] = path
    pyroute2 = Path(find_spec("pyroute2").submodule_search_locations[0])
    for path in list_python(pyroute2):
        found[f"{SITE[1:]}/pyroute2/{path.relative_to(pyroute2)}"] = path
    found[f"{SITE[1:]}/inside.py"] = HERE / "inside.py"
    found["init"] = HERE / "init.py"
    busybox = shutil.which("busybox")
    if busybox is None:
        raise MissingError("busybox-static: sh vagrant/provision.sh setup installs it")
    found["bin/busybox"] = Path(busybox)
    binaries = [path for path in found.values() if ".so" in path.name or path == interpreter]
    for path in list_libraries(binaries):
        found.setdefault(str(path)[1:], path)
    return found


def list_python(directory: Path) -> Iterable[Path]:
    """Yield the files of a package or library that guests get."""
    for entry in sorted(directory.iterdir()):
        if entry.name in _LEFT_OUT or entry.name.startswith(_LEFT_OUT_BEGINNINGS):
            continue
        if entry.is_dir():
            yield from list_python(entry)
        elif entry.suffix in (".py", ".so", ".ini", ".typed", "") or ".so." in entry.name:
            yield entry


def list_libraries(binaries: list[Path]) -> set[Path]:
    """Return the shared libraries that binaries need; see ldd(1)."""
    done = subprocess.run(["ldd", *binaries], check=False, capture_output=True, text=True)
    found = re.findall(r"(?:=> |^\t)(/\S+) \(0x", done.stdout, re.MULTILINE)
    return {Path(path) for path in found}


def build_base(cache: Path) -> Path:
    """Return the archive with what every guest has; made once for all that share `cache`."""
    files = list_base()
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        status = path.stat()
        digest.update(f"{name} {path} {status.st_size} {status.st_mtime_ns}\n".encode())
    made = cache / f"base-{digest.hexdigest()[:24]}.cpio"
    with locked(cache):
        if not made.exists():
            partial = made.with_suffix(".part")
            write_base(files, partial, cache)
            partial.rename(made)
    return made


@contextlib.contextmanager
def locked(directory: Path):
    """Hold the lock of a directory that several test processes share."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_base(files: Mapping[str, Path], target: Path, work: Path) -> None:
    archive = Archive()
    for name in ("proc", "sys", "dev", "run", "root", "var/log", "var/tmp"):
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    merged = not Path("/lib").is_symlink()
    for name in () if merged else ("bin", "sbin", "lib", "lib64"):
        archive.directory(f"usr/{name}")
        archive.link(name, f"usr/{name}")
    for name, path in files.items():
        place = name
        if not merged and name.split("/")[0] in ("bin", "sbin", "lib", "lib64"):
            place = f"usr/{name}"
        if path.suffix == ".py" and name != "init":
            archive.python(path, place, work)
        else:
            data, mode = path.read_bytes(), path.stat().st_mode & 0o777
            archive.file(place, data, 0o755 if name == "init" else mode)
    archive.link("usr/bin/python3", os.path.realpath(sys.executable))
    for word in ("sh", "mount", "umount", "insmod", "sleep", "ls", "cat", "ps", "reboot", "dmesg"):
        archive.link(f"usr/bin/{word}", "/bin/busybox")
    archive.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    program = f"""#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {SITE!r})
from lowsuper.cli import main
sys.exit(main())
"""
    archive.file("usr/bin/lowsuper", program.encode(), 0o755)
    archive.write(target)


# The machine.


class Images:
    """Kernel and root file system, prepared once for all guests of a test run."""

    def __init__(self, cache: Path) -> None:
        """Make what is not there yet.

        Args:
            cache: a directory for it that test processes may share.

        Raises:
            MissingError: guests cannot be run here.
        """
        image, self._modules = find_kernel()
        cache.mkdir(exist_ok=True)
        self.kernel = cache / "kernel"
        with locked(cache):
            if not self.kernel.exists():
                partial = cache / "kernel.part"
                partial.write_bytes(unpack_kernel(image))
                partial.rename(self.kernel)
        self.base = build_base(cache)

    def write(self, target: Path, files: Mapping[str, Content], modules: Iterable[str]) -> None:
        """Write an initramfs: the base, these files, and these modules, which init loads."""
        archive = Archive()
        load = []
        for path in find_modules(self._modules, modules):
            name = f"usr/lib/modules/{path.name.removesuffix('.xz')}"
            archive.file(name, read_module(path))
            load.append(f"/{name}\n")
        archive.file("usr/lib/modules/load", "".join(load).encode())
        for name, content in files.items():
            place = name.strip("/")
            if isinstance(content, Path):
                archive.copy(content, place)
            else:
                data = content.encode() if isinstance(content, str) else content
                archive.file(place, data, 0o755 if data.startswith(b"#!") else 0o644)
        archive.write(target)
        with self.base.open("rb") as base, target.open("rb+") as out:
            added = out.read()
            out.seek(0)
            shutil.copyfileobj(base, out, 1 << 20)
            out.write(added)


class Guest:
    """A running virtual machine. Its script tells results; `wait` and `finish` collect them."""

    def __init__(
        self,
        images: Images,
        directory: Path,
        script: str,
        *arguments: str,
        files: Mapping[str, Content] | None = None,
        modules: Iterable[str] = (),
        append: str = "",
        init: str = "/init",
        memory: int = 320,
        cpus: int = 1,
        options: Iterable[str] = (),
        pass_fds: tuple[int, ...] = (),
        deadline: float = 120.0,
    ) -> None:
        """Boot it.

        Args:
            images: kernel and base.
            directory: for its files; the console's output is `console` in it.
            script: name of a file in scenarios/, or the text of a Python program, which runs in
                the guest as a child of init, with the arguments.
            *arguments: of the script; also of another `init`, as the kernel hands them over.
            files: more files of the guest, by their names in it.
            modules: of the kernel, that init loads before the script.
            append: more words for the kernel's command line.
            init: what is pid 1; another one than ours has to do everything itself.
            memory: in megabytes; the unpacked root takes about 90 of them.
            cpus: how many it has.
            options: more arguments for QEMU.
            pass_fds: descriptors that these options name.
            deadline: seconds after which it is killed, whatever it does.
        """
        self.directory = directory
        self.results: list[dict] = []
        self._partial = b""
        self._ends = time.monotonic() + deadline
        directory.mkdir(exist_ok=True)
        self.console = directory / "console"
        source = HERE / "scenarios" / script if "\n" not in script else None
        text = source.read_text() if source is not None else script
        initrd = directory / "initrd"
        added = {"/scenario.py": text, "/scenario.json": json.dumps(arguments), **(files or {})}
        images.write(initrd, added, modules)
        command_line = f"console=ttyS0 quiet panic=-1 rdinit={init} {append}"
        if init != "/init" and arguments:
            command_line += f" -- {' '.join(arguments)}"
        self._channel, theirs = socket.socketpair()
        self._monitor, their_monitor = socket.socketpair()
        fds = (theirs.fileno(), their_monitor.fileno(), *pass_fds)
        accel = os.environ.get("LOWSUPER_VM_ACCEL", "tcg")
        command = [
            *("setpriv", "--pdeathsig", "KILL", QEMU, "-nodefaults", "-display", "none"),
            *("-machine", f"q35,accel={accel}", "-cpu", "max", "-smp", str(cpus), "-no-reboot"),
            *("-m", str(memory), "-kernel", str(images.kernel), "-initrd", str(initrd)),
            *("-append", command_line, "-serial", f"file:{self.console}"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=results,fd={fds[0]}"),
            *("-device", "virtserialport,chardev=results,name=lowsuper.results"),
            *("-chardev", f"socket,id=monitor,fd={fds[1]}", "-mon", "monitor,mode=control"),
            *options,
        ]
        self._log = directory / "qemu"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds
            )
        theirs.close()
        their_monitor.close()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._channel.setblocking(False)

    # What it says.

    @property
    def text(self) -> str:
        """Return what its console and QEMU have said, for messages."""
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        return f"{self._log.read_text(errors='replace')}{console[-6000:]}"

    def _read(self, ends: float) -> bool:
        """Take what comes until then; False once the machine has ended and all is read."""
        ends = min(ends, self._ends)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        ready = poll.poll(max(0.0, ends - time.monotonic()) * 1000)
        if not ready:
            raise AssertionError(f"the guest is too slow; {self.results}\n{self.text}")
        try:
            data = self._channel.recv(65536)
        except BlockingIOError:
            data = b""
        except ConnectionResetError:
            return False
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        self.results += map(json.loads, lines)
        return True

    def wait(self, key: str, timeout: float = 60.0) -> dict:
        """Return the first result with this key, once it was told."""
        ends = time.monotonic() + timeout
        seen = 0
        while True:
            for result in self.results[seen:]:
                if key in result:
                    return result
            seen = len(self.results)
            if not self._read(ends):
                raise AssertionError(f"the guest has ended without {key}:\n{self.text}")

    def finish(self, timeout: float = 120.0) -> dict:
        """Return all results in one dictionary once the machine is off.

        Raises:
            AssertionError: its script failed, or the machine did not come to its end.
        """
        ends = time.monotonic() + timeout
        while self._read(ends):
            pass
        self._process.wait(max(0.1, ends - time.monotonic()))
        found = {key: value for result in self.results for key, value in result.items()}
        assert found.get("exit") == 0, f"the script ended with {found.get('exit')}:\n{self.text}"
        return found

    # What is done to it.

    def send(self, **values: object) -> None:
        """Send a line to the script, which reads it by `inside.hear`."""
        self._channel.sendall(json.dumps(values).encode() + b"\n")

    def command(self, name: str, **arguments: object) -> object:
        """Give QEMU a command and return its answer: see the QMP reference."""
        self._monitor.settimeout(10)
        if not hasattr(self, "_qmp"):
            self._qmp = self._monitor.makefile("rwb")
            self._qmp.readline()
            self._exchange("qmp_capabilities", {})
        return self._exchange(name, arguments)

    def _exchange(self, name: str, arguments: dict) -> object:
        self._qmp.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        self._qmp.flush()
        while True:
            line = self._qmp.readline()
            assert line, f"QEMU has ended:\n{self.text}"
            answer = json.loads(line)
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def wait_off(self, timeout: float = 60.0) -> None:
        """Wait until the machine is off, or would start again."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        assert poll.poll(timeout * 1000), f"it is not off:\n{self.text}"
        self._process.wait()

    def close(self) -> None:
        """Cut its power, if it is on."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        self._channel.close()
        if hasattr(self, "_qmp"):
            self._qmp.close()
        self._monitor.close()
        (self.directory / "initrd").unlink(missing_ok=True)
