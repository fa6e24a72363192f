"""Classify a picture with an exported int8 file: onnxruntime, numpy and Pillow, nothing of this package.

    python classify.py int8.onnx picture.png

The file's metadata holds `preprocessing`: JSON with `size` [H, W], `resize` (the shorter side before the centre is cut
out; null brings the picture to `size` as a whole), `interpolation`, `mean` and `std` of each channel, and `classes`.
"""

import json
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image


def resized(image: Image.Image, height: int, width: int, shorter: int | None, interpolation: str) -> Image.Image:
    """The picture in the size that the model takes."""
    method = Image.Resampling[interpolation.upper()]
    if shorter is None:
        return image.resize((width, height), method)
    image = image.resize(tuple(shorter * side // min(image.size) for side in image.size), method)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def main(model: str, picture: str) -> None:
    """Print the five likeliest classes with their logits."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    if "preprocessing" not in metadata:
        sys.exit(f"{model} does not say how its input is prepared: its metadata has no `preprocessing`")
    about = json.loads(metadata["preprocessing"])
    image = resized(Image.open(picture).convert("RGB"), *about["size"], about["resize"], about["interpolation"])
    pixels = np.asarray(image, np.float32) / 255  # [H, W, 3]
    mean, std = (np.asarray(about[key], np.float32) for key in ("mean", "std"))
    x = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)  # [1, 3, H, W]
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})[0]
    for i in np.argsort(-logits)[:5]:
        print(f"{about['classes'][i]}\t{logits[i]:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python classify.py MODEL.onnx PICTURE")
    main(*sys.argv[1:])
