"""The run loop on the host: training, checkpoints, records, display, and how it stops.

You may change what is displayed (`shown`), where records are written (`writer`), and
when a run stops (`fault`). Keep the formats of a run's files (`record`, `run_dir`,
`checkpoint_folder`), because they must still read old runs. This package knows files,
clocks and signals. It must not know methods, models or tasks.
"""
