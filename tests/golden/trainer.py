"""The original's training recipe in plain PyTorch on a tiny CLIP: every training mode with every loss, 20 steps each.

    python tests/golden/trainer.py        writes tests/golden/trainer/

transformers 5.23.0, torch 2.11.0. The recipe is that of github.com/Picsart-AI-Research/Social-Reward,
src/train_pair_pos_neg.py: one forward over prompts, positives and negatives, unit embeddings, one loss, one step of
Adam (AdamW with weight decay 0.01 in the two textual modes), constant rate. What does not train is truly frozen here;
the original gives the optimizer the same parameters, so the updates are the same.

Losses, with t, p, n the unit embeddings of prompts, positives and negatives of a batch of B, s = exp(logit_scale):

- triplet        mean(relu(|t - p|^2 - |t - n|^2 + margin))
- bradley-terry  mean(-log sigmoid(s * (t.p - t.n)))
- info-nce       (text + image) / 2, each a mean cross-entropy over B rows:
    text   row i has 2B columns: s * t_i.p_j for all j, then s * t_i.n_j for all j; the target is its own positive.
           Positives j != i whose prompt equals prompt i are masked (-inf): they are positives of this prompt too.
           Negatives stay, whatever their prompt: of an equal prompt they are negatives all the same.
    image  row j is positive j against the B prompts, s * p_j.t_i; the target is i = j; prompts i != j equal to prompt j
           are masked.

logit_scale trains in mode `all` alone and is cut to at most ln 100 after each step, as open_clip does. The triplet loss
gives it no gradient: the optimizer then leaves it untouched.
"""

import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from random_weights import random_pixels, randomise
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

FOLDER = Path(__file__).parent / "trainer"
STEPS, BATCH, IMAGES, PROMPTS, CONTEXT_LENGTH, VOCABULARY = 20, 8, 24, 10, 16, 64
LEARNING_RATE, MARGIN, LOGIT_SCALE = 1e-3, 2.0, math.log(5)
LOSS_FLOOR, LOSS_TOLERANCE, UPDATE_TOLERANCE = 0.05, 1e-5, 1e-3
# A key bias shifts all scores of a query alike, which softmax ignores: its gradient is rounding noise, which Adam
# turns into steps of any size. Nothing can be compared there.
NOISE_ONLY = "k_proj.bias"

UPPER_LAYERS = {  # mode: (visual blocks, textual blocks) from the top
    "visual_upper_layers": (3, 0),
    "visual_upper_layers_textual_upper_layers": (3, 2),
    "visual_upper_layers_textual_upper_layers_deeper": (4, 3),
    "visual_last_layer": (1, 0),
}
MODES = ["all", "visual", *UPPER_LAYERS]


def trained_keys(model: CLIPModel, mode: str) -> list[str]:
    keys = [key for key, _ in model.named_parameters()]
    if mode == "all":
        return keys
    if mode == "visual":
        return [key for key in keys if key.startswith(("vision_model.", "visual_projection."))]
    visual, textual = UPPER_LAYERS[mode]
    depth = model.config.vision_config.num_hidden_layers
    prefixes = [f"vision_model.encoder.layers.{block}." for block in range(depth - visual, depth)]
    prefixes.append("vision_model.post_layernorm.")
    if textual:
        depth = model.config.text_config.num_hidden_layers
        prefixes += [f"text_model.encoder.layers.{block}." for block in range(depth - textual, depth)]
        prefixes += ["text_model.final_layer_norm.", "text_projection."]
    return [key for key in keys if key.startswith(tuple(prefixes))]


def triplet(t, p, n, scale, prompts):
    return F.relu((t - p).square().sum(-1) - (t - n).square().sum(-1) + MARGIN).mean()


def bradley_terry(t, p, n, scale, prompts):
    return -F.logsigmoid(scale * ((t * p).sum(-1) - (t * n).sum(-1))).mean()


def info_nce(t, p, n, scale, prompts):
    own = torch.arange(len(prompts))
    false_negative = (prompts[:, None] == prompts[None, :]) & (own[:, None] != own[None, :])
    to_positives = (scale * t @ p.T).masked_fill(false_negative, -torch.inf)
    text = F.cross_entropy(torch.cat([to_positives, scale * t @ n.T], dim=1), own)
    return (text + F.cross_entropy(to_positives.T, own)) / 2


LOSSES = {"triplet": triplet, "bradley-terry": bradley_terry, "info-nce": info_nce}


