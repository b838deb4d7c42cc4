"""diffusers' schedulers: every table for several configs, spacings and numbers of steps, and trajectories of a toy model.

    python tests/golden/samplers.py        writes samplers/

diffusers 0.42.1, torch 2.11.0. The toy model is `model` below, on what the sampler gives it to see and the timestep. The noise
of stochastic samplers is in the fixture. What a config leaves out takes the scheduler class's own default on both sides.
"""

import json
from pathlib import Path
from unittest import mock

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "samplers"
SAMPLERS = {
    "ddim": DDIMScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}
SHAPE, MOST_STEPS = (2, 4, 3, 3), 20

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STOCK = SD | {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
ZERO_SNR = STOCK | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
V = STOCK | {"prediction_type": "v_prediction"}
TRAINED = {"num_train_timesteps": 40, "trained_betas": [round(0.01 + 0.002 * i, 3) for i in range(40)]}
CONFIGS = {
    "defaults": {},
    "sd": SD,
    "stock": STOCK,
    "cosine": COSINE,
    "zero_snr": ZERO_SNR,
    "trained": TRAINED,
}
STEPS = {name: (1, 7, 20, 30) if name == "trained" else (7, 50) for name in CONFIGS} | {"sd": (1, 7, 20, 50, 333)}
TRAJECTORIES = [  # sampler, config, steps, eta
    ("ddim", STOCK, 20, 0.0),
    ("ddim", STOCK, 20, 0.5),
    ("ddim", STOCK | {"timestep_spacing": "linspace"}, 20, 1.0),
    ("ddim", ZERO_SNR, 20, 0.0),
    ("ddim", V, 20, 1.0),
    ("ddim", SD | {"prediction_type": "sample"}, 20, 0.0),
    ("ddim", SD, 7, 0.0),
    ("ddim", COSINE, 20, 0.3),
    ("ddim", TRAINED | {"clip_sample_range": 2.0}, 20, 0.0),
    ("dpmpp-2m", STOCK, 20, 0.0),
    ("dpmpp-2m", STOCK, 10, 0.0),
    ("dpmpp-2m", STOCK | {"use_karras_sigmas": True}, 20, 0.0),
    ("dpmpp-2m", STOCK | {"solver_type": "heun"}, 20, 0.0),
    ("dpmpp-2m", STOCK | {"solver_type": "bh2", "timestep_spacing": "leading"}, 20, 0.0),
    ("dpmpp-2m", STOCK | {"final_sigmas_type": "sigma_min"}, 20, 0.0),
    ("dpmpp-2m", STOCK | {"final_sigmas_type": "sigma_min"}, 8, 0.0),
    ("dpmpp-2m", STOCK | {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 8, 0.0),
    ("dpmpp-2m", STOCK | {"final_sigmas_type": "sigma_min", "euler_at_final": True}, 20, 0.0),
    ("dpmpp-2m", V, 20, 0.0),
    ("dpmpp-2m", ZERO_SNR, 20, 0.0),
    ("dpmpp-2m", COSINE | {"lambda_min_clipped": -5.1}, 20, 0.0),
    ("dpmpp-2m", COSINE | {"lambda_min_clipped": -5.1, "timestep_spacing": "trailing"}, 20, 0.0),
    ("dpmpp-2m", COSINE | {"use_karras_sigmas": True}, 20, 0.0),
    ("euler", STOCK, 20, 0.0),
    ("euler", STOCK | {"timestep_spacing": "leading"}, 20, 0.0),
    ("euler", STOCK | {"use_karras_sigmas": True}, 20, 0.0),
    ("euler", STOCK | {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}, 20, 0.0),
    ("euler", STOCK | {"final_sigmas_type": "sigma_min"}, 20, 0.0),
    ("euler", V, 20, 0.0),
    ("euler", STOCK | {"prediction_type": "sample"}, 20, 0.0),
    ("euler", ZERO_SNR, 20, 0.0),
    ("euler-a", STOCK, 20, 0.0),
    ("euler-a", STOCK | {"timestep_spacing": "leading"}, 20, 0.0),
    ("euler-a", V, 20, 0.0),
    ("euler-a", COSINE | {"timestep_spacing": "trailing"}, 20, 0.0),
]


def model(seen: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.8 * seen + 0.5 - timestep.float() / 1000)


def tables(stored: dict) -> list[dict]:
    for name, config in CONFIGS.items():
        scheduler = DDIMScheduler(**config)
        stored[f"{name}.betas"] = scheduler.betas
        stored[f"{name}.alphas_cumprod"] = scheduler.alphas_cumprod
    cases = []
    for sampler, scheduler_class in SAMPLERS.items():
        for name, config in CONFIGS.items():
            for spacing in (None, "leading", "trailing", "linspace"):
                for karras in (False, True) if sampler in ("dpmpp-2m", "euler") and spacing is None else (False,):
                    changes = {"timestep_spacing": spacing} if spacing else {}
                    changes |= {"use_karras_sigmas": True} if karras else {}
                    for steps in STEPS[name]:
                        if sampler == "dpmpp-2m" and steps == 30 and spacing == "leading":
                            steps = 19  # wants steps + 1 multiples
                        if sampler == "dpmpp-2m" and karras and steps == 1:
                            continue
                        scheduler = scheduler_class.from_config(config | changes)
                        scheduler.set_timesteps(steps)
                        key = f"table.{len(cases)}"
                        stored[f"{key}.timesteps"] = scheduler.timesteps.float()
                        if sampler != "ddim":
                            stored[f"{key}.sigmas"] = scheduler.sigmas
                        case = {"key": key, "sampler": sampler, "config": name, "changes": changes, "steps": steps}
                        cases.append(case | {"init_noise_sigma": float(scheduler.init_noise_sigma)})
    return cases


def trajectories(stored: dict) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SHAPE, generator=generator)
    noise = torch.randn((MOST_STEPS, *SHAPE), generator=generator)
    stored |= {"start": start, "noise": noise}
    cases = []
    for sampler, config, steps, eta in TRAJECTORIES:
        scheduler = SAMPLERS[sampler].from_config(config)
        scheduler.set_timesteps(steps)
        if sampler != "ddim":
            scheduler.set_begin_index(0)  # else it begins at the second of two equal first timesteps
        x = start * scheduler.init_noise_sigma
        path, log_probabilities = [], []
        for index, timestep in enumerate(scheduler.timesteps):
            output = model(scheduler.scale_model_input(x, timestep), timestep)
            if sampler == "ddim":
                step = lambda variance_noise: scheduler.step(
                    output, timestep, x, eta=eta, variance_noise=variance_noise, return_dict=False
                )[0]
                following = step(noise[index])
                stride = scheduler.config.num_train_timesteps // steps
                std = eta * scheduler._get_variance(int(timestep), int(timestep) - stride).sqrt()
                if eta > 0:
                    mean = step(torch.zeros(SHAPE))
                    density = torch.distributions.Normal(mean, std.clamp(min=1e-6)).log_prob(following)
                    log_probabilities.append(density.mean(dim=(1, 2, 3)))
                x = following
            else:
                module = SAMPLERS[sampler].__module__
                with mock.patch(f"{module}.randn_tensor", lambda *_, **__: noise[index]):
                    x = scheduler.step(output, timestep, x, return_dict=False)[0]
            path.append(x)
        key = f"trajectory.{len(cases)}"
        stored[f"{key}.latents"] = torch.stack(path)
        if log_probabilities:
            stored[f"{key}.log_probabilities"] = torch.stack(log_probabilities)
        cases.append({"key": key, "sampler": sampler, "config": config, "steps": steps, "eta": eta})
    return cases


def training(stored: dict) -> None:
    scheduler = DDIMScheduler(**STOCK)
    original, noise, timesteps = stored["start"], stored["noise"][0], torch.tensor([10, 987])
    stored["training.timesteps"] = timesteps
    stored["training.add_noise"] = scheduler.add_noise(original, noise, timesteps)
    stored["training.velocity"] = scheduler.get_velocity(original, noise, timesteps)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    stored = {}
    description = {"configs": CONFIGS, "tables": tables(stored), "trajectories": trajectories(stored)}
    training(stored)
    save_file({name: value.contiguous().clone() for name, value in stored.items()}, FOLDER / "samplers.safetensors")
    lines = [f'"{key}": {json.dumps(value)}' if isinstance(value, dict) else
             f'"{key}": [\n' + ",\n".join(map(json.dumps, value)) + "\n]" for key, value in description.items()]
    (FOLDER / "samplers.json").write_text("{" + ",\n".join(lines) + "}\n")
