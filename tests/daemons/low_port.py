#!/usr/bin/env -S python3 -I -S
"""Says whether it can bind a port that is root's, and change a file's owner; and stays."""

import os
import socket
import time


def bind_low_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        for port in range(1023, 600, -1):
            try:
                server.bind(("127.0.0.1", port))
            except PermissionError:
                return "refused"
            except OSError:  # somebody has it
                continue
            return "bound"
    return "no port is free"


def change_owner():
    _, writer = os.pipe()
    try:
        os.fchown(writer, 1, 1)
    except PermissionError:
        return "refused"
    return "changed"


os.write(1, f"port {bind_low_port()}, owner {change_owner()}\n".encode())
time.sleep(1000)