def dataset() -> dict[str, torch.Tensor]:
    """Images 0 to 13 are popular with prompt `index % 10`, the rest with none, so that there is something to learn.
    Prompts and images recur in a batch, and 8 to 13 also stand as negatives of other prompts."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.zeros([PROMPTS, CONTEXT_LENGTH], dtype=torch.int64)
    for prompt in range(PROMPTS):
        words = 1 + prompt if prompt < 9 else CONTEXT_LENGTH - 2
        input_ids[prompt, 0] = VOCABULARY - 2
        input_ids[prompt, 1 : words + 1] = torch.randint(1, VOCABULARY - 2, [words], generator=generator)
        input_ids[prompt, words + 1] = VOCABULARY - 1
    positive = torch.randint(14, [STEPS, BATCH], generator=generator)
    negative = torch.randint(8, IMAGES, [STEPS, BATCH], generator=generator)
    prompt = positive % PROMPTS
    negative[(negative < 14) & (negative % PROMPTS == prompt)] = IMAGES - 1
    batches = torch.stack([prompt, positive, negative], dim=-1)
    return {"pixel_values": random_pixels(IMAGES, seed=2), "input_ids": input_ids, "batches": batches}


def base_model() -> CLIPModel:
    shared = {"num_attention_heads": 2, "hidden_act": "quick_gelu", "projection_dim": 16}
    config = CLIPConfig(
        projection_dim=16,
        logit_scale_init_value=LOGIT_SCALE,
        vision_config=shared
        | {"hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 5, "image_size": 28, "patch_size": 7},
        text_config=shared
        | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": VOCABULARY}
        | {"max_position_embeddings": CONTEXT_LENGTH, "bos_token_id": VOCABULARY - 2}
        | {"eos_token_id": VOCABULARY - 1, "pad_token_id": 0},
    )
    model = CLIPModel(config)
    randomise(model, seed=6, logit_scale=LOGIT_SCALE)
    return model


def train(mode: str, loss_name: str, data: dict[str, torch.Tensor], kind=torch.float32, rate=LEARNING_RATE):
    """Returns the losses before each update, and w - w0 of every trained tensor."""
    model = CLIPModel.from_pretrained(FOLDER / "base").to(kind)
    trained = trained_keys(model, mode)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trained)
    initial = {key: value.detach().clone() for key, value in model.named_parameters()}
    parameters = [model.get_parameter(key) for key in trained]
    if "textual" in mode:
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    else:
        optimizer = torch.optim.Adam(parameters, lr=rate)

    losses = []
    for prompts, positives, negatives in data["batches"].mT:
        text = model.get_text_features(input_ids=data["input_ids"][prompts]).pooler_output
        images = [
            model.get_image_features(pixel_values=data["pixel_values"][indices].to(kind)).pooler_output
            for indices in (positives, negatives)
        ]
        units = [embeddings / embeddings.norm(dim=-1, keepdim=True) for embeddings in (text, *images)]
        loss = LOSSES[loss_name](*units, model.logit_scale.exp(), prompts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
    updates = {key: (value - initial[key]).detach() for key, value in model.named_parameters()}
    assert all(not updates[key].any() for key in updates if key not in trained)
    return losses, {key: updates[key] for key in trained}


def check(name: str, losses, updates, exact_losses, exact_updates, untrained_losses) -> float:
    """Fails where the case would prove nothing; returns how far float32 is from float64 in its worst tensor."""
    assert min(losses) > LOSS_FLOOR, f"{name}: loss {min(losses)} is below {LOSS_FLOOR}"
    fall = 1 - sum(losses[-4:]) / sum(untrained_losses[-4:])  # on the same batches
    assert fall > 100 * LOSS_TOLERANCE, f"{name}: loss falls by {fall} only"
    assert all(abs(a - b) < LOSS_TOLERANCE / 4 * b for a, b in zip(losses, exact_losses)), f"{name}: ill-conditioned"
    errors = {
        key: ((update - exact_updates[key]).norm() / exact_updates[key].norm()).item()
        for key, update in updates.items()
        if not key.endswith(NOISE_ONLY) and exact_updates[key].any()
    }
    worst = max(errors, key=errors.get)
    print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, fall {fall:.2f}, worst {errors[worst]:.1e} {worst}")
    assert errors[worst] < UPDATE_TOLERANCE / 4, f"{name}: {worst} is ill-conditioned"
    return errors[worst]


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    base_model().save_pretrained(FOLDER / "base")
    data = dataset()
    save_file(data, FOLDER / "batches.safetensors")
    untrained_losses = {loss_name: train("visual_last_layer", loss_name, data, rate=0.0)[0] for loss_name in LOSSES}
    cases = []
    for mode in MODES:
        for loss_name in LOSSES:
            name = f"{mode}.{loss_name}"
            losses, updates = train(mode, loss_name, data)
            exact = train(mode, loss_name, data, torch.float64)
            error = check(name, losses, updates, *exact, untrained_losses[loss_name])
            assert mode != "all" or updates["logit_scale"].any() == (loss_name != "triplet")
            save_file(updates, FOLDER / f"{name}.safetensors")
            cases.append(
                {
                    "mode": mode,
                    "loss_name": loss_name,
                    "optimizer": "AdamW" if "textual" in mode else "Adam",
                    "weight_decay": 0.01 if "textual" in mode else 0.0,
                    "losses": losses,
                    "updates": f"{name}.safetensors",
                    "float64_difference": error,
                }
            )
    description = {
        "learning_rate": LEARNING_RATE,
        "margin": MARGIN,
        "steps": STEPS,
        "batch_size": BATCH,
        "not_comparable_suffix": NOISE_ONLY,
        "untrained_losses": untrained_losses,
        "cases": cases,
    }
    (FOLDER / "trainer.json").write_text(json.dumps(description, indent=2) + "\n")
