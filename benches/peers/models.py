"""What the peers of fine-tuning share: the parts of a diffusers folder, a LoRA by PEFT, the peak of memory."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer


def peak_rss_bytes() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


@torch.no_grad()
def encode_prompts(folder: Path, prompts: list[str]) -> torch.Tensor:
    """The UNet's context, [2B, 77, D]: the empty negative prompt B times, then the prompts."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    texts = ["", *prompts]
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    negative, positive = encoder(tokens)[0].split([1, len(prompts)])
    return torch.cat([negative.expand_as(positive), positive])


def load_unet(folder: Path, rank: int, random_b: bool, kind: torch.dtype) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=kind).requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if random_b and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return unet
