#!/usr/bin/env bash
# Runs a config on this machine, and restarts it after an interruption until it is done.
#   launch/local.sh --config=configs/search.py:digits --workdir=runs/digits
#   PROCESSES=2 launch/local.sh --config=configs/search.py:digits --workdir=runs/digits
# With PROCESSES, so many processes share the run. One is enough for all GPUs of a machine; each of
# several takes the GPUs that CUDA_VISIBLE_DEVICES_I names for process I, if set (0,1 and 2,3, say).
# Only SIGTERM to the run (143) leads to a restart, and up to RESTARTS times the loss of a process of
# several (75; 134 where JAX noticed it first). Ctrl-C (130) and errors end it, and so does SIGTERM to
# this script, which saves.
set -um # each process has a group of its own, so that Ctrl-C reaches it once
cd "$(dirname "$0")/.." || exit
: "${PROCESSES:=1}" "${PORT:=12355}" "${RESTARTS:=20}"
stopped=0 restarts=0 started=()
trap 'stopped=1; kill -TERM "${started[@]}" 2>/dev/null' TERM HUP
trap 'stopped=1; kill -INT "${started[@]}" 2>/dev/null' INT

start() {
  if [ "$PROCESSES" -eq 1 ]; then
    python -m asap_jax.main "$@" &
    started=($!)
    return
  fi
  local index
  started=()
  export JAX_COORDINATOR_ADDRESS="localhost:$PORT" JAX_NUM_PROCESSES="$PROCESSES"
  for ((index = 0; index < PROCESSES; index++)); do
    (
      visible="CUDA_VISIBLE_DEVICES_$index"
      if [ -n "${!visible:-}" ]; then export CUDA_VISIBLE_DEVICES="${!visible}"; fi
      JAX_PROCESS_ID="$index" exec python -m asap_jax.main --distributed "$@"
    ) &
    started+=($!)
  done
}

finish() { # the largest exit code, but 1 and 2 before all: errors that another start meets again
  local code process worst=0 failed=0
  for process in "${started[@]}"; do
    while true; do
      wait "$process"
      code=$?
      kill -0 "$process" 2>/dev/null || break # else a trap cut `wait` short
    done
    case "$code" in 1 | 2) failed=$code ;; esac
    if [ "$code" -gt "$worst" ]; then worst=$code; fi
  done
  if [ "$failed" -ne 0 ]; then return "$failed"; fi
  return "$worst"
}

while true; do
  start "$@"
  finish
  code=$?
  if [ "$stopped" -eq 1 ]; then exit "$code"; fi
  case "$code" in
    143) ;;
    75 | 134 | 137)
      restarts=$((restarts + 1))
      if [ "$PROCESSES" -eq 1 ] || [ "$restarts" -gt "$RESTARTS" ]; then exit "$code"; fi
      ;;
    *) exit "$code" ;;
  esac
done
