#!/usr/bin/env -S python3 -I -S
"""Has two children that fork and end, over and over, each time in a session of its own."""

import os
import time

for _ in range(2):
    if os.fork() == 0:
        while True:
            if os.fork():
                os._exit(0)
            os.setsid()
os.write(1, b"settled fork_storm\n")
time.sleep(1000)
