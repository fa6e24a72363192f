"""The programs of `examples/deploy` as a user runs them, in a process without this package's help."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

import qat

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
ABOUT = {"size": [8, 8], "resize": None, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
HEADERS = (os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")
# Pillow resizes in fixed point: a pixel in the middle between two grey values may fall to either side in C++, and a
# logit then moves by a step or two (0.03 here)
STEPS = 0.1

pytestmark = pytest.mark.runtime
Classify = Callable[[Path, Path], dict[str, float]]


def missing() -> str:
    """What the C++ program cannot be built without; empty when all is there."""
    if shutil.which("g++") is None:
        return "no g++"
    if not any(header and (Path(header) / "onnxruntime_cxx_api.h").is_file() for header in HEADERS):
        return "no headers of onnxruntime; examples/deploy/README.md says where they come from"
    absent = [p for p in ("stb/stb_image.h", "nlohmann/json.hpp") if not (Path("/usr/include") / p).is_file()]
    return f"no {', '.join(absent)}: apt-get install libstb-dev nlohmann-json3-dev" if absent else ""


def run(command: list[str], model: Path, picture: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, str(model), str(picture)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> str:
    """The compiled C++ program."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("classify")
    header = next(h for h in HEADERS if h and (Path(h) / "onnxruntime_cxx_api.h").is_file())
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)  # what the program asks for when it starts
    program = folder / "classify"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
    command = ["g++", "-std=c++17", *warnings, "-isystem", header, str(DEPLOY / "classify.cpp"), str(library)]
    done = subprocess.run([*command, f"-Wl,-rpath,{folder}", "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(program)


@pytest.fixture(params=["python", "c++"])
def command(request) -> list[str]:
    if request.param == "python":
        return [sys.executable, str(DEPLOY / "classify.py")]
    return [request.getfixturevalue("built")]


@pytest.fixture
def exported(small_net, images, tmp_path) -> Callable[..., tuple[torch.fx.GraphModule, Path]]:
    """`exported(**changes)`: the integer model, and its file with that preprocessing."""
    prepared = qat.prepare(small_net, images[:2])
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    file = qat.export(integer, tmp_path / "model.onnx", metadata={"preprocessing": "{}"}).path

    def make(**changes: object) -> tuple[torch.fx.GraphModule, Path]:
        model = onnx.load(file)
        about = next(one for one in model.metadata_props if one.key == "preprocessing")
        about.value = json.dumps({**ABOUT, "classes": CLASSES, **changes})
        onnx.save(model, file)
        return integer, file

    return make


def picture(folder: Path, height: int, width: int) -> tuple[Image.Image, Path]:
    """A smooth picture with some noise, and its file."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / 3), np.cos(columns / 4), np.sin((rows + columns) / 5)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    image = Image.fromarray((128 + 100 * waves + noise).clip(0, 255).astype(np.uint8))
    image.save(folder / "picture.png")
    return image, folder / "picture.png"


def logits(integer: torch.fx.GraphModule, pixels: Tensor) -> dict[str, float]:
    x = (pixels[None].float() / 255 - 0.5) / 0.25
    return dict(zip(CLASSES, integer(x)[0].tolist(), strict=True))


def printed(process: subprocess.CompletedProcess[str]) -> dict[str, float]:
    assert process.returncode == 0, process.stderr
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    assert [float(value) for _, value in lines] == sorted((float(value) for _, value in lines), reverse=True)
    return {name: float(value) for name, value in lines}


def test_picture_of_the_models_size(command, exported, tmp_path):
    integer, file = exported()
    image, path = picture(tmp_path, 8, 8)
    assert printed(run(command, file, path)) == pytest.approx(logits(integer, v2.PILToTensor()(image)), abs=1e-3)


def test_as_the_validation_images_were_prepared(command, exported, tmp_path):
    for interpolation, size in (("nearest", (41, 30)), ("bilinear", (41, 30)), ("bicubic", (9, 23))):
        integer, file = exported(resize=11, interpolation=interpolation)
        image, path = picture(tmp_path, *size)
        prepare = v2.Compose([v2.Resize(11, InterpolationMode(interpolation)), v2.CenterCrop(8), v2.PILToTensor()])
        assert printed(run(command, file, path)) == pytest.approx(logits(integer, prepare(image)), abs=STEPS)
    integer, file = exported()  # no shorter side: as a whole
    small = v2.PILToTensor()(image.resize((8, 8), Image.Resampling.BILINEAR))
    assert printed(run(command, file, path)) == pytest.approx(logits(integer, small), abs=STEPS)


def test_a_picture_smaller_than_what_is_cut_out_of_it(command, exported, tmp_path):
    integer, file = exported(resize=4)
    image, path = picture(tmp_path, 6, 10)
    x = v2.PILToTensor()(image.resize((6, 4), Image.Resampling.BILINEAR))  # [3, 4, 6], black around it
    black = torch.nn.functional.pad(x, (1, 1, 2, 2))
    assert printed(run(command, file, path)) == pytest.approx(logits(integer, black), abs=STEPS)


def test_what_it_says_when_it_cannot(command, exported, small_net, images, tmp_path):
    _, file = exported()
    bare = qat.export(small_net, tmp_path / "float.onnx", (images[:2],)).path
    _, path = picture(tmp_path, 8, 8)
    for arguments, said in (((bare, path), "`preprocessing`"), ((file, file), "picture|identify")):
        process = run(command, *arguments)
        assert process.returncode != 0
        assert any(word in process.stderr for word in said.split("|")), process.stderr
