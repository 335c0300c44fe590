"""Limits of cgroups: set, kept to, said when they kill, refused when they cannot be had.

The guest begins in the root of the hierarchy, which may have both processes and controllers for
its children; below it masters are started in cgroups of their own.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import inside
from inside import Master, cgroup_of, is_alive, wait_until

ROOT = Path("/sys/fs/cgroup")
HOG = "/usr/bin/python3 -IS /srv/hog.py"
BOMB = "/usr/bin/python3 -IS /srv/bomb.py"
OUT_OF = r"after .*: out of memory \(memory\.max 24M\)"


def made(name, *controllers):
    """Return a new cgroup; the ones above it pass these controllers on to it."""
    path = ROOT / name
    path.mkdir(parents=True)
    for above in reversed(path.relative_to(ROOT).parents):
        for controller in controllers:
            (ROOT / above / "cgroup.subtree_control").write_text(f"+{controller}")
    return path


def within(path):
    """Return what starts a program in a cgroup."""
    return ("/bin/busybox", "sh", "-c", f'echo 0 > {path}/cgroup.procs && exec "$@"', "sh")


def read(path, *files):
    return [(path / file).read_text().strip() for file in files]


def trace(path):
    """Return what masters have left in a cgroup."""
    below = [entry.name for entry in path.iterdir() if entry.is_dir()]
    return [below, *read(path, "cgroup.subtree_control", "cgroup.procs")]


def grow(fifo):
    wait_until(lambda: os.path.exists(fifo), fifo)
    Path(fifo).write_text("grow")


def in_the_root():
    """A hog and a fork bomb harm nobody but themselves."""
    master = Master(
        f"[daemon:calm]\ncommand = sleep 3600\n"
        f"[daemon:hog]\ncommand = {HOG}\ncgroup_memory_max = 24M\n"
        f"[daemon:bomb]\ncommand = {BOMB}\ncgroup_pids_max = 12\n"
        "[daemon:limited]\ncommand = sleep 3600\ncgroup_cpu_max = 50%%\ncgroup_cpu_weight = 20\n"
        "cgroup_memory_high = 8M\ncgroup_cpuset_cpus = 0\n"
    )
    calm = master.pid_of("calm")
    master.wait_line(r"hog: pid \d+ was killed by SIGKILL \(9\) " + OUT_OF)
    master.wait_said(r"bomb stopped at 11: Resource temporarily unavailable")
    limited = master.pid_of("limited")
    leaf = cgroup_of(limited)
    inside.tell(
        calm=is_alive(calm) and master.pid_of("calm") == calm,
        files=read(leaf, "cpu.max", "cpu.weight", "memory.high", "cpuset.cpus", "memory.max"),
        own=str(cgroup_of(master.pid)),
        code=master.stop(),
        left=trace(ROOT)[0],
    )


def in_a_cgroup():
    """A master that is not in the root moves into a leaf, and goes back at the end."""
    box = made("box", "memory", "pids")
    text = (
        "[daemon:plain]\ncommand = sleep 3600\n"
        f"[daemon:web]\ncommand = {HOG} /run/web\ncgroup_memory_max = 24M\n"
        "[daemon:inner]\ncommand = sleep 3600\nns_pid\ncgroup_pids_max = 9\n"
        f"[daemon:inner-hog]\ncommand = {HOG} /run/inner\nns_pid\ncgroup_memory_max = 24M\n"
    )
    master = Master(text, prefix=within(box), name="boxed")
    web = master.pid_of("web")
    inner = master.pid_of("inner")
    leaf = cgroup_of(master.pid)
    master.wait_line("ready: ")
    inside.tell(
        boxed=str(leaf.relative_to(box)),
        guard=[name_of(pid) for pid in map(int, read(leaf, "cgroup.procs")[0].split())],
        inner=[cgroup_of(inner).name, *read(cgroup_of(inner), "pids.max")],
    )
    grow("/run/inner")
    master.wait_line(r"inner-hog: pid \d+ was killed by SIGKILL \(9\) " + OUT_OF)
    # A reload brings other limits to the next instance.
    old = cgroup_of(web)
    master.write(text.replace("24M", "48M").replace("pids_max = 9", "pids_max = 8"))
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded in")
    web = master.pid_of("web")
    inside.tell(
        reloaded=[cgroup_of(web) != old, *read(cgroup_of(web), "memory.max")], gone=not old.exists()
    )
    inside.tell(box_code=master.stop(), box_left=trace(box))

    # Killed, its guard does the same, so that the next one can be started there.
    master = Master(text, prefix=within(box), name="boxed")
    master.wait_line("ready: ")
    master.kill()
    wait_until(lambda: trace(box) == [[], "", ""], f"an empty {box}: {trace(box)}")
    master = Master(text, prefix=within(box), name="boxed")
    master.wait_line("ready: ")
    inside.tell(box_again=master.stop())


def name_of(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()


def refused():
    """What cannot be set is an error of the start, with the way out."""
    text = (
        "[daemon:plain]\ncommand = sleep 3600\n"
        "[daemon:web]\ncommand = sleep 3600\ncgroup_memory_max = 24M\n"
    )
    crowd = made("crowd", "memory")
    other = subprocess.Popen([*within(crowd), "sleep", "3600"])
    wait_until(lambda: read(crowd, "cgroup.procs")[0], "somebody in the cgroup")
    master = Master(text, prefix=within(crowd), name="crowd")
    master.wait_started("plain")
    line = master.wait_line("web: cgroup .*")[0]
    inside.tell(crowd=line, crowd_own=str(cgroup_of(master.pid)), intruder=other.pid)
    other.kill()
    other.wait()
    master.wait_started("web")
    inside.tell(crowd_code=master.stop(), crowd_left=trace(crowd))

    made("above", "memory")
    below = made("above/below")
    master = Master(text, prefix=within(below), name="below")
    inside.tell(below=master.wait_line("web: cgroup .*")[0], below_code=master.stop())

    text = "[daemon:web]\ncommand = sleep 3600\ncgroup_cpuset_cpus = 77\n"
    master = Master(text, name="value")
    inside.tell(value=master.wait_line("web: cgroup .*")[0], value_code=master.stop())

    text = "[daemon:web]\ncommand = sleep 3600\ncgroup_io_max = 1:2:3 nonsense=1\n"
    master = Master(text, name="value")
    inside.tell(nonsense=master.wait_line("web: cgroup .*")[0], nonsense_code=master.stop())


def smart():
    """A smart daemon keeps its limits when its master changes, and its death is told the same."""
    box = made("smart", "memory", "pids")
    text = (
        "[uwsgi]\nstate-dir = /run/smart\n"
        f"[daemon:db]\ncommand = {HOG} /run/db\npidfile = /run/db.pid\ndaemonize\n"
        "cgroup_memory_max = 24M\n"
        "[daemon:in]\ncommand = sleep 3600\npidfile = /run/in.pid\ndaemonize\nns_pid\n"
        "cgroup_pids_max = 9\n"
    )
    master = Master(text, prefix=within(box), name="smart")
    db, inner = master.pid_of("db"), master.pid_of("in")
    leaf, inner_leaf = cgroup_of(db), cgroup_of(inner)
    first = master.stop()
    kept = read(leaf, "memory.max") + read(inner_leaf, "pids.max")
    # The directory above has controllers for its children: the next one is started elsewhere.
    master = Master(text.replace("24M", "48M"), name="smart")
    lines = [master.wait_line(r"(db|in): found running .*")[0] for _ in "12"]
    inside.tell(
        smart_code=first,
        kept=kept,
        found=sorted(re.sub(r"(\w+):.* kill domain (\w+):.*", r"\1 \2", line) for line in lines),
        still=read(leaf, "memory.max") + read(inner_leaf, "pids.max"),
        same=[cgroup_of(db) == leaf, cgroup_of(inner) == inner_leaf],
    )
    grow("/run/db")
    # How it ended only its parent knows, which is not this master.
    master.wait_line(r"db: pid \d+ (ended|was killed by SIGKILL \(9\)) " + OUT_OF)
    db = master.wait_started("db")
    inside.tell(next=read(cgroup_of(db), "memory.max"))
    master.stop()
    for pid in (db, inner):
        os.kill(pid, signal.SIGKILL)


def option():
    """`cgroup` puts the master into a cgroup, which two may share."""
    lines = (
        "cgroup = /sys/fs/cgroup/place\ncgroup-opt = memory.max=200M\ncgroup-opt = pids.max:64\n"
    )
    text = f"{lines}[daemon:web]\ncommand = sleep 3600\ncgroup_memory_max = 24M\n"
    plain = Master(f"{lines}attach-daemon = sleep 3600\n", name="plain")
    plain.wait_started("sleep")
    place = ROOT / "place"
    inside.tell(
        place=read(place, "memory.max", "pids.max"),
        plain=str(cgroup_of(plain.pid)),
        plain_code=plain.stop(),
    )
    inside.tell(place_left=place.exists())
    first = Master(text, name="first")
    web = first.wait_started("web")
    second = Master(text, name="second")
    second.wait_started("web")
    names = [re.sub("-[0-9a-f]{8}", "", str(cgroup_of(pid).relative_to(place)))
             for pid in (first.pid, web, second.pid)]  # fmt: skip
    first.write(text.replace("200M", "201M"))
    first.signal(signal.SIGHUP)
    first.wait_line("reloaded in")
    changed = read(place, "memory.max")
    first.write(text.replace("/place", "/elsewhere"))
    first.signal(signal.SIGHUP)
    refusal = first.wait_line("no reload moves.*")[0]
    codes = [first.stop(), second.stop()]
    inside.tell(
        names=names, changed=changed, refusal=refusal, codes=codes, place_gone=not place.exists()
    )

    master = Master("cgroup = /tmp/x\nattach-daemon = sleep 9\n", name="wrong")
    inside.tell(wrong=master.wait_line("cgroup /tmp/x.*")[0], wrong_code=master.wait())
    master = Master("cgroup = /sys/fs/cgroup/a/b/c\nattach-daemon = sleep 9\n", name="wrong")
    inside.tell(deep=master.wait_line("mkdir .*")[0], deep_code=master.wait())


def dropped():
    """A master that has become a user sets limits all the same."""
    box = made("user", "memory")
    text = (
        "[uwsgi]\nuid = nobody\ngid = nogroup\n"
        f"[daemon:web]\ncommand = {HOG}\ncgroup_memory_max = 24M\n"
    )
    master = Master(text, prefix=within(box), name="user")
    master.wait_line(r"web: pid \d+ was killed by SIGKILL \(9\) " + OUT_OF)
    code = master.stop()
    wait_until(lambda: trace(box) == [[], "", ""], f"an empty {box}: {trace(box)}")
    inside.tell(dropped_code=code)


def systemd():
    """What systemd has not delegated is left alone, and what it has is used."""
    Path("/run/systemd/system").mkdir(parents=True)
    text = "[daemon:web]\ncommand = sleep 3600\ncgroup_memory_max = 24M\n"
    unit = made("unit.service", "memory")
    master = Master(text, prefix=within(unit), name="unit")
    inside.tell(unit=master.wait_line("web: cgroup .*")[0], unit_own=str(cgroup_of(master.pid)))
    master.stop()

    os.setxattr(unit, "user.delegate", b"1")
    master = Master(text, prefix=within(unit), name="unit")
    web = master.wait_started("web")
    inside.tell(delegated=read(cgroup_of(web), "memory.max"), delegated_code=master.stop())

    subgroup = unit / "main"
    subgroup.mkdir()
    master = Master(text, prefix=within(subgroup), name="unit")
    web = master.wait_started("web")
    inside.tell(
        subgroup=[str(cgroup_of(master.pid).relative_to(unit)), cgroup_of(web).parents[2].name],
        subgroup_code=master.stop(),
        subgroup_left=trace(unit)[0],
    )


def jail():
    """A master in another root is in the cgroup that was entered outside."""
    root = Path("/srv/jail")
    (root / "bin").mkdir(parents=True)
    for name in ("dev", "proc"):
        (root / name).mkdir()
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    before = Path("/proc/self/mountinfo").read_text()
    master = Master(
        "cgroup = /sys/fs/cgroup/jail\ncgroup-opt = pids.max=50\n"
        f"chroot = {root}\nattach-daemon = /bin/busybox sleep 3600\n",
        name="jail",
    )
    daemon = master.pid_of("busybox")
    inside.tell(
        jail=[
            cgroup_of(master.pid).name,
            cgroup_of(daemon).name,
            os.readlink(f"/proc/{daemon}/root"),
        ],
        pids=read(cgroup_of(daemon), "pids.max"),
        jail_code=master.stop(),
        jail_left=(ROOT / "jail").exists(),
        mounts=Path("/proc/self/mountinfo").read_text() == before,
    )


for name in sys.argv[1:]:
    globals()[name]()
