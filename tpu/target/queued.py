"""Launches a queued resource: it waits for chips, then Google Cloud makes TPU VMs."""

from tpu.target import virtual_machine
from tpu.target.job import Job, command, script


def files(job: Job) -> dict[str, str]:
    """A script with create, wait, setup, run, watch, resume, delete."""
    job.check(tpu=True, via="queued")
    where = [f"--project={job.project}", f"--zone={job.zone}"]
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    chip = job.place.chip
    create = command(
        *(*queued, "create", job.name, f"--node-id={job.name}", *where),
        f"--accelerator-type={job.place.accelerator_type}",
        f"--runtime-version={chip.runtime}",
        virtual_machine.SCOPES,
        *job.spot_flag,
    )
    state = command(
        *queued, "describe", job.name, *where, "--format=value(state.state)"
    )
    wait = f'until [ "$({state})" = ACTIVE ]; do\n  sleep 60\ndone'
    again = "\n".join(f'"$0" {s}' for s in ("delete", "create", "wait", "setup", "run"))
    return {
        f"{job.name}.sh": script(
            job,
            {
                "create": create,
                "wait": wait,
                **virtual_machine.steps(job),
                # A preempted resource stays in the queue as SUSPENDED.
                "resume": again,
                "delete": command(
                    *queued, "delete", job.name, *where, "--force", "--quiet"
                ),
            },
        )
    }
