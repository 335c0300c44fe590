#!/bin/sh
# Leaves a child in another session that ignores SIGTERM: leaves_stubborn.sh FIFO [STATUS]
mkfifo "$1" || exit 9
export fifo="$1"
setsid sh -c '
  trap "" TERM
  echo "settled leaves_stubborn"
  echo > "$fifo"
  exec sleep 1000
' &
read -r _ < "$1"
exit "${2:-0}"
