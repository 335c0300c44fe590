"""One text to one typed value: booleans, durations, signals, modes, ids.

Every parser takes the text as written and raises ValueError with a phrase that completes
"key=value: ..."; none performs I/O.
"""

from __future__ import annotations

Ns = int
"""Nanoseconds: of CLOCK_MONOTONIC where it is a time, else a length of time.

A plain alias: a NewType would cost a call at each addition.
"""

RunId = int
"""One life of one daemon: counts up from 1 per daemon; 0 means none yet."""

SECOND = 1_000_000_000
