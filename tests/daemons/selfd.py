#!/usr/bin/env -S python3 -I -S
"""Puts itself into the background and writes its pidfile: selfd.py PIDFILE [WORD...].

foreground      stay there; write the pidfile all the same
exit=N          the exit status of the process that was launched (0)
wait            that process ends only when the pidfile is written
delay=S         seconds before the pidfile is written, and before the second half of it
write=never     no pidfile; or `empty`, then the number; or `half` of the number, then the rest;
                or another number than its own
atomic          put the pidfile in its place with rename
keep            leave the pidfile there at the end
ignore          SIGTERM does nothing
log=PATH        append to this file what happens: `PID up`, `PID TERM`, ...

TERM, INT and QUIT end it; USR2 starts its successor, which takes over the pidfile and then ends it.
"""

import os
import signal
import sys
import time

pidfile, *words = sys.argv[1:]
options = dict(word.partition("=")[::2] for word in words)
delay = float(options.get("delay", "0"))
write = options.get("write", "")


def say(what):
    if "log" in options:
        fd = os.open(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, f"{os.getpid()} {what}\n".encode())
        os.close(fd)


def put(text, mode="w"):
    path = f"{pidfile}.{os.getpid()}" if "atomic" in options else pidfile
    with open(path, mode) as file:
        file.write(text)
    if path != pidfile:
        os.rename(path, pidfile)


def write_pidfile():
    text = f"{write if write.isdigit() else os.getpid()}\n"
    time.sleep(delay)
    if write == "never":
        return
    first = {"empty": "", "half": text[: len(text) // 2]}.get(write, text)
    put(first)
    if first != text:
        time.sleep(delay)
        put(text[len(first) :], "a")


def names_me():
    try:
        with open(pidfile) as file:
            return file.read().strip() == str(os.getpid())
    except OSError:
        return False


def go_to_background():
    read_fd, write_fd = os.pipe()
    if os.fork():
        os.close(write_fd)
        if "wait" in options:
            os.read(read_fd, 1)  # until all who hold the other end have closed it
        os._exit(int(options.get("exit", "0")))
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(read_fd)
    return write_fd


waiting = -1 if "foreground" in options else go_to_background()
old = int(options.pop("successor-of", "0"))
signals = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
signals |= {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
write_pidfile()
if waiting >= 0:
    os.close(waiting)
if old:
    os.kill(old, signal.SIGQUIT)
say("up")
while True:
    number = signal.sigwait(signals)
    say(number.name[3:])
    if number == signal.SIGUSR2 and os.fork() == 0:
        words = [f"{key}={value}" if value else key for key, value in options.items()]
        words += [] if "foreground" in options else ["foreground"]
        program = [os.path.abspath(__file__), pidfile, *words, f"successor-of={os.getppid()}"]
        os.execv(program[0], program)
    if number == signal.SIGTERM and "ignore" in options:
        continue
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        if names_me() and "keep" not in options:
            os.unlink(pidfile)
        os._exit(0)
