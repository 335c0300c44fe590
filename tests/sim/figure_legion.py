"""How long it takes until another node runs the daemon: lowsuper, uWSGI, and both in one legion.

python tests/sim/figure_legion.py [SCHEDULES [FREQ TOLERANCE]]

Simulated: the election of lowsuper as it is, uWSGI as a model of its loop. In each schedule the
lord is stopped gracefully, killed, or cut off, at the same moment for all kinds of legions. A
daemon takes 0.5 s to end. Seconds from the fault until the new daemon runs: the fastest, the
median, nine of ten, the slowest; then in how many schedules both daemons ran, and how long at most.
"""

from __future__ import annotations

import sys

from legion import FAULTS, Plan, take_over

from lowsuper.units import SECOND

LEGIONS = (
    ("lowsuper only", "lll"),
    ("uWSGI only", "uuu"),
    ("lord lowsuper, then lowsuper", "llu"),
    ("lord lowsuper, then uWSGI", "luu"),
    ("lord uWSGI, then lowsuper", "ull"),
    ("lord uWSGI, then uWSGI", "uul"),
)
ENDS = SECOND // 2


def measure(kinds: str, fault: str, schedules: int, freq: int, tolerance: int) -> list:
    plan = Plan(kinds, freq=freq, tolerance=tolerance, stubborn=0, ends=ENDS, patience=SECOND)
    return [take_over(plan, seed, fault)[0] for seed in range(schedules)]


def show(took: list) -> str:
    began = sorted(each.began for each in took if each.began is not None)
    spots = [began[min(len(began) - 1, int(share * len(began)))] for share in (0, 0.5, 0.9, 1)]
    both = [each.overlap for each in took if each.overlap]
    text = "".join(f"{spot / SECOND:8.2f}" for spot in spots)
    text += f"{len(both):8}{max(both, default=0) / SECOND:8.2f}"
    return text + (f"  never: {len(took) - len(began)}" if len(began) < len(took) else "")


def main() -> None:
    schedules, freq, tolerance = [*map(int, sys.argv[1:]), *(200, 3, 15)[len(sys.argv) - 1 :]]
    print(f"{schedules} schedules, freq {freq} s, tolerance {tolerance} s, quorum 2 of 3")  # noqa: T201
    for fault in FAULTS:
        head = "".join(f"{word:>8}" for word in ("min", "median", "90 %", "max", "both", "for"))
        print(f"\n{fault:30}{head}")  # noqa: T201
        for name, kinds in LEGIONS:
            print(f"{name:30}{show(measure(kinds, fault, schedules, freq, tolerance))}")  # noqa: T201


if __name__ == "__main__":
    main()
