#!/usr/bin/env -S python3 -I -S
"""Is the only one, and keeps a journal of what happens to it: sole.py JOURNAL [WORD...]

It holds a lock on JOURNAL.lock for as long as it lives, which it cannot lose. In the journal a line
`PID up` says that it got the lock, `PID clash` that another one ran beside it, and `PID TERM 123`
that it got a signal from process 123.

pidfile=PATH    write it once the lock is had
background      go there first, as daemons do
end=SIGNAL      end at this signal: TERM, say; may come again
"""

import fcntl
import os
import signal
import sys

journal, *words = sys.argv[1:]
options = {key: value for key, _, value in (word.partition("=") for word in words)}
ends = {value for key, _, value in (word.partition("=") for word in words) if key == "end"}


def say(*what):
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{os.getpid()} {' '.join(map(str, what))}\n".encode())
    os.close(fd)


if "background" in options:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)

signals = {1, 2, 3, 10, 12, 14, 15, 18, 28}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
lock = os.open(f"{journal}.lock", os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    say("clash")
    os._exit(9)
say("up")
if "pidfile" in options:
    with open(options["pidfile"], "w") as file:
        file.write(f"{os.getpid()}\n")
while True:
    info = signal.sigwaitinfo(signals)
    name = signal.Signals(info.si_signo).name[3:]
    say(name, info.si_pid)
    if name in ends:
        os._exit(0)
