"""Tiny random CLIP models in every layout that users have, each with the embeddings its own library computes.

    python tests/golden/clip_models.py        writes tests/golden/clip/

transformers 5.23.0, openai-clip 1.0.1, open_clip_torch 3.3.0, torch 2.11.0. The script is not called clip.py because
it would hide openai-clip's package `clip` from every script in this folder. See README.md for the files and their keys.
"""

import io
import json
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path

import clip.model
import open_clip.model
import torch
from random_weights import random_pixels, randomise
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

FOLDER = Path(__file__).parent / "clip"
CONTEXT_LENGTH = 16
LOGIT_SCALE = 3.2
MARKER_OF_EXECUTION = "unpickled-code-was-executed"


def token_rows(vocabulary: int, end: int, pad: int, inner: list[int]) -> torch.Tensor:
    """Rows [T, 16] of growing length: start, words, `end`, then `pad`. `inner` are ids put among the words that a
    wrong pooling rule would fall for. The first row is the empty prompt, the last fills the context."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.full([6, CONTEXT_LENGTH], pad)
    for row, words in zip(rows, [0, 1, 3, 6, 10, CONTEXT_LENGTH - 2]):
        row[0] = vocabulary - 2
        row[1 : words + 1] = torch.randint(3, vocabulary - 12, [words], generator=generator)
        row[2 : 2 + min(len(inner), words - 1)] = torch.tensor(inner[: max(words - 1, 0)])
        row[words + 1] = end
    return rows


def write_expected(name: str, model: torch.nn.Module, encode_text, encode_image, token_ids: torch.Tensor) -> None:
    """Writes inputs and embeddings, after making sure that they say something and that float32 resolves them."""
    pixels = random_pixels(3, seed=11)
    with torch.no_grad():
        model.double()
        text64, image64 = encode_text(token_ids), encode_image(pixels.double())
        model.float()
        text, image = encode_text(token_ids), encode_image(pixels)

    def unit(embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    for embeddings, exact in ((text, text64), (image, image64)):
        error = (embeddings - exact).abs().max().item()
        assert error < 1.5e-6, f"{name}: float32 is {error} off float64"
        similarity = unit(embeddings) @ unit(embeddings).T - 2 * torch.eye(len(embeddings))
        assert similarity.max() < 0.95, f"{name}: different inputs look alike: {similarity.max()}"
    expected = {
        "pixel_values": pixels,
        "input_ids": token_ids,
        "text_embeds": text,
        "image_embeds": image,
        "text_embeds_unit": unit(text),
        "image_embeds_unit": unit(image),
        "logits_per_text": model.logit_scale.exp().detach() * unit(text) @ unit(image).T,
    }
    save_file({key: value.contiguous() for key, value in expected.items()}, FOLDER / f"{name}.expected.safetensors")


def hugging_face_config(activation: str, end: int, vision: dict = {}, text: dict = {}) -> CLIPConfig:
    return CLIPConfig(
        projection_dim=24,
        logit_scale_init_value=LOGIT_SCALE,
        vision_config={
            "image_size": 28,
            "patch_size": 7,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 5,
            "intermediate_size": 64,
            "hidden_act": activation,
            "projection_dim": 24,
        }
        | vision,
        text_config={
            "vocab_size": 200,
            "max_position_embeddings": CONTEXT_LENGTH,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "intermediate_size": 48,
            "hidden_act": activation,
            "projection_dim": 24,
            "bos_token_id": 198,
            "eos_token_id": end,
            "pad_token_id": end,
        }
        | text,
    )


def write_hugging_face(name: str, activation: str, end: int, token_ids: torch.Tensor, seed: int) -> CLIPModel:
    model = CLIPModel(hugging_face_config(activation, end)).eval()
    randomise(model, seed, LOGIT_SCALE)
    model.save_pretrained(FOLDER / name)
    model = CLIPModel.from_pretrained(FOLDER / name).eval()
    write_expected(
        name,
        model,
        lambda ids: model.get_text_features(input_ids=ids).pooler_output,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        token_ids,
    )
    return model


def write_old_hugging_face(seed: int) -> None:
    """A folder as transformers 4 saved it: `position_ids` among the tensors, `torch_dtype`, most fields left to their
    defaults, and the wrong `eos_token_id` 2 of configs before transformers 4.31, which means: pool at the highest id."""
    name = "hf_old_eos"
    token_ids = token_rows(200, end=199, pad=0, inner=[2, 2])
    model = write_hugging_face(name, "quick_gelu", 2, token_ids, seed)
    tensors = load_file(FOLDER / name / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(CONTEXT_LENGTH)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, FOLDER / name / "model.safetensors", metadata={"format": "pt"})
    config = {
        "_name_or_path": "tiny/",
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_size": 24,
            "intermediate_size": 48,
            "max_position_embeddings": CONTEXT_LENGTH,
            "model_type": "clip_text_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "pad_token_id": 1,
            "vocab_size": 200,
        },
        "text_config_dict": None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {
            "hidden_size": 32,
            "image_size": 28,
            "intermediate_size": 64,
            "model_type": "clip_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 5,
            "patch_size": 7,
        },
        "vision_config_dict": None,
    }
    (FOLDER / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    reopened = CLIPModel.from_pretrained(FOLDER / name).eval()
    with torch.no_grad():
        again = reopened.get_text_features(input_ids=token_ids).pooler_output
        assert torch.equal(again, model.get_text_features(input_ids=token_ids).pooler_output)


def openai_model(vision_width: int, vision_layers: int, text_layers: int, vocabulary: int, seed: int) -> clip.model.CLIP:
    model = clip.model.CLIP(
        embed_dim=24,
        image_resolution=28,
        vision_layers=vision_layers,
        vision_width=vision_width,
        vision_patch_size=7,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocabulary,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=text_layers,
    ).eval()
    randomise(model, seed, LOGIT_SCALE)
    return model


def halved(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.half() for key, value in model.state_dict().items()}


def write_openai(seed: int) -> None:
    """One model with 2 vision heads: a plain .pt and .safetensors in fp32, and wrapped in fp16 under `module.`."""
    model = openai_model(vision_width=128, vision_layers=1, text_layers=2, vocabulary=100, seed=seed)
    token_ids = token_rows(100, end=99, pad=0, inner=[])
    torch.save(model.state_dict(), FOLDER / "openai.pt")
    save_file(model.state_dict(), FOLDER / "openai.safetensors")
    write_expected("openai", model, model.encode_text, model.encode_image, token_ids)
    half = halved(model)
    wrapped = {"state_dict": {f"module.{key}": value for key, value in half.items()}}
    torch.save(wrapped, FOLDER / "openai_fp16_wrapped.pt")
    model.load_state_dict(half)
    write_expected("openai_fp16_wrapped", model, model.encode_text, model.encode_image, token_ids)


class Executed:
    """Pickles as a call of `os.system`; a reader that executes pickles leaves the marker file behind."""

    def __reduce__(self):
        return os.system, (f"touch {MARKER_OF_EXECUTION}",)


def lightning_module() -> types.ModuleType:
    """A stand-in for `pytorch_lightning`, so that a checkpoint can hold its classes without the package."""
    module = types.ModuleType("pytorch_lightning")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning"})
    return module


def write_openai_small(seed: int) -> None:
    """One fp16 model in the odd containers: legacy, Lightning, TorchScript; and two pickles that want to run code."""
    model = openai_model(vision_width=64, vision_layers=2, text_layers=1, vocabulary=80, seed=seed)
    token_ids = token_rows(80, end=79, pad=0, inner=[])
    half = halved(model)
    model.load_state_dict(half)
    torch.save(half, FOLDER / "openai_small_legacy.pt", _use_new_zipfile_serialization=False)

    lightning = sys.modules["pytorch_lightning"] = lightning_module()
    callback = lightning.ModelCheckpoint()
    callback.best_model_score = 0.7
    torch.save(
        {
            "epoch": 3,
            "global_step": 120,
            "pytorch-lightning_version": "2.2.0",
            "state_dict": half,
            "callbacks": {"ModelCheckpoint": callback},
            "hyper_parameters": lightning.AttributeDict(learning_rate=3e-5),
        },
        FOLDER / "openai_small_lightning.ckpt",
    )

    torch.save(Executed(), FOLDER / "malicious.pt")
    torch.save({"visual.proj": half["visual.proj"], "logit_scale": Executed()}, FOLDER / "malicious_tensor.pt")

    write_expected("openai_small", model, model.encode_text, model.encode_image, token_ids)
    # As OpenAI's own archives: traced, fp16 matrices, and three sizes among the buffers.
    for key, size in {"input_resolution": 28, "context_length": CONTEXT_LENGTH, "vocab_size": 80}.items():
        if hasattr(model, key):
            delattr(model, key)
        model.register_buffer(key, torch.tensor(size))
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 28, 28), token_ids[:1]))
    clip.model.convert_weights(model)
    archive = io.BytesIO()
    torch.jit.save(traced, archive)
    with (
        zipfile.ZipFile(archive) as full,
        zipfile.ZipFile(FOLDER / "openai_small_torchscript.pt", "w") as stripped,
    ):
        for entry in full.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # these name the paths of the machine that ran this script
                stripped.writestr(entry, full.read(entry))


def open_clip_configs(width: int, layers: int, heads: int):
    vision = open_clip.model.CLIPVisionCfg(
        layers=layers, width=width, head_width=width // heads, mlp_ratio=2.0, patch_size=7, image_size=28
    )
    text = open_clip.model.CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=120, width=width, heads=heads, layers=layers, mlp_ratio=2.0
    )
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}


def write_open_clip(seed: int) -> None:
    """Three models. Widths of 32 with 2 heads cannot be told from shapes: `open_clip_config/` is the config to name."""
    token_ids = token_rows(120, end=119, pad=0, inner=[])
    models = {
        "open_clip_gelu": open_clip.model.CLIP(**open_clip_configs(32, 2, 2), quick_gelu=False),
        "open_clip_quick_gelu": open_clip.model.CLIP(**open_clip_configs(64, 1, 1), quick_gelu=True),
        "open_clip_custom_text": open_clip.model.CustomTextCLIP(**open_clip_configs(32, 2, 2), quick_gelu=False),
    }
    for offset, (name, model) in enumerate(models.items()):
        model.eval()
        randomise(model, seed + offset, LOGIT_SCALE)
        state = model.state_dict()
        if name == "open_clip_gelu":  # as open_clip's own trainer writes it under DistributedDataParallel
            optimizer = torch.optim.AdamW([model.logit_scale])
            state = {
                "epoch": 1,
                "name": "tiny",
                "state_dict": {f"module.{key}": value for key, value in state.items()},
                "optimizer": optimizer.state_dict(),
            }
        torch.save(state, FOLDER / f"{name}.pt")
        write_expected(name, model, model.encode_text, model.encode_image, token_ids)
    layers = {"num_hidden_layers": 2, "intermediate_size": 64, "hidden_size": 32}
    text = layers | {"vocab_size": 120, "bos_token_id": 118, "pad_token_id": 0}
    hugging_face_config("gelu", 119, vision=layers, text=text).save_pretrained(FOLDER / "open_clip_config")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # openai-clip's LayerNorm only adds a cast to float32, which the float64 check cannot have.
    clip.model.LayerNorm.forward = torch.nn.LayerNorm.forward
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    write_hugging_face("hf_quick_gelu", "quick_gelu", 199, token_rows(200, end=199, pad=199, inner=[]), seed=1)
    # The end token is not the highest id here: a higher one stands before it.
    write_hugging_face("hf_gelu", "gelu", 190, token_rows(200, end=190, pad=0, inner=[197, 2]), seed=2)
    write_old_hugging_face(seed=3)
    write_openai(seed=4)
    write_openai_small(seed=5)
    write_open_clip(seed=6)
    assert not Path(MARKER_OF_EXECUTION).exists()
