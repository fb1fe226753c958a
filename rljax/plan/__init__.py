"""What a run takes, known before it runs: arithmetic, memory and time."""
