#!/usr/bin/env bash
# A run on all GPUs of several nodes of a SLURM cluster, one process for each GPU; requeues itself
# when its time is up, when it is preempted, and when a node is lost.
#   sbatch --nodes=2 launch/slurm_nodes.sh --config=configs/train.py:imagenet \
#     --config.data.dir=/data/tfds --workdir=runs/imagenet
# All nodes need to see the workdir, the data and this folder. The batch sizes have to be multiples
# of the number of GPUs. SLURM sends SIGTERM to all processes two minutes before the limit; the run
# saves, exits with 143, and resumes from the same workdir at the next start. JAX_COMPILATION_CACHE_DIR
# may name a folder that all nodes see, so that a later start compiles nothing.
#SBATCH --job-name=asap_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -u
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit
: "${RESTARTS:=20}" # at most after the loss of a process, so that a run which always fails ends
# srun reports the largest code of its tasks. The one that failed by itself (1, 2) tells so in a
# file, since the others lose it and end with a larger one.
export FAILED="$PWD/.failed-$SLURM_JOB_ID"
rm -f "$FAILED"
# shellcheck disable=SC2016 # the tasks expand it
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  trap : TERM # for python, which bash waits for
  python -m asap_jax.main --distributed "$@" &
  run=$!
  trap "kill -TERM $run 2>/dev/null" TERM
  while true; do
    wait "$run"
    code=$?
    kill -0 "$run" 2>/dev/null || break
  done
  case "$code" in 1 | 2) touch "$FAILED" ;; esac
  exit "$code"
' asap_jax "$@"
code=$?
if [ -e "$FAILED" ]; then
  rm -f "$FAILED"
  exit "$code"
fi
case "$code" in
  143) scontrol requeue "$SLURM_JOB_ID" ;;
  75 | 134 | 137) # a process is gone
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$RESTARTS" ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
