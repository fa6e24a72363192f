"""`python train.py --help`: every key that it names is one, and its examples compose."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
TEMPLATE = yaml.safe_load((ROOT / "conf" / "hydra" / "help" / "qat.yaml").read_text())["template"]
KEYS = re.findall(r"^  ([a-z_.]+)=\S+ ", TEMPLATE, re.MULTILINE)
EXAMPLES = re.findall(r"^  python train.py (?!\[)(.*)$", TEMPLATE, re.MULTILINE)


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=["run_dir=/nowhere", *overrides])


def test_there_are_ten_keys_and_three_examples():
    assert (len(KEYS), len(EXAMPLES)) == (10, 3)


def test_every_key_is_one():
    cfg = composed("data=image_folder")
    for key in KEYS:
        section, _, name = key.rpartition(".")
        assert name in list(OmegaConf.select(cfg, section) if section else cfg), key


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_composes(example):
    composed(*(re.sub(r",\w+", "", word) for word in shlex.split(example) if not word.startswith("-")))


def test_help_lists_the_groups_and_does_without_torch(tmp_path):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        capture_output=True, text=True, cwd=tmp_path, timeout=100,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "hydra" in imported
    assert "torch" not in imported  # ten seconds of each completion in the shell
    assert "quant: w2a2_lsq, w3a3_lsq" in process.stdout
    assert "Examples" in process.stdout
    assert not list(tmp_path.iterdir())
