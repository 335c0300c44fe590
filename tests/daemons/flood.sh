#!/bin/sh
# Writes to its standard output for ever.
while :; do
  echo "flood flood flood flood flood flood flood flood flood flood flood flood flood flood"
done
