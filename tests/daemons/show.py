#!/usr/bin/env -S python3 -I -S
"""Writes what it finds itself to be, as JSON, to the file it is given, and stays."""

import json
import os
import resource
import sys
import time


def read_status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def read_fds():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


umask = os.umask(0)
os.umask(umask)
found = {
    "pid": os.getpid(),
    "ppid": os.getppid(),
    "sid": os.getsid(0),
    "pgid": os.getpgid(0),
    "argv": sys.argv[1:],
    "cwd": os.getcwd(),
    "umask": umask,
    "env": dict(os.environ),
    "fds": read_fds(),
    "status": read_status(),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
    "ns_pid": os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self") else "",
}
partial = sys.argv[1] + ".part"
with open(partial, "w") as file:
    json.dump(found, file)
os.rename(partial, sys.argv[1])
os.write(1, f"shown {sys.argv[1]}\n".encode())
time.sleep(1000)
