"""Targets to launch a run on: one module each, with `files(job)` -> text by file name.

rljax runs none of these files: a person reads and starts them.

    queued    a queued resource: Google Cloud makes TPU VMs as soon as it has chips
    tpu_vm    TPU VMs without a queue: creation fails if there are no chips
    xpk       GKE with Google's xpk
    jobset    GKE with kubectl and a JobSet
    skypilot  a managed job of SkyPilot: TPUs or GPUs of any cloud
    slurm     GPUs of a cluster with SLURM
"""
