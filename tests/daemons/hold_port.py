#!/usr/bin/env -S python3 -I -S
"""Listens on a port, and keeps it for a second after SIGTERM; ends with 9 if it is taken."""

import os
import signal
import socket
import sys
import time


def hold_on(*_):
    os.write(1, b"port held on\n")
    time.sleep(1)
    os._exit(0)


signal.signal(signal.SIGTERM, hold_on)
listener = socket.socket()
try:
    listener.bind(("127.0.0.1", int(sys.argv[1])))
except OSError:
    os.write(1, b"port taken\n")
    os._exit(9)
listener.listen()
os.write(1, b"port bound\n")
while True:
    signal.pause()
