#!/usr/bin/env bash
# A run on all GPUs of several nodes of a SLURM cluster, one process for each GPU; requeues itself
# when its time is up, when it is preempted, and when a node is lost.
#   sbatch --nodes=2 launch/slurm_nodes.sh --config=configs/train.py:imagenet \
#     --config.data.dir=/data/tfds --workdir=runs/imagenet
# All nodes need to see the workdir, the data and this folder. The batch sizes have to be multiples
# of the number of GPUs. SLURM sends SIGTERM to all processes two minutes before the limit; the run
# saves, exits with 143, and resumes from the same workdir at the next start.
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
: "${RESTARTS:=20}" # at most, so that a run which always fails ends
srun --kill-on-bad-exit=0 python -m asap_jax.main --distributed "$@"
code=$?
case "$code" in
  143 | 75 | 134 | 137) # stopped by a signal; or a process is gone
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$RESTARTS" ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
