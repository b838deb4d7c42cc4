"""Times the UNet's forward pass or the VAE's decoder of a diffusers folder in PyTorch's eager mode, in float32.

    python benches/peers/stable_diffusion.py FOLDER unet|vae

Inputs as in benches/stable_diffusion.rs. Prints one JSON line: seconds by the side of the latents, the best of three
runs after one that does not count.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("part", choices=["unet", "vae"])
parser.add_argument("--threads", type=int, default=2)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)

part = arguments.folder / arguments.part
if arguments.part == "unet":
    unet = UNet2DConditionModel.from_pretrained(part, torch_dtype=torch.float32).eval()
    context = torch.randn(2, 77, unet.config.cross_attention_dim)
    sides, run = [16, 32, 64], lambda side: unet(torch.randn(2, 4, side, side), 481, context)
else:
    vae = AutoencoderKL.from_pretrained(part, torch_dtype=torch.float32).eval()
    sides, run = [32], lambda side: vae.decode(torch.randn(1, 4, side, side))

seconds = {}
with torch.no_grad():
    for side in sides:
        rounds = []
        for _ in range(4):
            start = time.perf_counter()
            run(side)
            rounds.append(time.perf_counter() - start)
        seconds[str(side)] = min(rounds[1:])
print(json.dumps(seconds))
