"""Fixtures of the tests that spawn: helpers, spawners, and a cgroup of the test's own.

A plugin, named in tests/conftest.py; it imports the extension only when a test asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

HELPERS = {
    "installed": (),
    "glibc": ("-Os", "-static"),
    "sanitized": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}


@pytest.fixture(scope="session")
def open_directory():
    """A directory that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="spawn-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def needs_compiler() -> None:
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("needs: a C compiler")


@pytest.fixture(scope="session")
def built_helpers() -> dict[str, str]:
    from lowsuper.kernel import spawn

    return {"installed": spawn.HELPER}


@pytest.fixture(params=HELPERS)
def helper(
    request: pytest.FixtureRequest,
    built_helpers: dict[str, str],
    open_directory: Path,
) -> str:
    """The static program as it is installed, with glibc, and with the sanitizers."""
    from spawning import build_helper

    kind = request.param
    if kind not in built_helpers:
        request.getfixturevalue("needs_compiler")
        directory = open_directory / kind
        directory.mkdir(mode=0o755)
        built_helpers[kind] = build_helper(directory, *HELPERS[kind])
    return built_helpers[kind]


def reap_orphans() -> None:
    """Reap what became our child because its parent ended: this process may be a subreaper."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


@pytest.fixture
def spawner(helper: str):
    """A spawner of this process, with each of the helpers in turn."""
    from lowsuper.kernel import spawn

    made = spawn.Spawner(helper=helper)
    yield made
    made.close()
    reap_orphans()


@pytest.fixture
def plain_spawner():
    """A spawner of this process."""
    from lowsuper.kernel import spawn

    made = spawn.Spawner()
    yield made
    made.close()
    reap_orphans()


@pytest.fixture(scope="session")
def compiled(open_directory: Path, needs_compiler: None):
    """Return a function that makes a static program, once, and returns its path."""
    paths: dict[str, str] = {}

    def compile_program(name: str, source: str) -> str:
        if name not in paths:
            file, path = open_directory / f"{name}.c", open_directory / name
            file.write_text(source)
            compiler = shutil.which("cc") or "gcc"
            subprocess.run([compiler, "-static", "-o", path, file], check=True, timeout=300)
            paths[name] = str(path)
        return paths[name]

    return compile_program


@pytest.fixture(scope="session")
def still(compiled) -> str:
    """A program that does nothing, opens nothing, and does not end."""
    return compiled("still", "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")


@pytest.fixture(scope="session")
def cgroup_root() -> Path:
    """Where cgroup v2 is mounted."""
    if os.geteuid() != 0:
        pytest.skip("needs: root")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK):
            own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]
            return Path(fields[1], own)
    pytest.skip("needs: cgroup v2")


@pytest.fixture
def cgroup(cgroup_root: Path, request: pytest.FixtureRequest):
    """A cgroup of the test's own, removed afterwards with all below it."""
    path = cgroup_root / f"spawn-test-{os.getpid()}-{abs(hash(request.node.nodeid)):x}"
    path.mkdir()
    yield path
    if not path.exists():
        return
    Path(path, "cgroup.kill").write_text("1")
    for below in sorted((entry for entry in path.rglob("*") if entry.is_dir()), reverse=True):
        wait_until_empty(below)
        remove_cgroup(below)
    remove_cgroup(path)


def remove_cgroup(path: Path) -> None:
    """Remove an empty cgroup, which may be busy for a moment after its last process has ended."""
    end = time.monotonic() + 20
    while True:
        try:
            path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            select.select([], [], [], 0.01)
        else:
            return


def wait_until_empty(path: Path) -> None:
    """Wait for the end of a cgroup's last process, for which the kernel has an event."""
    with Path(path, "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in os.pread(events.fileno(), 256, 0).decode():
            assert poll.poll(20_000), f"{path} does not become empty"


@pytest.fixture
def root() -> None:
    """Skip a test that needs to change uid, or to make namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs: root")
