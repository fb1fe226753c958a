"""Files on good disks and full ones."""

import os

import pytest
from full_disk import FullDisk

from rljax.run import files


def test_a_short_write_is_undone_and_made_up_for(tmp_path, monkeypatch):
    # Room for 7 of 10 bytes. Without the undo the file would read aaaabbbaaaabbbbbb
    # or lose the second record.
    disk = FullDisk(7)
    monkeypatch.setattr(files, "open", disk.open, raising=False)
    file = files.AppendFile(tmp_path / "file")
    file.append(b"aaaa")
    with pytest.raises(OSError, match="No space"):
        file.append(b"bbbbbb")
    with pytest.raises(OSError, match="No space"):
        file.append(b"")
    disk.room = 100
    file.append(b"c")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"aaaabbbbbbc"


def test_replacing_a_file_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.replace_file(path, b"old")
    files.replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    monkeypatch.setattr(files, "open", FullDisk(3).open, raising=False)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(path, b"newer")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
