"""Images per second of openai-clip's own preprocessing on PIL and torchvision: decode, resize, crop, convert to RGB.

    python benches/peers/decode.py FOLDER_OF_JPEGS [--size 224] [--rounds 3]

One thread; the files are read once before, so the disk is not measured. Prints {"images_per_second": ..}, the best
round. ToTensor and Normalize are left out, as they are from reward/examples/decode_bench.rs.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from clip.clip import _transform
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--rounds", type=int, default=3)
arguments = parser.parse_args()

torch.set_num_threads(1)
steps = _transform(arguments.size).transforms[:3]
files = sorted(arguments.folder.glob("*.jpg"))
for file in files:
    file.read_bytes()

best = 0.0
for _ in range(arguments.rounds):
    start = time.perf_counter()
    for file in files:
        picture = Image.open(file)
        for step in steps:
            picture = step(picture)
    best = max(best, len(files) / (time.perf_counter() - start))
print(json.dumps({"images_per_second": round(best, 1)}))
