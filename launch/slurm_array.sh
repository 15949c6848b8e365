#!/usr/bin/env bash
# Methods x seeds as an array of SLURM jobs, one GPU each; see slurm.sh for what it asks for.
#   METHODS="asap darts random" SEEDS=3 SIZE=paper sbatch --array=0-8%4 launch/slurm_array.sh \
#     --config.data.dir=/data/tfds
# The array has as many jobs as there are methods times seeds, of which four (%4) run at a time. Job
# I is method I / SEEDS with seed I % SEEDS, in runs/SIZE-METHOD-SEED.
#SBATCH --job-name=asap_jax
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
set -u
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit
read -ra methods <<<"${METHODS:-asap darts random}"
: "${SEEDS:=3}" "${SIZE:=paper}"
jobs=$((${#methods[@]} * SEEDS))
if [ "$SLURM_ARRAY_TASK_ID" -ge "$jobs" ]; then
  echo "job $SLURM_ARRAY_TASK_ID of an array for $jobs: use --array=0-$((jobs - 1))" >&2
  exit 2
fi
method=${methods[SLURM_ARRAY_TASK_ID / SEEDS]}
seed=$((SLURM_ARRAY_TASK_ID % SEEDS))
exec bash launch/slurm.sh "--config=configs/search.py:$SIZE,$method" "--config.seed=$seed" \
  "--workdir=runs/$SIZE-$method-$seed" "$@"
