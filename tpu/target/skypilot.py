"""Launches a managed job of SkyPilot (pip install skypilot), which restarts by itself.

Source: SkyPilot's specification of YAML files.
"""

from tpu.target.job import Job, beside, command, script

_TASK = """\
{head}
name: {name}
workdir: .
resources:
  accelerators: {accelerators}{arguments}
  use_spot: {spot}
  job_recovery:
    max_restarts_on_errors: 3
file_mounts:
  /runs:
    source: {bucket}
    mode: MOUNT_CACHED
setup: |
  {setup}
run: |
  {run}
"""


def files(job: Job) -> dict[str, str]:
    """A task, and a script with run, watch, resume, delete."""
    place = job.place
    if place.num_hosts > 1:
        raise ValueError(
            f"--via skypilot must have a --topology of one host, got {place} of"
            f" {place.num_hosts} hosts; take --via queued, xpk or jobset."
        )
    if not job.runs.startswith("gs://"):
        raise ValueError(
            "--via skypilot must have --runs gs://BUCKET, which it mounts, got"
            f" {job.runs}; machines come and go."
        )
    accelerators, arguments = f"H100:{place.num_chips}", ""
    setup = "make install && .venv/bin/python -m pip install 'jax[cuda13]'"
    if place.is_tpu:
        accelerators = f"tpu-{place.accelerator_type}"
        arguments = "\n  accelerator_args:\n    runtime_version: "
        arguments += place.chip.runtime
        setup = "tpu/setup.sh"
    task = _TASK.format(
        head=job.comments(),
        name=job.name,
        accelerators=accelerators,
        arguments=arguments,
        spot=str(job.spot).lower(),
        bucket=job.runs,
        setup=setup,
        run=job._replace(runs="/runs").begun(),
    )
    file = f"{job.name}.yaml"
    launch = f"sky jobs launch --yes --name={job.name} {beside(file)}"
    cancel = command("sky", "jobs", "cancel", "--yes", f"--name={job.name}")
    steps = {
        "run": launch,  # also creates and sets up machines, and resumes when preempted
        "watch": command("sky", "jobs", "logs", f"--name={job.name}"),
        "resume": f"{cancel}\n{launch}",
        "delete": cancel,
    }
    return {file: task, f"{job.name}.sh": script(job, steps)}
