#!/usr/bin/env python3
"""Compares `social-reward` with transformers on a random CLIP ViT-L/14 at its real size.

    python scripts/compare-real-size.py FOLDER --binary target/release/social-reward

Writes the model (1.7 GB) and a few images into FOLDER, then checks that
  1. `reward score` agrees with transformers to 1e-4 on images that need no resize; images that do are printed beside,
     since they also carry the difference between two bicubic resizes;
  2. a folder from `reward export --format hf` opens in transformers with every tensor equal to the bit.
Needs transformers, openai-clip, Pillow. Exit 0: both hold; 1: one does not; 2: there is no binary to compare.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import clip
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "golden"))
from random_weights import randomise  # noqa: E402

TOLERANCE = 1e-4
PROMPTS = ["", "a cat", "An oil painting of a lighthouse in a storm, dramatic light", "a dog running " * 40]
SIZES = {"exact-0.png": (224, 224), "exact-1.png": (224, 224), "wide.jpg": (640, 360), "tall.jpg": (300, 900)}


def random_model(blocks: int | None) -> CLIPModel:
    """ViT-L/14 with random weights; `blocks` cuts both towers short for a quick run."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision["num_hidden_layers"], text["num_hidden_layers"] = (blocks, blocks) if blocks else (24, 12)
    model = CLIPModel(CLIPConfig(projection_dim=768, vision_config=vision, text_config=text)).eval()
    randomise(model, seed=0, logit_scale=4.6)
    return model


def write_images(folder: Path) -> None:
    """Soft colour fields with fine grain, each unlike the others."""
    generator = torch.Generator().manual_seed(1)
    for name, (width, height) in SIZES.items():
        coarse = torch.randint(256, [1, 3, 4, 4], generator=generator).float()
        field = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
        grain = 15 * torch.randn(field.shape, generator=generator)
        Image.fromarray((field + grain).clamp(0, 255).to(torch.uint8).numpy()).save(folder / name, quality=90)


@torch.no_grad()
def reference_scores(model: CLIPModel, folder: Path) -> dict[tuple[str, str], float]:
    preprocess = clip.clip._transform(224)
    pixels = torch.stack([preprocess(Image.open(folder / name)) for name in SIZES])
    token_ids = clip.tokenize(PROMPTS, truncate=True).long()
    image = model.get_image_features(pixel_values=pixels).pooler_output
    text = model.get_text_features(input_ids=token_ids).pooler_output
    cosine = torch.nn.functional.cosine_similarity(text[:, None], image[None], dim=-1)
    return {(prompt, name): cosine[i, j].item() for i, prompt in enumerate(PROMPTS) for j, name in enumerate(SIZES)}


def compare_scores(binary: Path, model: Path, folder: Path, reference: dict) -> bool:
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": prompt, "path": name}) + "\n" for prompt, name in reference))
    command = [binary, "reward", "score", "--model", model, "--manifest", manifest, "--json"]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ours = {(row["prompt"], row["path"]): row["score"] for row in rows}
    assert ours.keys() == reference.keys(), "the answers name other prompts and paths than the manifest"

    def largest_difference(names: list[str]) -> float:
        return max(abs(ours[key] - score) for key, score in reference.items() if key[1] in names)

    exact = largest_difference([name for name in SIZES if name.startswith("exact")])
    resized = largest_difference([name for name in SIZES if not name.startswith("exact")])
    print(f"score: largest difference {exact:.2e} (limit {TOLERANCE:.0e}); with resized images {resized:.2e}")
    return exact <= TOLERANCE


def compare_export(binary: Path, model: Path, folder: Path) -> bool:
    exported = folder / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    command = [binary, "reward", "export", "--model", model, "--format", "hf", "--output", exported]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ours, original = (CLIPModel.from_pretrained(path).state_dict() for path in (exported, model))
    different = [key for key in original if not torch.equal(original[key], ours[key])]
    print(f"export: {len(original) - len(different)} of {len(original)} tensors equal to the bit", *different[:5])
    return not different


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model and images are written")
    parser.add_argument("--binary", type=Path, default=Path("target/release/social-reward"))
    parser.add_argument("--blocks", type=int, help="blocks a tower, for a quick run (default: 24 and 12)")
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_images(arguments.folder)
    model = random_model(arguments.blocks)
    model.save_pretrained(arguments.folder / "model")
    reference = reference_scores(model, arguments.folder)
    del model
    print(f"transformers: {len(reference)} scores from {min(reference.values()):.4f} to {max(reference.values()):.4f}")
    if not arguments.binary.is_file():
        print(f"no binary at {arguments.binary}: nothing was compared", file=sys.stderr)
        sys.exit(2)
    holds = [
        compare_scores(arguments.binary, arguments.folder / "model", arguments.folder, reference),
        compare_export(arguments.binary, arguments.folder / "model", arguments.folder),
    ]
    sys.exit(0 if all(holds) else 1)
