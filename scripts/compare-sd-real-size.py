#!/usr/bin/env python3
"""Compares `social-reward diffusion generate` with diffusers on random Stable Diffusion 1.5 and 2.1-base at their real sizes.

    python scripts/compare-sd-real-size.py FOLDER [target/release/social-reward]

Writes each model (4.3 and 5.2 GB) into FOLDER, denoises the same latents of 16 x 16 on both sides, and compares the latents
that come out after one DDIM step without guidance, which is the UNet's output times a number plus a constant, and after four
with it. Needs torch, diffusers, transformers, safetensors. Exit 0: all agree to 1e-4 relative; 1: some do not.
"""

import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-4
PROMPT = "a red fox in the snow"
folder = Path(sys.argv[1]).resolve()
binary = Path(sys.argv[2] if len(sys.argv) > 2 else "target/release/social-reward").resolve()
folder.mkdir(parents=True, exist_ok=True)
latents = torch.randn([1, 4, 16, 16], generator=torch.Generator().manual_seed(0))
save_file({"latents": latents}, folder / "latents.safetensors")
failed = False


def run(*arguments):
    subprocess.run([binary, "diffusion", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


for name in ("sd15", "sd21-base"):
    model = folder / name
    if not model.exists():
        run("export", "--model", f"random:{name}", "--output", model)
    found = {}
    for steps, guidance in ((1, 1.0), (4, 7.5)):
        case = f"{name}-{steps}"
        out = folder / f"{case}.safetensors"
        run("generate", "--model", model, "--prompt", PROMPT, "--steps", steps, "--guidance-scale", guidance,
            "--height", 128, "--width", 128, "--device", "cpu", "--latents", folder / "latents.safetensors",
            "--save-final-latents", out, "--output", folder / case)
        found[steps, guidance] = load_file(out)["latents"]
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for (steps, guidance), ours in found.items():
        theirs = pipeline(PROMPT, num_inference_steps=steps, guidance_scale=guidance, height=128, width=128,
                          latents=latents.clone(), output_type="latent").images
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        verdict = "ok" if difference <= TOLERANCE else "TOO LARGE"
        print(f"{name}, {steps} step(s), guidance {guidance}: {difference:.1e} of at most {TOLERANCE:.0e}  {verdict}")
        failed |= difference > TOLERANCE
    del pipeline
sys.exit(failed)
