"""Launches on GPUs of a SLURM cluster; one process per GPU, as JAX expects there."""

from tpu.target.job import Job, beside, script

_BATCH = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node={chips}
#SBATCH --gpus-per-node={chips}
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}.log
# Sends SIGTERM two minutes before the end: the run finishes a dispatch and saves.
#SBATCH --signal=TERM@120
{head}
set -euo pipefail
# Status 143 means that the run was stopped and has saved: requeue it.
status=0
srun {run} || status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def files(job: Job) -> dict[str, str]:
    """A batch file, and a script with setup, run, watch, resume, delete."""
    job.check(tpu=False, via="slurm")
    file = f"{job.name}.sbatch"
    batch = _BATCH.format(
        name=job.name,
        chips=job.place.num_chips,
        head=job.comments(),
        run=job.begun(),
    )
    submit = f"sbatch {beside(file)}"
    steps = {
        "setup": "make install\n.venv/bin/python -m pip install 'jax[cuda13]'",
        "run": submit,
        "watch": f"tail -n 50 -F {job.name}.log",
        "resume": submit,
        "delete": f"scancel --name={job.name}",
    }
    return {file: batch, f"{job.name}.sh": script(job, steps)}
