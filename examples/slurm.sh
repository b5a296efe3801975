#!/bin/bash
# Train under SLURM for longer than a job may last. Shortly before its time limit, the run saves
# and exits with code 75, and the job is requeued until the training is finished.
#
#     sbatch examples/slurm.sh train.py hparams.yaml --ckpt_interval_minutes 15
#
# srun starts the script once for each rank. brain_dist reads SLURM's variables, so the script only
# calls ddp_init_group(run_opts), gives the Brain a checkpointer, and calls fit. Do not use torchrun:
# it exits with 1, whatever the exit code of its workers.

#SBATCH --job-name=train
#SBATCH --nodes=2
# One rank for each GPU. All ranks of a node must see all of its GPUs: no --gpus-per-task.
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# SLURM sends SIGUSR1 to every rank three minutes before the time limit. That must be enough for
# one accumulation window and one checkpoint.
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=train-%j.log

set -uo pipefail

EXIT_REQUEUE=75 # brain_dist.EXIT_REQUEUE: stopped on request, and saved

# scancel sends SIGTERM to this shell, too. The ranks save, but the job must not be requeued.
cancelled=no
trap 'cancelled=yes' TERM

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node get two ports
export MASTER_ADDR MASTER_PORT

# A rank that fails ends the others, all with the same code. If srun killed them when the first one
# ends, their codes would be those of signals.
srun --kill-on-bad-exit=0 --wait=120 python "$@"
code=$?

if [[ $code -eq $EXIT_REQUEUE && $cancelled == no ]]; then
    echo "Stopped and saved in start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID: requeueing it."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

# On Kubernetes, a Job uses the same exit code. terminationGracePeriodSeconds: 180 leaves time to save
# after SIGTERM, and this policy restarts the pod without counting a failure:
#
#     podFailurePolicy:
#       rules:
#         - action: Ignore
#           onExitCodes: {operator: In, values: [75]}
