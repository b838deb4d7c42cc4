"""torch.optim.Adam and AdamW over 100 steps of a gradient that any language can recompute.

    python tests/golden/optimizer.py        writes optimizer.safetensors and optimizer.json

torch 2.11.0. The gradient of element i (row-major, from 0) of a tensor at step t (from 1) is
`sin(0.1 * (i + 1) * t) * scale`, computed in float64 and rounded to float32. Scales reach from where epsilon 1e-8 rules
to where it vanishes; scale 0 leaves nothing but the weight decay.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
LEARNING_RATE, STEPS, STORED_STEPS = 1e-2, 100, (1, 10, 100)
TENSORS = {  # name: (shape, gradient scale)
    "matrix": ([5, 7], 1.0),
    "vector": ([33], 1e-3),
    "near_epsilon": ([2, 3, 4], 1e-7),
    "large": ([9], 1e3),
    "scalar": ([], 0.5),
    "no_gradient_signal": ([4], 0.0),
}
CASES = {
    f"{optimizer.__name__.lower()}_{decay}": (optimizer, decay)
    for optimizer in (torch.optim.Adam, torch.optim.AdamW)
    for decay in (0.0, 0.1)
}


def gradient(shape: list[int], scale: float, step: int) -> torch.Tensor:
    index = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return (torch.sin(0.1 * index * step) * scale).float().reshape(shape)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    initial = {name: torch.randn(shape, generator=generator) for name, (shape, _) in TENSORS.items()}
    stored = {f"initial.{name}": value for name, value in initial.items()}
    for case, (optimizer_class, decay) in CASES.items():
        parameters = {name: value.clone().requires_grad_() for name, value in initial.items()}
        optimizer = optimizer_class(parameters.values(), lr=LEARNING_RATE, weight_decay=decay)
        for step in range(1, STEPS + 1):
            for name, (shape, scale) in TENSORS.items():
                parameters[name].grad = gradient(shape, scale, step)
            optimizer.step()
            if step in STORED_STEPS:
                for name, parameter in parameters.items():
                    stored[f"{case}.step_{step}.{name}"] = parameter.detach().clone()
        for name, parameter in parameters.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                stored[f"{case}.{moment}.{name}"] = optimizer.state[parameter][moment]
    save_file(stored, FOLDER / "optimizer.safetensors")
    description = {
        "learning_rate": LEARNING_RATE,
        "betas": [0.9, 0.999],
        "epsilon": 1e-8,
        "steps": STEPS,
        "stored_steps": STORED_STEPS,
        "gradient_scales": {name: scale for name, (_, scale) in TENSORS.items()},
        "cases": {
            case: {"optimizer": optimizer.__name__, "weight_decay": decay} for case, (optimizer, decay) in CASES.items()
        },
    }
    (FOLDER / "optimizer.json").write_text(json.dumps(description, indent=2) + "\n")
