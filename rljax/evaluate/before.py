"""Keeps the test result of the policy that a run's last stage begins with.

This policy is tested once, before the last stage; the final tables compare with it. If
the disk is full, the result is kept in memory, and every later evaluation tries again
to write it.
"""

import io
import pathlib
import zipfile

import numpy as np

from rljax import processes
from rljax.evaluate.estimate import Stage
from rljax.run import files

FILE = "before.npz"


class Before:
    """Keeps the result in a run folder through kills, resumes and full disks."""

    def __init__(self, run_dir: pathlib.Path):
        self.folder, self._path = run_dir, run_dir / FILE
        self._waiting: Stage | None = None
        self._failing = False

    def keep(self, stage: Stage) -> None:
        """Takes the result and tries to write it."""
        self._waiting = stage
        self.write()

    def write(self) -> None:
        """Writes a result that is not written yet; prints the first of failures."""
        if self._waiting is None or not processes.leads():
            return
        file = io.BytesIO()
        np.savez(file, correct=self._waiting.correct, greedy=self._waiting.greedy)
        try:
            files.replace_file(self._path, file.getvalue())
        except OSError as error:
            if not self._failing:
                print(f"{self._path}: {error}; kept in memory for later")
            self._failing = True
            return
        self._waiting, self._failing = None, False

    def read(self) -> Stage | None:
        """The result; None, with a message, if a kill came before it was written.

        A result in memory is newer than the file.
        """
        if self._waiting is not None:
            return self._waiting
        try:
            with np.load(io.BytesIO(self._path.read_bytes())) as file:
                return Stage(file["correct"], file["greedy"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self._path}: {error}; the table has only the last stage")
            return None
