"""predict.py: a short program beside an ONNX file that labels images with it, without das3 and PyTorch."""

from __future__ import annotations

__all__ = ["PREDICT"]

PREDICT = '''"""Label images with {file}: `python predict.py IMAGE …` writes IMAGE.labels.png.

Needs onnxruntime, Pillow and NumPy alone.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

file = Path(__file__).with_name("{file}")
session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
about = json.loads(session.get_modelmeta().custom_metadata_map["das3"])
for name in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert(about["mode"])
    height, width = about["image_size"] or (image.height, image.width)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32).reshape(height, width, -1)
    output = session.run(None, {{"images": pixels.transpose(2, 0, 1)[None] / 255}})[0][0]
    labels = Image.fromarray(output if output.ndim == 2 else output.argmax(axis=0).astype(np.uint8))
    labels.putpalette(about["colors"])
    labels.resize(image.size, Image.Resampling.NEAREST).save(f"{{name}}.labels.png")
    print(f"{{name}}.labels.png:", ", ".join(about["classes"][i] for i in np.unique(labels)))
'''
