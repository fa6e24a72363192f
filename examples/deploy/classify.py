"""Classify a picture with an exported int8 file: onnxruntime, numpy and Pillow, nothing of this package.

    python classify.py int8.onnx picture.png

The file's metadata holds `preprocessing`: JSON with size [H, W], mean and std of each channel, and class names.
"""

import json
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image


def main(model: str, picture: str) -> None:
    """Print the five likeliest classes with their logits."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    if "preprocessing" not in metadata:
        sys.exit(f"{model} does not say how its input is prepared: its metadata has no `preprocessing`")
    about = json.loads(metadata["preprocessing"])
    height, width = about["size"]
    image = Image.open(picture).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255  # [H, W, 3]
    mean, std = (np.asarray(about[key], np.float32) for key in ("mean", "std"))
    x = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)  # [1, 3, H, W]
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})[0]
    for i in np.argsort(-logits)[:5]:
        print(f"{about['classes'][i]}\t{logits[i]:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
