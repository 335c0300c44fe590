#!/bin/sh
# Holds a lock (an exclusive directory) and lets go of it a second after SIGTERM: hold_lock.sh DIR
let_go() {
  sleep 1
  rmdir "$1"
  exit 0
}
mkdir "$1" || { echo "lock taken"; exit 9; }
trap 'let_go "$1"' TERM
echo "lock held"
while :; do
  sleep 1000 &
  wait
done
