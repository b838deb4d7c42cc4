"""Writes sd_keys.json: every key of a single-file checkpoint (LDM's names) with the key that diffusers' converter gives it.

pip install torch==2.11.0 diffusers==0.42.1 transformers==5.24.0
python tests/golden/sd_keys.py

{"sd1"|"sd2": {"unet"|"vae"|"text_encoder": {"config": {...}, "keys": {LDM key: [[diffusers key, …], [shape]]}}}}; three diffusers keys
are the thirds of a fused tensor. The models are small ones of the same build. That the keys are complete is checked: converted,
they are all of the diffusers model's.
"""

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

RESIDUAL = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]


def both(*names):
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def attention(prefix):
    block = f"{prefix}.transformer_blocks.0"
    keys = both(f"{prefix}.norm", f"{prefix}.proj_in", f"{prefix}.proj_out", *(f"{block}.norm{n}" for n in (1, 2, 3)))
    keys += both(f"{block}.ff.net.0.proj", f"{block}.ff.net.2", f"{block}.attn1.to_out.0", f"{block}.attn2.to_out.0")
    return keys + [f"{block}.attn{n}.to_{part}.weight" for n in (1, 2) for part in "qkv"]


def unet_keys(channels, layers, attends):
    """As ldm/modules/diffusionmodules/openaimodel.py numbers its blocks."""
    keys = both("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    residual = lambda prefix, skip: both(*(f"{prefix}.{name}" for name in RESIDUAL), *([f"{prefix}.skip_connection"] if skip else []))
    at, skips, width = 1, [channels[0]], channels[0]
    for level, out in enumerate(channels):
        for _ in range(layers):
            keys += residual(f"input_blocks.{at}.0", width != out)
            keys += attention(f"input_blocks.{at}.1") if attends[level] else []
            width = out
            skips.append(width)
            at += 1
        if level + 1 < len(channels):
            keys += both(f"input_blocks.{at}.0.op")
            skips.append(width)
            at += 1
    keys += residual("middle_block.0", False) + attention("middle_block.1") + residual("middle_block.2", False)
    at = 0
    for level, out in reversed(list(enumerate(channels))):
        for layer in range(layers + 1):
            keys += residual(f"output_blocks.{at}.0", width + skips.pop() != out)
            keys += attention(f"output_blocks.{at}.1") if attends[level] else []
            if level and layer == layers:
                keys += both(f"output_blocks.{at}.{2 if attends[level] else 1}.conv")
            width = out
            at += 1
    return ["model.diffusion_model." + key for key in keys]


def vae_keys(channels, layers):
    """As ldm/modules/diffusionmodules/model.py numbers its blocks."""
    keys = both("quant_conv", "post_quant_conv")
    residual = lambda prefix, skip: both(*(f"{prefix}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")), *([f"{prefix}.nin_shortcut"] if skip else []))
    for half, direction, levels in (("encoder", "down", list(enumerate(channels))), ("decoder", "up", list(enumerate(channels))[::-1])):
        keys += both(f"{half}.conv_in", f"{half}.norm_out", f"{half}.conv_out")
        keys += residual(f"{half}.mid.block_1", False) + residual(f"{half}.mid.block_2", False)
        keys += both(*(f"{half}.mid.attn_1.{name}" for name in ("norm", "q", "k", "v", "proj_out")))
        width = levels[0][1]
        for position, (level, out) in enumerate(levels):
            for block in range(layers + (half == "decoder")):
                keys += residual(f"{half}.{direction}.{level}.block.{block}", width != out)
                width = out
            if position + 1 < len(levels):
                keys += both(f"{half}.{direction}.{level}.{'downsample' if half == 'encoder' else 'upsample'}.conv")
    return ["first_stage_model." + key for key in keys]


