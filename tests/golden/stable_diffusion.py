"""Writes the models of `stable_diffusion/`: tiny UNets, VAEs and text encoders of diffusers and transformers with seeded
random weights, as those libraries save them, and what they compute.

torch 2.11.0, diffusers 0.42.1, transformers 5.24.0, safetensors. What each file is for: README.md.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

FOLDER = Path(__file__).parent / "stable_diffusion"


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter random, in the order of its sorted name: library initialisers leave biases at zero and norms at
    one, where a reader that swaps or drops them would pass unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif "embedding." in name and "linear" not in name:
            parameter.copy_(0.5 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model.eval()


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unets() -> None:
    common = dict(layers_per_block=1, norm_num_groups=4, sample_size=8)
    cases = {
        # A scalar head count, convolutions around the transformers; three levels, so that every kind of block is there.
        "unet_sd1": dict(
            block_out_channels=(8, 16, 16),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=24,
        ),
        # A head count for each level, linear layers around the transformers.
        "unet_sd2": dict(
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=32,
            use_linear_projection=True,
        ),
        # What no published model has but the config can say; stored in fp16, computed in fp32.
        "unet_other": dict(
            block_out_channels=(8, 12),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 3),
            cross_attention_dim=16,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-4,
        ),
    }
    for seed, (name, config) in enumerate(cases.items()):
        model = randomise(UNet2DConditionModel(**{**common, **config}), 100 + seed)
        if name == "unet_other":
            model.half().save_pretrained(FOLDER / name, variant="fp16")
            model.float()
        else:
            model.save_pretrained(FOLDER / name)
        expected = {}
        # A square and an oblong whose sides halve to odd numbers.
        for case, height, width in [("square", 8, 8), ("oblong", 6, 10)]:
            latents = noise(10 + seed, 2, 4, height, width)
            timesteps = torch.tensor([981, 1])
            context = noise(20 + seed, 2, 7, config["cross_attention_dim"])
            with torch.no_grad():
                output = model(latents, timesteps, context).sample
                double = model.double()(latents.double(), timesteps, context.double()).sample
                model.float()
            print(name, case, "fp64 differs by", (output - double).abs().max().item(), "scale", output.std().item())
            parts = dict(latents=latents, timesteps=timesteps, context=context, output=output)
            expected |= {f"{case}.{part}": value for part, value in parts.items()}
        save_file(expected, FOLDER / f"{name}.expected.safetensors")


def old_attention_key(key: str) -> str:
    for new, old in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]:
        key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return key


def vaes() -> None:
    config = dict(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.18215,
    )
    model = randomise(AutoencoderKL(**config), 200)
    model.save_pretrained(FOLDER / "vae")
    # The same weights as diffusers before 0.15 wrote them, with a config that says less.
    weights = load_file(FOLDER / "vae" / "diffusion_pytorch_model.safetensors")
    (FOLDER / "vae_old").mkdir(exist_ok=True)
    old = {old_attention_key(key): value for key, value in weights.items()}
    save_file(old, FOLDER / "vae_old" / "diffusion_pytorch_model.safetensors")
    old_config = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    del old_config["scaling_factor"]
    old_config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", **old_config}
    (FOLDER / "vae_old" / "config.json").write_text(json.dumps(old_config, indent=2) + "\n")

    pixels, latents, large = noise(30, 2, 3, 16, 24), noise(31, 2, 4, 4, 6), noise(32, 2, 4, 11, 14)
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(latents).sample
        model.enable_tiling()
        tiled = model.decode(large).sample
    expected = dict(pixels=pixels, mean=posterior.mean, log_variance=posterior.logvar, latents=latents, decoded=decoded)
    expected |= dict(large=large, tiled=tiled)
    print("vae scale", posterior.mean.std().item(), decoded.std().item(), tiled.shape)
    save_file({name: value.contiguous() for name, value in expected.items()}, FOLDER / "vae.expected.safetensors")


def text_encoders() -> None:
    common = dict(vocab_size=60, max_position_embeddings=12, eos_token_id=59, bos_token_id=58, pad_token_id=0)
    cases = {
        "text_sd1": dict(hidden_act="quick_gelu", hidden_size=24, intermediate_size=48, num_attention_heads=3, num_hidden_layers=2),
        "text_sd2": dict(hidden_act="gelu", hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=3),
    }
    for seed, (name, config) in enumerate(cases.items()):
        model = randomise(CLIPTextModel(CLIPTextConfig(**common, **config)), 300 + seed)
        model.save_pretrained(FOLDER / name)
        file = FOLDER / name / "model.safetensors"
        weights = {key.removeprefix("text_model."): value for key, value in load_file(file).items()}
        if name == "text_sd1":
            # As transformers 4 writes it, position ids among the weights.
            weights = {f"text_model.{key}": value for key, value in weights.items()}
            weights["text_model.embeddings.position_ids"] = torch.arange(12).unsqueeze(0)
        save_file(weights, file, metadata={"format": "pt"})
        ids = torch.randint(0, 60, (3, 12), generator=torch.Generator().manual_seed(40 + seed))
        with torch.no_grad():
            hidden = model(ids).last_hidden_state
        save_file(dict(ids=ids, hidden=hidden), FOLDER / f"{name}.expected.safetensors")
        print(name, "scale", hidden.std().item())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    unets()
    vaes()
    text_encoders()
