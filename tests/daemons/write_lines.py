"""Write numbered lines: FIRST COUNT [WIDTH [FILE]]; then say so in FILE, or wait for ever."""

import os
import signal
import sys

first, count = int(sys.argv[1]), int(sys.argv[2])
width = int(sys.argv[3]) if len(sys.argv) > 3 else 100
filler = b" " + b"x" * (width - 12) + b"\n"
at = first
while at < first + count:
    end = min(at + 2000, first + count)
    data = b"".join([b"%010d" % number + filler for number in range(at, end)])
    while data:
        data = data[os.write(1, data) :]
    at = end
if len(sys.argv) > 4:
    with open(sys.argv[4] + ".part", "w") as file:
        file.write("done\n")
    os.rename(sys.argv[4] + ".part", sys.argv[4])
while True:
    signal.pause()
