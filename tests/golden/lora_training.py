"""Writes lora/convolutions.safetensors and lora/training.safetensors: adapters on convolutions (1x1 ones around the transformers of
SD 1.x, 3x3 ones in residual blocks, where the size changes, at both ends) with PEFT's gradients of them, and two LoRAs at once.

    python tests/golden/lora_training.py        after lora.py, whose UNet and files it takes

torch 2.11.0, diffusers 0.42.1, peft 0.21.2. Computed in float64 of weights rounded to fp16, stored as fp32.

The loss is the sum of the output times `loss_weights`. Both factors are random; no alpha is its rank.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "lora"
TARGETS = [
    "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out", "downsamplers.0.conv", "upsamplers.0.conv", "to_q",
]  # fmt: skip
RANK, ALPHA = 2, 3
SCALES = {"diffusers": 0.7, "convolutions": -0.4}


def unet():
    model = UNet2DConditionModel.from_pretrained(FOLDER / "unet", torch_dtype=torch.float32)
    return model.double().eval().requires_grad_(False)


def run(model):
    given = load_file(FOLDER / "expected.safetensors")
    return model(given["latents"].double(), given["timesteps"], given["context"].double()).sample


def load(model, path, name):
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(path, unet_config=model.config, return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=model, metadata=metadata, adapter_name=name)


def main():
    generator = torch.Generator().manual_seed(11)
    model = unet()
    model.add_adapter(LoraConfig(target_modules=TARGETS, r=RANK, lora_alpha=ALPHA, rank_pattern={"conv_shortcut": 3}, alpha_pattern={"proj_in": 5}))
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_" in name:
            fan = parameter[0].numel()
            parameter.data.copy_((torch.randn(parameter.shape, generator=generator) * 0.5 * fan**-0.5).half().double())
    state = {name: tensor.half() for name, tensor in get_peft_model_state_dict(model).items()}
    StableDiffusionPipeline.save_lora_weights(
        FOLDER, unet_lora_layers=state, weight_name="convolutions.safetensors", **_collate_lora_metadata({"unet": model})
    )
    output = run(model)
    weights = torch.randn(output.shape, generator=generator)
    (output * weights.double()).sum().backward()
    stored = {"output": output.detach(), "loss_weights": weights}
    layers = 0
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert parameter.grad.norm() > 0, name
            stored["grad." + name.replace(".default.", ".")] = parameter.grad
            layers += name.endswith("lora_A.default.weight")
    for name, module in model.named_modules():
        if name in ("down_blocks.0.attentions.0.proj_in", "down_blocks.1.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"):
            stored[f"delta.{name}"] = module.get_delta_weight("default").detach()

    with torch.no_grad():
        alone = unet()
        load(alone, FOLDER / "convolutions.safetensors", "a")
        assert (run(alone) - output).abs().max() < 1e-5, "as diffusers reads the file"
        both = unet()
        load(both, FOLDER / "diffusers/pytorch_lora_weights.safetensors", "diffusers")
        load(both, FOLDER / "convolutions.safetensors", "convolutions")
        both.set_adapters(list(SCALES), list(SCALES.values()))
        stored["both"] = run(both)
        distance = (stored["both"] - run(unet())).abs().max()
        assert distance > 0.05, distance
    print(layers, "layers; effect", (output - run(unet())).abs().max().item(), "of both", distance.item())
    save_file({name: value.float().contiguous() for name, value in stored.items()}, FOLDER / "training.safetensors")


main()
