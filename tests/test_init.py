"""`import qat` offers every public name, whatever was imported before, and takes no time."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import qat

CASES = {
    "nothing is loaded before it is used": "import sys, qat; assert 'torch' not in sys.modules",
    "verbs are functions though modules have their names": """
import qat.convert, qat.verify, qat.training
import qat
assert all(type(f).__name__ == "function" for f in (qat.convert, qat.verify, qat.export, qat.calibrate))
from qat import convert, verify
assert convert is qat.convert and verify is qat.verify
""",
    "modules are attributes": "import qat; assert qat.errors.QatError and qat.presets.preset_names('quant')",
}


@pytest.mark.parametrize("code", CASES.values(), ids=list(CASES))
def test_in_a_process_of_its_own(code):
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", qat.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qat, name).__name__ == name
    assert name in dir(qat)


def test_every_public_name_has_a_home():
    assert set(qat.__all__) == set(qat._HOMES)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'qat' has no attribute 'quantise'"):
        _ = qat.quantise


def test_the_package_goes_to_other_processes_by_its_name():
    assert pickle.loads(pickle.dumps(qat)) is qat
