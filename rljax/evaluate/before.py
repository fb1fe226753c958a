"""The test of the policy that a run's last stage begins with, kept for the tables.

That policy is tested once, when it is there. If the disk is full the result waits in
memory, and every later evaluation tries to write it again.
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
    """Keeps the result in a run folder over kills, resumes and full disks."""

    def __init__(self, run_dir: pathlib.Path):
        self.folder, self._path = run_dir, run_dir / FILE
        self._waiting: Stage | None = None
        self._failing = False

    def keep(self, stage: Stage) -> None:
        """Takes the result and writes it down if that is possible now."""
        self._waiting = stage
        self.write()

    def write(self) -> None:
        """Writes down what waits, if something does; says when it begins to fail."""
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
        """The result; None, with a word, if a kill came before it could be written.

        What waits in memory is newer than any file.
        """
        if self._waiting is not None:
            return self._waiting
        try:
            with np.load(io.BytesIO(self._path.read_bytes())) as file:
                return Stage(file["correct"], file["greedy"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self._path}: {error}; the table has only the last stage")
            return None
