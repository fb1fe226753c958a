"""Launches TPU VMs without a queue: creation fails if there are no chips."""

from tpu.target import virtual_machine
from tpu.target.job import Job, command, script


def files(job: Job) -> dict[str, str]:
    """A script with create, setup, run, watch, resume, delete."""
    job.check(tpu=True, via="tpu-vm")
    where = [f"--project={job.project}", f"--zone={job.zone}"]
    machine = ["gcloud", "compute", "tpus", "tpu-vm"]
    create = command(
        *(*machine, "create", job.name, *where),
        f"--accelerator-type={job.place.accelerator_type}",
        f"--version={job.place.chip.runtime}",
        virtual_machine.SCOPES,
        *job.spot_flag,
    )
    return {
        f"{job.name}.sh": script(
            job,
            {
                "create": create,
                **virtual_machine.steps(job),
                "resume": "\n".join(
                    f'"$0" {step}' for step in ("delete", "create", "setup", "run")
                ),
                "delete": command(*machine, "delete", job.name, *where, "--quiet"),
            },
        )
    }
