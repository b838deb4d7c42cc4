"""diffusers' StableDiffusionPipeline with tiny random weights: given latents to final latents and images.

    python tests/golden/pipeline.py        writes pipeline/

diffusers 0.42.1, transformers 5, torch 2.11.0. `pipeline/model` is the folder as `save_pretrained` leaves it,
`pipeline/pytorch_model.bin` its text encoder in the form that older folders have.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

FOLDER = Path(__file__).parent / "pipeline"
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PROMPTS = ["a red house by the sea", "Two cats, café & rain 雨"]
NEGATIVE = "blurry"
CASES = {  # name: (sampler, class, extra keys, guidance scale)
    "ddim": ("ddim", DDIMScheduler, {}, 7.5),
    "ddim_unguided": ("ddim", DDIMScheduler, {}, 1.0),
    "ddim_v": ("ddim", DDIMScheduler, {"prediction_type": "v_prediction"}, 7.5),
    "dpmpp": ("dpmpp-2m", DPMSolverMultistepScheduler, {}, 7.5),
    "dpmpp_karras": ("dpmpp-2m", DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, 7.5),
    "euler": ("euler", EulerDiscreteScheduler, {}, 7.5),
}
STEPS = 10


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in GPT-2's and CLIP's vocabularies."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + at) for at in range(len(hidden))]


def tokenizer() -> CLIPTokenizer:
    letters = byte_letters()
    merges = [("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>"), ("s", "e"), ("se", "a</w>"), ("c", "a")]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        pad_token="!",
        model_max_length=77,
    )


def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    words = tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            hidden_act="gelu",
            initializer_range=0.2,
            initializer_factor=1.0,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    with torch.no_grad():
        for name, parameter in [*unet.named_parameters(), *vae.named_parameters(), *text.named_parameters()]:
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:
                parameter.normal_(1, 0.1)
            elif "attn2.to_" in name:
                parameter.mul_(3)  # so that the prompt matters
    return StableDiffusionPipeline(
        vae.eval(),
        text.eval(),
        words,
        unet.eval(),
        DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(FOLDER / "model")
    torch.save(pipe.text_encoder.state_dict(), FOLDER / "pytorch_model.bin")
    start = torch.randn((len(PROMPTS), 4, 8, 8), generator=torch.Generator().manual_seed(1))
    stored = {"start": start}
    ids = pipe.tokenizer([*PROMPTS, NEGATIVE], padding="max_length", truncation=True, return_tensors="pt").input_ids
    stored["input_ids"] = ids
    stored["hidden"] = pipe.text_encoder(ids)[0]
    cases = []
    for name, (sampler, scheduler, keys, scale) in CASES.items():
        pipe.scheduler = scheduler.from_config(SCHEDULER | keys)
        call = dict(
            prompt=PROMPTS,
            negative_prompt=[NEGATIVE] * len(PROMPTS),
            num_inference_steps=STEPS,
            guidance_scale=scale,
            height=16,
            width=16,
            return_dict=False,
        )
        stored[f"{name}.latents"] = pipe(**call, latents=start.clone(), output_type="latent")[0]
        images = pipe(**call, latents=start.clone(), output_type="pil")[0]
        stored[f"{name}.images"] = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        cases.append({"name": name, "sampler": sampler, "scheduler": SCHEDULER | keys, "guidance_scale": scale})
        spread = (stored[f"{name}.latents"].std(), stored[f"{name}.images"].float().std())
        print(name, *(f"{float(value):.3f}" for value in spread))
    save_file({name: value.contiguous().clone() for name, value in stored.items()}, FOLDER / "pipeline.safetensors")
    description = {"prompts": PROMPTS, "negative": NEGATIVE, "steps": STEPS, "cases": cases}
    (FOLDER / "pipeline.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
