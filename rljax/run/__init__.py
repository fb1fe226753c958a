"""The run loop on the host: training, checkpoints, records, display, and how it stops.

To change: `shown` (what is displayed), `writer` (where records go), the numbers in
`fault`. A run's files are a format that old runs are read with: see `record`, `run_dir`
and `checkpoint_folder`. This package knows files, clocks and signals. It must not know
methods, models or tasks.
"""
