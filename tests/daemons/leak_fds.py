#!/usr/bin/env -S python3 -I -S
"""Opens files and hands them to a child that stays, without closing any."""

import os
import time

for _ in range(50):
    os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)
if os.fork() == 0:
    os.setsid()
os.write(1, b"settled leak_fds\n")
time.sleep(1000)
