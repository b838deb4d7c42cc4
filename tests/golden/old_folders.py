"""diffusers' StableDiffusionPipeline on folders as old versions left them: `pipeline/model` with other scheduler files, and its
UNet without a middle block.

    python tests/golden/old_folders.py        writes old_folders.json and old_folders.safetensors

diffusers 0.42.1, transformers 5, torch 2.11.0. The pipeline itself puts old scheduler files right (no clipping, an offset of
1). PNDM and Euler files are read by DDIM with the class's own defaults, as this program reads them.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
MODEL = HERE / "pipeline/model"
OLD = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
FILES = {
    "pndm-0.2": OLD | {"_class_name": "PNDMScheduler", "_diffusers_version": "0.2.2", "skip_prk_steps": True},
    "ddim-no-clip-key": OLD
    | {"_class_name": "DDIMScheduler", "_diffusers_version": "0.3.0", "set_alpha_to_one": False},
    "ddim-clip-true": OLD
    | {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": True, "steps_offset": 0},
    "ddim-alpha-one": OLD | {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 2},
    "euler-linspace": OLD
    | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "steps_offset": 0},
}
PROMPTS = ["a red house by the sea", "Two cats, café & rain 雨"]
STEPS = 10


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    start = torch.randn((len(PROMPTS), 4, 8, 8), generator=torch.Generator().manual_seed(1))
    stored = {"start": start}
    with tempfile.TemporaryDirectory() as temporary:
        for name, file in FILES.items():
            folder = Path(temporary) / name
            shutil.copytree(MODEL, folder)
            (folder / "scheduler/scheduler_config.json").write_text(json.dumps(file))
            index = json.loads((folder / "model_index.json").read_text())
            index["scheduler"] = ["diffusers", file["_class_name"]]
            (folder / "model_index.json").write_text(json.dumps(index))
            pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
            pipe.set_progress_bar_config(disable=True)
            if not isinstance(pipe.scheduler, DDIMScheduler):
                config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
                pipe.scheduler = DDIMScheduler.from_config(config | {"clip_sample": False})
            settings = {key: pipe.scheduler.config[key] for key in ("clip_sample", "steps_offset", "set_alpha_to_one")}
            print(name, settings)
            result = pipe(PROMPTS, num_inference_steps=STEPS, latents=start.clone(), output_type="latent")
            stored[f"{name}.latents"] = result.images
    config = json.loads((MODEL / "unet/config.json").read_text()) | {"mid_block_type": None}
    unet = UNet2DConditionModel.from_config(config)
    weights = load_file(MODEL / "unet/diffusion_pytorch_model.safetensors")
    unet.load_state_dict({key: value for key, value in weights.items() if not key.startswith("mid_block.")})
    context = torch.randn((2, 7, 16), generator=torch.Generator().manual_seed(2))
    stored |= {"context": context, "no_middle": unet.eval()(start, torch.tensor([981, 1]), context).sample}
    save_file({key: value.contiguous() for key, value in stored.items()}, HERE / "old_folders.safetensors")
    lines = [f"{json.dumps(name)}: {json.dumps(file)}" for name, file in FILES.items()]
    (HERE / "old_folders.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
