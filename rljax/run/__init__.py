"""The host loop: training with checkpoints, records, a display, and how a run stops.

Knows files, clocks and signals; knows no method, model or task.
"""
