#!/bin/sh
# Has three children, each in a session of its own, that ignore SIGTERM.
for number in 1 2 3; do
  setsid sh -c 'trap "" TERM; echo "settled setsid_children"; exec sleep 1000' &
done
exec sleep 1000
