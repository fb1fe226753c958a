"""Writes files such that a kill or a full disk leaves them intact."""

import os
import pathlib


class AppendFile:
    """Appends bytes to a file; a full disk leaves no partial append behind.

    Bytes that cannot be written are kept in memory, and the next append writes them
    first. So a temporary outage loses nothing.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file = None
        self._end = 0
        self._waiting = b""

    def append(self, data: bytes) -> None:
        """Appends to the file without buffering.

        Raises:
          OSError: if the data cannot be written now; they are kept for the next append.
        """
        self._waiting += data
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            self._end = os.fstat(self._file.fileno()).st_size
        os.ftruncate(self._file.fileno(), self._end)  # removes a failed partial append
        rest = memoryview(self._waiting)
        while rest:  # a disk that gets full first writes only a part
            rest = rest[self._file.write(rest) :]
        self._end += len(self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """Waits until the appended data are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Replaces a file atomically: a kill or a full disk leaves the old or the new one.

    Raises:
      OSError: if the new file cannot be written; the old one is unchanged.
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
