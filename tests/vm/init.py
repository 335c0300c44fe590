#!/usr/bin/python3 -IS
"""Pid 1 of a guest: mounts what a system has, runs the script, tells its exit status, powers off.

A test that needs another pid 1 names it (`Guest(init=...)`).
"""

import json
import os
import sys

BUSYBOX = "/bin/busybox"
MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
)
POWER_OFF = ("poweroff", "-f")


def run(*words):
    return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(BUSYBOX, words, os.environ), 0)[1])


def find_port():
    for entry in os.listdir("/sys/class/virtio-ports"):
        with open(f"/sys/class/virtio-ports/{entry}/name") as name:
            if name.read().strip() == "lowsuper.results":
                return f"/dev/{entry}"
    raise AssertionError("there is no port for results")


def main():
    os.environ |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TERM": "linux"}
    for kind, place in MOUNTS:
        os.makedirs(place, exist_ok=True)
        run("mount", "-t", kind, kind, place)
    for link, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"),
                         ("stderr", "fd/2"), ("ptmx", "pts/ptmx")):  # fmt: skip
        if not os.path.lexists(f"/dev/{link}"):
            os.symlink(target, f"/dev/{link}")
    run("mount", "-t", "cgroup2", "-o", "nsdelegate", "cgroup2", "/sys/fs/cgroup")
    run("ip", "link", "set", "lo", "up")
    with open("/usr/lib/modules/load") as modules:
        for module in modules.read().split():
            run("insmod", module)
    sys.path.insert(0, "/opt/lowsuper")
    port = os.open(find_port(), os.O_RDWR)
    os.set_inheritable(port, True)
    os.environ |= {"LOWSUPER_VM_PORT": str(port), "PYTHONPATH": "/opt/lowsuper"}
    import inside

    with open("/scenario.json") as file:
        arguments = json.load(file)
    inside.tell(booted=True)
    words = ["python3", "-B", "/scenario.py", *arguments]
    child = os.posix_spawn("/usr/bin/python3", words, os.environ)
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    inside.tell(exit=os.waitstatus_to_exitcode(status))
    os.sync()


try:
    main()
except BaseException:
    import traceback

    traceback.print_exc()
finally:
    run(*POWER_OFF)
