#!/bin/bash
# Train under SLURM for longer than a job may last: shortly before its time is up the run saves,
# leaves with exit code 75, and is put back into the queue, until it is finished.
#
#     sbatch examples/slurm.sh train.py hparams.yaml --ckpt_interval_minutes 15
#
# The script is started by srun once for each rank; brain_dist reads SLURM's variables, so it only
# has to call ddp_init_group(run_opts), give the Brain a checkpointer, and call fit. Not torchrun:
# whatever code its workers end with, it ends with 1.

#SBATCH --job-name=train
#SBATCH --nodes=2
# One rank for each GPU. All ranks of a node have to see all of its GPUs: no --gpus-per-task.
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# Three minutes before the time is up, every rank is sent SIGUSR1. That has to be enough for one
# accumulation window and one checkpoint.
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=train-%j.log

set -uo pipefail

TRY_AGAIN=75 # brain_dist.EXIT_TRY_AGAIN: stopped on request, everything is saved

# scancel sends SIGTERM to this shell, too. The ranks save all the same, but nobody wants more.
cancelled=no
trap 'cancelled=yes' TERM

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node get two ports
export MASTER_ADDR MASTER_PORT

# A rank that fails ends the others by itself, and all with the same code. Were srun to kill them
# when the first one ends, their codes would be those of signals.
srun --kill-on-bad-exit=0 --wait=120 python "$@"
code=$?

if [[ $code -eq $TRY_AGAIN && $cancelled == no ]]; then
    echo "Stopped and saved in start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID: back to the queue."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

# On Kubernetes the same code does it in a Job: terminationGracePeriodSeconds: 180 leaves the time
# to save after SIGTERM, and this starts the pod again without counting it as a failure:
#
#     podFailurePolicy:
#       rules:
#         - action: Ignore
#           onExitCodes: {operator: In, values: [75]}
