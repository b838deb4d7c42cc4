"""Seeded random CLIP weights and inputs of a realistic scale, shared by the generators beside this file.

Library initialisers leave biases at zero and LayerNorm weights at one, so a reader that swaps or drops them would
pass unseen. Here every parameter is random, and the embeddings of different inputs differ.
"""

import torch

# Matrices that are multiplied from the right (x @ w), so that their first axis is the input.
RIGHT_MULTIPLIED = ("visual.proj", "text_projection", "text.text_projection")


def random_pixels(count: int, seed: int) -> torch.Tensor:
    """Normalised images [count, 3, 28, 28] of four coloured quarters and noise: unlike one another, as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.randn([count, 3, 2, 2], generator=generator)
    noise = torch.randn([count, 3, 28, 28], generator=generator)
    return quarters.repeat_interleave(14, dim=-1).repeat_interleave(14, dim=-2) + 0.5 * noise


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, logit_scale: float) -> None:
    """Fills every parameter in the order of its sorted name, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "logit_scale":
            parameter.fill_(logit_scale)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif "embedding" in name and "patch_embedding" not in name:
            parameter.copy_(0.5 * noise)
        elif parameter.ndim == 1:  # LayerNorm weights
            parameter.copy_(1 + 0.2 * noise)
        else:
            fan_in = parameter.shape[0] if name in RIGHT_MULTIPLIED else parameter[0].numel()
            # The larger gain keeps attention away from uniform, the smaller one embeddings near length 1.
            is_projection = name in RIGHT_MULTIPLIED or name.endswith("projection.weight")
            parameter.copy_((0.3 if is_projection else 1.4) * noise * fan_in**-0.5)
