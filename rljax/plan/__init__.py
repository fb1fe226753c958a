"""Estimates the arithmetic, memory and time of a run before it starts.

    cost     the arithmetic of a step, and the memory of its compiled program
    machine  the memory and rates of this machine
    peak     the memory of a whole run
    hlo      what a compiled program moves between devices
    show     prints all of it, for --plan

Whatever can be read off a `Program` belongs here. Nothing here runs one, or knows an
experiment's configuration.
"""
