"""A guest can do what tests need: talk with them, and run a master."""

import os
import sys
from pathlib import Path

import inside

inside.tell(arguments=sys.argv[1:])
inside.tell(heard=inside.hear())
master = inside.Master("attach-daemon = sleep 3600\n")
master.wait_started("sleep")
inside.tell(
    code=master.stop(),
    controllers=Path("/sys/fs/cgroup/cgroup.controllers").read_text().split(),
    interfaces=os.listdir("/sys/class/net"),
)
