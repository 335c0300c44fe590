#!/usr/bin/env -S python3 -I -S
"""Says the name of each signal it gets, and ends at any of those it is told: say_signals.py TERM"""

import os
import signal
import sys


def say(number, _):
    name = signal.Signals(number).name
    os.write(1, f"got {name}\n".encode())
    if name[3:] in sys.argv[1:]:
        os._exit(0)


for number in (1, 2, 3, 10, 12, 14, 15):
    signal.signal(number, say)
os.write(1, b"settled say_signals\n")
while True:
    signal.pause()
