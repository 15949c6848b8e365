#!/usr/bin/env bash
# A run on one GPU of a SLURM cluster; requeues itself when its time is up.
#   sbatch launch/slurm.sh --config=configs/search.py --config.data.dir=/data/tfds \
#     --workdir=runs/paper
# SLURM sends SIGTERM two minutes before the limit; the run saves, exits with 143, and resumes from
# the same workdir at the next start.
#SBATCH --job-name=asap_jax
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -u
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit
python -m asap_jax.main "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"
code=$?
if [ "$code" -gt 128 ]; then # the trap cut `wait` short: wait for the run itself
  wait "$run"
  code=$?
fi
[ "$code" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
