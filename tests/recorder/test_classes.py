"""Two classifiers whose answers are known: counts, cells and thumbnails follow by hand."""

from __future__ import annotations

import subprocess

import numpy as np
import torch
from PIL import Image

from qat.recorder import record_classes, record_run
from qat.report.record import ClassCount, Confusion

# the label and both answers are written in the first pixels
IMAGES = torch.zeros(4, 3, 8, 8)
IMAGES[:, 0, 0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # float: all right
IMAGES[:, 1, 0, 0] = torch.tensor([0.0, 1.0, 1.0, 1.0])  # int8: the second is wrong
LABELS = torch.tensor([0, 0, 1, 1])


def says(channel: int):
    return lambda x: torch.nn.functional.one_hot(x[:, channel, 0, 0].long(), 2) * 10.0


def test_what_quantization_changed(tmp_path):
    batches = [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])]
    found = record_classes(says(0), says(1), batches, ("cat", "dog"), tmp_path, mean=(0.5,), std=(0.5,))
    assert (found.examples, found.disagreements) == (4, 1)
    assert found.classes == (
        ClassCount(name="cat", count=2, float_correct=2, int8_correct=1),
        ClassCount(name="dog", count=2, float_correct=2, int8_correct=2),
    )
    assert found.confusion == (Confusion(label="cat", predicted="dog", float_count=0, int8_count=1),)
    (image,) = found.images
    assert (image.label, image.float_class, image.int8_class) == ("cat", "cat", "dog")
    pixels = np.asarray(Image.open(tmp_path / image.file))
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == [128, 255, 128]  # 0 * 0.5 + 0.5 and 1 * 0.5 + 0.5


def test_no_more_examples_than_asked_for(tmp_path):
    found = record_classes(says(0), says(1), [(IMAGES, LABELS)] * 2, ("cat", "dog"), tmp_path, examples=3)
    assert found.examples == 3


def test_a_commit_is_told_and_whether_files_differ_from_it(tmp_path):
    assert record_run("python train.py", tmp_path).commit == ""
    who = ["-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "file").write_text("a")
    for arguments in (["init", "-q"], ["add", "file"], [*who, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    clean = record_run("python train.py", tmp_path)
    assert (len(clean.commit), clean.changed) == (40, False)
    (tmp_path / "file").write_text("b")
    assert record_run("python train.py", tmp_path).changed


def test_the_images_that_both_are_surest_of_are_kept(tmp_path):
    sure = torch.linspace(0.1, 5.0, 30)[torch.randperm(30)]  # logit of the class that a model names
    images = torch.zeros(30, 3, 2, 2)
    images[:, 0, 0, 0] = sure

    def names(which: int):
        return lambda x: torch.nn.functional.one_hot(torch.tensor(which), 2) * x[:, 0, :1, 0]

    batches = [(images[i : i + 7], torch.zeros(len(images[i : i + 7]), dtype=torch.long)) for i in range(0, 30, 7)]
    found = record_classes(names(0), names(1), batches, ("cat", "dog"), tmp_path)
    assert found.disagreements == 30
    places = sure.argsort(descending=True).tolist()[:24]
    assert [image.file for image in found.images] == [f"record/images/{place}.png" for place in places]
    assert {path.name for path in (tmp_path / "record" / "images").iterdir()} == {f"{place}.png" for place in places}
