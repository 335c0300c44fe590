#!/bin/sh
# Has a grandchild in another session, whose parent has ended, and stays.
(setsid sh -c 'echo "settled double_fork"; exec sleep 1000' &)
exec sleep 1000
