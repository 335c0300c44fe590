#!/bin/sh
# Has a child in its process group that says when it gets SIGTERM.
trap 'wait; exit' TERM
sh -c '
  trap "echo child got it; exit" TERM
  echo "settled group"
  while :; do
    sleep 1 &
    wait
  done
' &
while :; do
  wait
done
