"""Launches on GKE with xpk, Google's tool for accelerators (pip install xpk)."""

from tpu.target.job import Job, command, script

RESTARTS = 100


def files(job: Job) -> dict[str, str]:
    """A script with create, setup, run, watch, resume, delete."""
    job.check(tpu=True, via="xpk")
    cluster = f"{job.name}-cluster"
    where = [f"--project={job.project}", f"--zone={job.zone}", f"--cluster={cluster}"]
    create = command(
        *("xpk", "cluster", "create", *where),
        f"--tpu-type={job.place.accelerator_type}",
        "--num-slices=1",
        *(job.spot_flag or ["--on-demand"]),
    )
    run = command(
        *("xpk", "workload", "create", *where, f"--workload={job.name}"),
        f"--tpu-type={job.place.accelerator_type}",
        "--num-slices=1",
        f"--docker-image={job.image}",
        f"--max-restarts={RESTARTS}",
        f"--command={job.begun()}",
    )
    ended = command("xpk", "workload", "delete", *where, f"--workload={job.name}")
    return {
        f"{job.name}.sh": script(
            job,
            {
                "create": create,
                "setup": image(job),
                "run": run,
                "watch": command("xpk", "workload", "list", *where),
                # Only needed after `RESTARTS` automatic restarts.
                "resume": f'{ended}\n"$0" run',
                "delete": f"{ended}\n"
                + command("xpk", "cluster", "delete", *where[:2], where[2]),
            },
        )
    }


def image(job: Job) -> str:
    """The commands that build and push the container."""
    build = command(
        "docker", "build", "--file=tpu/Dockerfile", f"--tag={job.image}", "."
    )
    return f"{build}\n" + command("docker", "push", job.image)
