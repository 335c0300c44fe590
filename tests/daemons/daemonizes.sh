#!/bin/sh
# Goes to the background: its own process ends with 0, a grandchild in another session stays.
(setsid sh -c 'echo "settled daemonizes"; exec sleep 1000' &)
exit 0
