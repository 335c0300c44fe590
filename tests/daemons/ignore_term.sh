#!/bin/sh
# Ignores SIGTERM, and so does what it becomes.
trap '' TERM
echo "settled ignore_term"
exec sleep 1000
