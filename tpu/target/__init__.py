"""Where a run can be launched: a module each, `files(job)` -> text by file name.

Nothing here is run by rljax: the files are for a person to read and start.

    queued    a queued resource: Google Cloud gives TPU VMs when it has some
    tpu_vm    TPU VMs, now or not at all
    xpk       GKE by Google's xpk: clusters and workloads
    jobset    GKE by kubectl: a JobSet
    skypilot  a managed job of SkyPilot: TPUs or GPUs of any cloud
    slurm     GPUs of a cluster that SLURM manages
"""
