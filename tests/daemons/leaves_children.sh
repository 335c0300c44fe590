#!/bin/sh
# Ends with 3 on its own and leaves two children in its group and one outside of it.
sleep 1000 &
sleep 1000 &
setsid sh -c 'echo "settled leaves_children"; exec sleep 1000' &
exit 3
