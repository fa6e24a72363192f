from __future__ import annotations

import pytest

from qat.errors import ExportError
from qat.files import replacing, write_text


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
