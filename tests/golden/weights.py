"""Wrappers that trainers put around a CLIP's weights, and fp8, as PyTorch writes and reads them.

    python tests/golden/weights.py        writes tests/golden/weights/

torch 2.11.0, openai-clip 1.0.1, safetensors 0.8.0. All parameters of the tiny CLIP are parts of one storage, so that the files
are small. See README.md for the files.
"""

import shutil
from collections import OrderedDict
from pathlib import Path

import clip.model
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "weights"
FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def tiny_clip() -> clip.model.CLIP:
    """Every parameter begins at another place of one storage of 16,600 fp16 values."""
    model = clip.model.CLIP(
        embed_dim=24,
        image_resolution=14,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=7,
        context_length=8,
        vocab_size=20,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    ).eval()
    storage = torch.randn(16_600, generator=torch.Generator().manual_seed(20)).half()
    for place, parameter in enumerate(model.parameters()):
        parameter.data = storage[place : place + parameter.numel()].view(parameter.shape)
    return model


def write_wrapped() -> None:
    model = tiny_clip()
    state = model.state_dict()
    prefixed = lambda prefix: OrderedDict((prefix + key, value) for key, value in state.items())
    averaged = OrderedDict(n_averaged=torch.tensor(7)) | OrderedDict(
        (f"module.{key}", value + 1 if key == "logit_scale" else value) for key, value in state.items()
    )
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    beside = {"optimizer": optimizer.state_dict(), "loss": torch.tensor(0.25), "rng": torch.get_rng_state(), "epoch": 3}
    torch.save(state, FOLDER / "plain.pt")
    torch.save(model, FOLDER / "module.pt")
    torch.save({"net": dict(model.named_parameters()), **beside}, FOLDER / "parameters.pt")
    torch.save({"trainer": {"state_dict": prefixed("clip._orig_mod.")}, **beside}, FOLDER / "lightning.pt")
    torch.save(averaged, FOLDER / "averaged.pt")
    torch.save({"model": prefixed("module."), "model_ema": averaged, **beside}, FOLDER / "ema.pt")


def write_fp8() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    tensors = {}
    for name, kind in FP8.items():
        tensors[name] = codes.clone().view(kind)
        tensors[f"{name}_as_float"] = codes.view(kind).float()
    save_file(tensors, FOLDER / "fp8.safetensors")
    finite = {name: codes.view(kind)[codes.view(kind).float().isfinite()] for name, kind in FP8.items()}
    torch.save(finite, FOLDER / "fp8.pt")
    save_file(finite, FOLDER / "fp8_finite.safetensors")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    write_wrapped()
    write_fp8()
