"""What a run takes, known before it runs: arithmetic, memory and time.

    cost     arithmetic at the least, that of the traced program, memory of the compiled
    machine  what this machine has and does
    peak     the memory of a whole run
    hlo      what a compiled program moves between devices
    show     all of it as text, for --plan

What else can be read off a `Program` belongs here. Nothing here runs one, nor knows an
experiment's configuration.
"""
