"""Steps that queued resources and TPU VMs share: machines that are reached by ssh."""

from tpu.target.job import CODE, Job, command

SCOPES = "--scopes=cloud-platform"
"""What the machine may do in the project: write to the bucket, for one."""


def steps(job: Job) -> dict[str, str]:
    """The cases setup, run and watch of a script."""
    where = [f"--project={job.project}", f"--zone={job.zone}"]
    archive = f"/tmp/{job.name}.tar.gz"

    def on_all(text: str, worker: str = "all") -> str:
        return command(
            *("gcloud", "compute", "tpus", "tpu-vm", "ssh", job.name, *where),
            *(f"--worker={worker}", f"--command={text}"),
        )

    unpack = f"mkdir -p {CODE} && tar -xzf {archive} -C {CODE} && {CODE}/tpu/setup.sh"
    send = command(
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", archive),
        *(f"{job.name}:{archive}", *where, "--worker=all"),
    )
    setup = [
        command("git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD")
    ]
    setup += [send, on_all(unpack)]
    begin = f"cd {CODE} && nohup {job.begun()} < /dev/null > run.log 2>&1 &"
    return {
        "setup": "\n".join(setup),
        "run": on_all(begin),
        "watch": on_all(f"tail -n 50 -F {CODE}/run.log", "0"),
    }
