#!/usr/bin/env python3
"""Do what is written to a FIFO, a line at a time, and say when it is done: puppet.py FIFO [WORD].

listen PORT         at 127.0.0.1
unix PATH           bind, and `hear` listens
touch PATH
line FD             write a newline to it
close FD
notify TEXT         with \\n for a new line
barrier TEXT        the same with a descriptor, and wait until that is closed everywhere
child TEXT          the same by a child
hasty TEXT          as notify, by a child which has ended by then
flood COUNT         so many notifications that say nothing
variable NAME
main                say in a notification that a child is the main process, which then notifies
exit CODE
"""

import os
import select
import socket
import sys

kept = []


def notify(text, fds=()):
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        socket.send_fds(sock, [text.replace("\\n", "\n").encode()], list(fds))


def notify_and_wait(text):
    read_fd, write_fd = os.pipe()
    notify(text, [write_fd])
    os.close(write_fd)
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)


def in_child(act):
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    return pid


def do(word, rest):  # noqa: C901  # a table
    match word:
        case "listen":
            kept.append(socket.create_server(("127.0.0.1", int(rest))))
        case "unix":
            kept.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            kept[-1].bind(rest)
        case "hear":
            kept[-1].listen()
        case "touch":
            open(rest, "w").close()
        case "line":
            os.write(int(rest), b"\n")
        case "close":
            os.close(int(rest))
        case "notify":
            notify(rest)
        case "barrier":
            notify_and_wait(rest)
        case "child":
            os.waitpid(in_child(lambda: notify_and_wait(rest)), 0)
        case "hasty":
            os.waitpid(in_child(lambda: notify(rest)), 0)
        case "flood":
            for _ in range(int(rest)):
                notify("X_NOTHING=1")
        case "variable":
            return os.environ.get(rest, "-")
        case "main":
            go_read, go_write = os.pipe()
            pid = in_child(lambda: (os.read(go_read, 1), notify_and_wait(rest)))
            notify_and_wait(f"MAINPID={pid}")
            os.write(go_write, b"x")
            os.waitpid(pid, 0)
        case "exit":
            os._exit(int(rest))
        case _:
            raise AssertionError(word)
    return ""


def say(text):
    os.write(1, f"{text}\n".encode())


def main():
    # Both ends, so that it does not end when a writer goes.
    fd = os.open(sys.argv[1], os.O_RDWR)
    say(f"{' '.join(sys.argv[2:])} at work")
    text = b""
    while True:
        while b"\n" not in text:
            select.select([fd], [], [])
            text += os.read(fd, 4096)
        line, _, text = text.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        said = do(word, rest)
        say(f"done {word} {said}")


main()