def open_clip_keys(layers):
    keys = ["positional_embedding", "token_embedding.weight", *both("ln_final")]
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        keys += both(*(f"{block}.{name}" for name in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")))
        keys += [f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"]
    return ["cond_stage_model.model." + key for key in keys]


def pairs(keys, converted, model, ranks):
    """`converted`: diffusers key -> a number that stands for its LDM key."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    assert set(converted) == set(shapes), set(converted) ^ set(shapes)
    assert len(set(converted.values())) == len(keys) == len(converted), (len(set(converted.values())), len(keys))
    found = {}
    for name, index in converted.items():
        shape = shapes[name]
        found[keys[index]] = [[name], shape + [1, 1] if ranks(keys[index]) else shape]
    return {key: found[key] for key in keys}


def unet(family):
    channels = [32, 64, 64] if family == "sd1" else [64, 128, 128]
    layers, attends = 2, [True, True, False]
    down = ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends]
    up = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    model = UNet2DConditionModel(
        block_out_channels=channels, layers_per_block=layers, down_block_types=down, up_block_types=up, cross_attention_dim=64,
        use_linear_projection=family == "sd2", attention_head_dim=8 if family == "sd1" else [1, 2, 2],
    )
    keys = unet_keys(channels, layers, attends)
    # The converter moves tensors and does not look into them.
    fake = {key: torch.tensor(index) for index, key in enumerate(keys)}
    converted = convert_ldm_unet_checkpoint(fake, {"layers_per_block": layers})
    return model, pairs(keys, {key: value.item() for key, value in converted.items()}, model, lambda key: False)


def vae():
    channels, layers = [32, 64, 64], 2
    model = AutoencoderKL(
        block_out_channels=channels, layers_per_block=layers, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    )
    keys = vae_keys(channels, layers)
    is_attention = lambda key: re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) is not None
    # It flattens the attention's 1×1 convolutions.
    fake = {key: torch.full((1, 1, 1, 1) if is_attention(key) else (1,), index) for index, key in enumerate(keys)}
    converted = convert_ldm_vae_checkpoint(fake, {"down_block_types": ["x"] * 3, "up_block_types": ["x"] * 3})
    return model, pairs(keys, {key: int(value.flatten()[0]) for key, value in converted.items()}, model, is_attention)


def text(family):
    layers, width = 3, 64
    config = dict(vocab_size=300, hidden_size=width, intermediate_size=2 * width, num_attention_heads=1, max_position_embeddings=77)
    if family == "sd1":
        model = CLIPTextModel(CLIPTextConfig(num_hidden_layers=layers, hidden_act="quick_gelu", **config))
        names = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
        return model, {f"cond_stage_model.transformer.text_model.{name}": [[name], shape] for name, shape in names.items()}
    # Stable Diffusion 2 leaves the last layer out.
    model = CLIPTextModel(CLIPTextConfig(num_hidden_layers=layers - 1, hidden_act="gelu", **config))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    keys = open_clip_keys(layers)
    fake = {key: torch.full((3 * width, 1), index) if ".in_proj_" in key else torch.full((1, 1), index) for index, key in enumerate(keys)}
    fake["cond_stage_model.model.text_projection"] = torch.zeros(width, width)
    converted = convert_open_clip_checkpoint(model, fake, prefix="cond_stage_model.model.")
    found = {}
    for name, value in converted.items():
        name = name.removeprefix("text_model.")
        if name in shapes:
            found.setdefault(keys[int(value.flatten()[0])], [[], shapes[name]])[0].append(name)
    assert {name for names, _ in found.values() for name in names} == set(shapes)
    for key, (names, shape) in found.items():
        if ".in_proj_" in key:
            names.sort(key=lambda name: "qkv".index(name.split("_proj.")[0][-1]))
            found[key][1] = [3 * shape[0], *shape[1:]]
    last = f".resblocks.{layers - 1}."
    assert set(keys) - set(found) == {key for key in keys if last in key}
    for key in keys:
        if last in key:
            found[key] = [[], found[key.replace(last, ".resblocks.0.")][1]]
    return model, {key: found[key] for key in keys}


def main():
    result = {}
    for family in ("sd1", "sd2"):
        result[family] = {}
        for name, (model, keys) in (("unet", unet(family)), ("vae", vae()), ("text_encoder", text(family))):
            if (family, name) == ("sd2", "vae"):
                continue  # As in sd1.
            config = json.loads(model.config.to_json_string()) if name == "text_encoder" else dict(model.config)
            keep = (
                "block_out_channels", "layers_per_block", "down_block_types", "up_block_types", "cross_attention_dim", "attention_head_dim",
                "use_linear_projection", "in_channels", "out_channels", "latent_channels", "hidden_size", "intermediate_size",
                "num_hidden_layers", "num_attention_heads", "hidden_act", "vocab_size", "max_position_embeddings",
            )
            result[family][name] = {"config": {key: config[key] for key in keep if key in config}, "keys": keys}
    lines = json.dumps(result, separators=(",", ":"))
    (Path(__file__).parent / "sd_keys.json").write_text(lines + "\n")
    print({family: {name: len(model["keys"]) for name, model in models.items()} for family, models in result.items()}, len(lines))


main()
