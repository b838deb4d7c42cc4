#!/usr/bin/env python3
"""Checks that diffusers opens what `social-reward diffusion export` writes, and computes the same with it.

pip install torch==2.11.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 safetensors
python scripts/compare-sd-files.py [target/release/social-reward]

With transformers 4 (pip install transformers==4.57.6 diffusers==0.35.2 peft==0.17.1) it also checks a LoRA of the text
encoder, which diffusers 0.42 cannot attach to a text encoder of transformers 5.

Folders in fp32 and fp16 run through StableDiffusionPipeline; a LoRA written by diffusers is converted to kohya's form and back,
and merged, and the UNet's outputs are compared. Prints every difference; exits 1 if one is too large.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

BINARY = Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/social-reward").resolve()
failed = []


def export(*arguments):
    subprocess.run([BINARY, "diffusion", "export", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def compare(what, found, wanted, tolerance):
    difference = (found - wanted).abs().max().item() / wanted.abs().max().item()
    verdict = "ok" if difference <= tolerance else "TOO LARGE"
    print(f"{what:<45} {difference:.1e} of at most {tolerance:.0e}  {verdict}")
    if difference > tolerance:
        failed.append(what)


def noise_prediction(pipeline):
    generator = torch.Generator().manual_seed(0)
    config = pipeline.unet.config
    latents = torch.randn(2, config.in_channels, 8, 8, generator=generator)
    context = torch.randn(2, 77, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return pipeline.unet(latents, torch.tensor([700, 3]), context).sample


def open_pipeline(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None
    return pipeline


def image(pipeline):
    return torch.from_numpy(pipeline("a cat!", num_inference_steps=3, height=64, width=64, generator=torch.Generator().manual_seed(1), output_type="np").images)


def check_lora(folder, model, base, alphas):
    pipeline = open_pipeline(model)
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, rank_pattern={"attn2.to_k": 3}, alpha_pattern=alphas)
    pipeline.unet.add_adapter(config)
    for name, parameter in pipeline.unet.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    layers = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **_collate_lora_metadata({"unet": pipeline.unet}))
    tuned = noise_prediction(pipeline)
    assert (tuned - base).abs().max() > 0.05 * base.abs().max()
    kohya, back = folder / "kohya.safetensors", folder / "back.safetensors"
    export("--model", model, "--lora", folder / "pytorch_lora_weights.safetensors", "--format", "kohya", "--output", kohya)
    export("--model", model, "--lora", kohya, "--format", "diffusers", "--output", back)
    for name, path in (("kohya", kohya), ("diffusers again", back)):
        if not (alphas and path == kohya):
            pipeline = open_pipeline(model)
            pipeline.load_lora_weights(path)
            compare(f"LoRA as {name}, loaded by diffusers", noise_prediction(pipeline), tuned, 1e-5)
    export("--model", model, "--lora", kohya, "--output", folder / "merged")
    compare("LoRA merged into a folder", noise_prediction(open_pipeline(folder / "merged")), tuned, 1e-4)


def hidden_states(pipeline):
    ids = pipeline.tokenizer(["a cat!", "two boats"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipeline.text_encoder(ids)[0]


def check_text_lora(folder, model):
    pipeline = open_pipeline(model)
    base = hidden_states(pipeline)
    torch.manual_seed(0)
    pipeline.text_encoder.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]))
    for name, parameter in pipeline.text_encoder.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    layers = get_peft_model_state_dict(pipeline.text_encoder)
    StableDiffusionPipeline.save_lora_weights(folder, text_encoder_lora_layers=layers)
    tuned = hidden_states(pipeline)
    assert (tuned - base).abs().max() > 0.05 * base.abs().max()
    kohya, back = folder / "kohya.safetensors", folder / "back.safetensors"
    export("--model", model, "--lora", folder / "pytorch_lora_weights.safetensors", "--format", "kohya", "--output", kohya)
    export("--model", model, "--lora", kohya, "--format", "diffusers", "--output", back)
    for name, path in (("kohya", kohya), ("diffusers again", back)):
        pipeline = open_pipeline(model)
        pipeline.load_lora_weights(path)
        compare(f"text LoRA as {name}, loaded by diffusers", hidden_states(pipeline), tuned, 1e-5)
    export("--model", model, "--lora", kohya, "--output", folder / "merged")
    compare("text LoRA merged into a folder", hidden_states(open_pipeline(folder / "merged")), tuned, 1e-4)


def main():
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        full, half = temporary / "full", temporary / "half"
        export("--model", "random:sd-tiny", "--output", full)
        export("--model", full, "--output", half, "--precision", "fp16")
        pipeline = open_pipeline(full)
        print("tokenizer pads with", repr(pipeline.tokenizer.pad_token), "scheduler", type(pipeline.scheduler).__name__)
        base, picture = noise_prediction(pipeline), image(pipeline)
        compare("fp16 folder, UNet", noise_prediction(open_pipeline(half)), base, 5e-3)
        compare("fp16 folder, image", image(open_pipeline(half)), picture, 3e-2)

        # diffusers reads an attention layer's own alpha from its own files, but not from kohya's.
        for alphas in ({}, {"attn2.to_q": 2.5}):
            check_lora(temporary / f"alphas-{len(alphas)}", full, base, alphas)
        if int(transformers.__version__.split(".")[0]) < 5:
            check_text_lora(temporary / "text", full)
    sys.exit(1 if failed else 0)


main()
