#!/usr/bin/env bash
# Runs a config on this machine, and restarts it after an interruption until it is done.
#   launch/local.sh --config=configs/search.py:digits --workdir=runs/digits
# Only SIGTERM (143) leads to a restart; Ctrl-C (130) and errors end it.
set -u
cd "$(dirname "$0")/.."
while true; do
  python -m asap_jax.main "$@"
  code=$?
  [ "$code" -eq 143 ] || exit "$code"
done
