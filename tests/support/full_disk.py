"""A disk that is full, for files that are written with `open`."""

import errno


class FullDisk:
    """Opens files that take `room` more bytes in all, then fail as a full disk does."""

    def __init__(self, room):
        self.room = room

    def open(self, path, mode, buffering=-1):
        disk = self
        file = open(path, mode, buffering=buffering)  # noqa: SIM115

        class File:
            def write(self, data):
                fits = bytes(data)[: disk.room]
                disk.room -= len(fits)
                written = file.write(fits)
                # Without a buffer a full disk shows as a short write first.
                if not fits or (buffering and len(fits) < len(data)):
                    raise OSError(errno.ENOSPC, "No space left on device")
                return written

            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

        return File()
