from __future__ import annotations

import errno

import pytest

from qat.errors import ExportError
from qat.files import explained_disk, replacing, write_text


def test_a_file_appears_whole(tmp_path):
    with replacing(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
        assert temporary.suffix == ".txt"
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_an_error_leaves_the_previous_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "previous")
    with pytest.raises(ZeroDivisionError, match="division"), replacing(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "previous"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*a.txt: .*Choose a folder"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_a_full_disk_that_another_writer_meets():
    said = r"cannot write events\.out: No space left on device\. Free some space"
    with pytest.raises(ExportError, match=said), explained_disk():
        raise OSError(errno.ENOSPC, "No space left on device", "events.out")
    with pytest.raises(FileNotFoundError), explained_disk():
        raise FileNotFoundError(errno.ENOENT, "No such file")
