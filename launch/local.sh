#!/usr/bin/env bash
# Runs a config on this machine, and restarts it after an interruption until it is done.
#   launch/local.sh --config=configs/search.py:digits --workdir=runs/digits
#   PROCESSES=2 launch/local.sh --config=configs/search.py:digits --workdir=runs/digits
# With PROCESSES, so many processes share the run. One is enough for all GPUs of a machine; each of
# several takes the GPUs that CUDA_VISIBLE_DEVICES_I names for process I, if set (0,1 and 2,3, say).
# Only SIGTERM (143) leads to a restart, and the loss of a process of several (75, or 134 where JAX
# noticed it first); Ctrl-C (130) and errors end it.
set -u
cd "$(dirname "$0")/.." || exit
: "${PROCESSES:=1}" "${PORT:=12355}"

run() {
  if [ "$PROCESSES" -eq 1 ]; then
    python -m asap_jax.main "$@"
    return
  fi
  local index code process worst=0 refused=0 started=()
  export JAX_COORDINATOR_ADDRESS="localhost:$PORT" JAX_NUM_PROCESSES="$PROCESSES"
  for ((index = 0; index < PROCESSES; index++)); do
    (
      visible="CUDA_VISIBLE_DEVICES_$index"
      if [ -n "${!visible:-}" ]; then export CUDA_VISIBLE_DEVICES="${!visible}"; fi
      JAX_PROCESS_ID="$index" exec python -m asap_jax.main --distributed "$@"
    ) &
    started+=($!)
  done
  trap 'kill -TERM "${started[@]}" 2>/dev/null' TERM
  trap 'kill -INT "${started[@]}" 2>/dev/null' INT
  for process in "${started[@]}"; do
    while true; do
      wait "$process"
      code=$?
      kill -0 "$process" 2>/dev/null || break # else a trap cut `wait` short
    done
    if [ "$code" -eq 2 ]; then refused=1; fi # an error that another start would meet again
    if [ "$code" -gt "$worst" ]; then worst=$code; fi
  done
  trap - TERM INT
  if [ "$refused" -eq 1 ]; then return 2; fi
  return "$worst"
}

while true; do
  run "$@"
  code=$?
  case "$code" in
    143) ;;
    75 | 134 | 137) [ "$PROCESSES" -gt 1 ] || exit "$code" ;;
    *) exit "$code" ;;
  esac
done
