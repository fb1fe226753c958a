"""Launches on GKE with kubectl: a JobSet whose pods are the hosts of a slice.

Source: the CRD of JobSet, jobset.x-k8s.io/v1alpha2 (kubernetes-sigs/jobset), and
Google's labels of TPU nodes in GKE.
"""

from tpu.target.job import Job, beside, command, script
from tpu.target.xpk import RESTARTS, image

_MANIFEST = """\
{head}
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {restarts}  # all pods restart and resume from the checkpoint
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: {hosts}
        completions: {hosts}
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120  # to finish a dispatch and save
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {accelerator}
              cloud.google.com/gke-tpu-topology: {shape}{spot}
            containers:
            - name: run
              image: {image}
              command: ["bash", "-c"]
              args:
              - >-
                {run}
              resources:
                limits:
                  google.com/tpu: {chips}
"""


def files(job: Job) -> dict[str, str]:
    """A manifest, and a script with create, setup, run, watch, resume, delete."""
    job.check(tpu=True, via="jobset")
    label, _ = job.place.chip.gke
    spot = '\n              cloud.google.com/gke-spot: "true"' if job.spot else ""
    manifest = _MANIFEST.format(
        head=job.comments(),
        name=job.name,
        restarts=RESTARTS,
        hosts=job.place.num_hosts,
        accelerator=label,
        shape=job.place.shape,
        spot=spot,
        image=job.image,
        run=job.begun(),
        chips=job.place.chips_per_host,
    )
    return {f"{job.name}.yaml": manifest, f"{job.name}.sh": script(job, _steps(job))}


def _steps(job: Job) -> dict[str, str]:
    cluster, place = f"{job.name}-cluster", [f"--project={job.project}"]
    region = [*place, f"--location={job.zone.rsplit('-', 1)[0]}"]
    file = f"{job.name}.yaml"
    machine = job.place.chip.gke[1].format(job.place.chips_per_host)
    several = [f"--tpu-topology={job.place.shape}"] if job.place.num_hosts > 1 else []
    create = [
        command("gcloud", "container", "clusters", "create", cluster, *region),
        command(
            *("gcloud", "container", "node-pools", "create", "tpu", *region),
            *(f"--cluster={cluster}", f"--node-locations={job.zone}"),
            *(f"--machine-type={machine}", f"--num-nodes={job.place.num_hosts}"),
            "--scopes=gke-default,storage-full",  # pods write to the bucket
            *(*several, *job.spot_flag),
        ),
        command(
            *("gcloud", "container", "clusters", "get-credentials", cluster, *region)
        ),
        "# Install JobSet once; its installation page says which version fits.",
    ]
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
    return {
        "create": "\n".join(create),
        "setup": image(job),
        "run": f"kubectl apply --filename {beside(file)}",
        "watch": command("kubectl", "logs", pods, "--follow", "--tail=50"),
        "resume": f"kubectl delete --ignore-not-found --filename {beside(file)}"
        '\n"$0" run',
        "delete": f"kubectl delete --filename {beside(file)}"
        + "\n"
        + command(
            *("gcloud", "container", "clusters", "delete", cluster, *region, "--quiet")
        ),
    }
