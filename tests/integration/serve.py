"""Says in a file what it found of sockets, and answers each client with its own pid."""

import json
import os
import select
import socket
import sys

found = {name: os.environ.get(name) for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")}
fds = [fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")]
found |= {"pid": os.getpid(), "open": fds}
with open(f"{sys.argv[1]}.new", "w") as file:
    file.write(json.dumps(found) + "\n")
os.rename(f"{sys.argv[1]}.new", sys.argv[1])
sockets = [socket.socket(fileno=3 + i) for i in range(int(found["LISTEN_FDS"]))]
while True:
    for each in select.select(sockets, [], [])[0]:
        connection, _ = each.accept()
        connection.sendall(str(os.getpid()).encode())
        connection.close()
