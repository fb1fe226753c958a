"""Files that a kill or a full disk leaves whole."""

import os
import pathlib


class AppendFile:
    """Appends bytes to a file and leaves no torn piece when the disk is full.

    What cannot be written waits in memory and is written first at the next append. So
    an outage that ends loses nothing.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file = None
        self._end = 0
        self._waiting = b""

    def append(self, data: bytes) -> None:
        """Appends to the file and hands it to the operating system.

        Raises:
          OSError: if it cannot be written now; it is kept for the next append.
        """
        self._waiting += data
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            self._end = os.fstat(self._file.fileno()).st_size
        os.ftruncate(self._file.fileno(), self._end)  # what a failed append left
        rest = memoryview(self._waiting)
        while rest:  # a full disk shows as a short write first
            rest = rest[self._file.write(rest) :]
        self._end += len(self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """Waits until the disk has what was appended."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file in one piece: a kill or a full disk leaves the old or the new one.

    Raises:
      OSError: if it cannot be written; the old file is there and no part of the new.
    """
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
