"""Steps that queued resources and TPU VMs share: machines that are reached by ssh."""

from tpu.target.job import CODE, Job, command, quoted

MOUNT = "/mnt/shared"


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
    if job.place.num_hosts > 1:
        mount = "sudo apt-get install -y nfs-common"
        mount += f" && sudo mkdir -p {MOUNT} && sudo mount -t nfs {job.shared} {MOUNT}"
        setup.append(on_all(mount))
    begin = f"cd {CODE} && nohup bash -c '{_run(job)}' < /dev/null > run.log 2>&1 &"
    return {
        "setup": "\n".join(setup),
        "run": on_all(begin),
        "watch": on_all(f"tail -n 50 -F {CODE}/run.log", "0"),
    }


def _run(job: Job) -> str:
    """The command that runs the job, for use inside single quotes."""
    if job.place.num_hosts > 1:
        text = job.begun(f"{MOUNT}/{job.name}")
    else:
        words = quoted((job.module, *job.flags))
        text = f"exec tpu/kept.sh {job.bucket}/{job.name} runs/{job.name} {words}"
    return text.replace("'", "'\\''")
