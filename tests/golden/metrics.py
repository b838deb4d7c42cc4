"""Tiny random checkpoints of every metric model, as they are published, and the scores that the field's own code gives.

    python tests/golden/metrics.py            writes tests/golden/metrics/

openai-clip 1.0.1 (CLIPScore, the CLIP under LAION's head), transformers 5.24.0 (PickScore; BERT of ImageReward),
open_clip_torch 3.3.0 (HPSv2), torch 2.11.0, torchvision 0.26.0. Pixels are tensors in 0..=1, so that gradients reach them:
torchvision's own transforms on tensors, cut off at 0 and 1 where the original works on Pillow's bytes.

Prompts need the vocabulary of 49408: each embedding table is a view into a short storage (row i starts at element i),
which keeps the files small. See README.md for the files and their keys.
"""

import json
from pathlib import Path

import clip.model
import open_clip
import torch
import torchvision.transforms.functional as F
from random_weights import randomise
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from transformers import CLIPConfig, CLIPModel

FOLDER = Path(__file__).parent / "metrics"
SIZE, PATCH, CONTEXT, EMBED, VOCABULARY = 28, 7, 77, 24, 49408
LOGIT_SCALE = 3.2
PROMPTS = ["a red fox in snow, highly detailed", "Sunset over the SEA"]
# Height, width: fits, wide, tall, smaller than the model's, and one whose letterbox has odd margins.
CASES = {"square": (28, 28), "wide": (37, 61), "tall": (53, 30), "small": (17, 23), "narrow": (64, 45)}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pictures(height: int, width: int, seed: int) -> torch.Tensor:
    """[2, 3, height, width] in 0..=1: four coloured quarters, soft noise, and values at both ends."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.nn.functional.interpolate(torch.rand([2, 3, 2, 2], generator=generator), (height, width))
    return (quarters + 0.2 * torch.randn([2, 3, height, width], generator=generator)).clamp(0, 1)


def clip_view(pixels: torch.Tensor) -> torch.Tensor:
    """`_transform` of openai-clip, on tensors."""
    if min(pixels.shape[2:]) != SIZE:
        pixels = F.resize(pixels, SIZE, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return F.normalize(F.center_crop(pixels, [SIZE, SIZE]), MEAN, STD)


def letterbox_view(pixels: torch.Tensor) -> torch.Tensor:
    """`ResizeMaxSize` and `Normalize` of hpsv2 1.2.0 (src/open_clip/transform.py), which work on tensors already."""
    height, width = pixels.shape[2:]
    scale = SIZE / float(max(height, width))
    if scale != 1.0:
        new_size = tuple(round(side * scale) for side in (height, width))
        pixels = F.resize(pixels, new_size, InterpolationMode.BICUBIC)
        pad_h, pad_w = SIZE - new_size[0], SIZE - new_size[1]
        pixels = F.pad(pixels, [pad_w // 2, pad_h // 2, pad_w - pad_w // 2, pad_h - pad_h // 2], fill=0)
    return F.normalize(pixels, MEAN, STD)


@torch.no_grad()
def short_table(model: torch.nn.Module, name: str, seed: int) -> dict[str, torch.Tensor]:
    """The state dict in fp16 with a sliding view for the table `name`, loaded back into `model`."""
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    width = state[name].shape[1]
    storage = 0.5 * torch.randn([VOCABULARY + width - 1], generator=torch.Generator().manual_seed(seed))
    state[name] = storage.half().as_strided([VOCABULARY, width], [1, 1])
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return state


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def openai_model(seed: int) -> tuple[clip.model.CLIP, dict]:
    # Widths of 64 and more: heads are width / 64.
    model = clip.model.CLIP(EMBED, SIZE, 1, 64, PATCH, CONTEXT, VOCABULARY, 64, 1, 1).float().eval()
    randomise(model, seed, LOGIT_SCALE)
    return model, short_table(model, "token_embedding.weight", seed)


def pick_score_model(seed: int) -> tuple[CLIPModel, dict]:
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": EMBED}
    config = CLIPConfig(
        projection_dim=EMBED,
        logit_scale_init_value=LOGIT_SCALE,
        vision_config=tower | {"image_size": SIZE, "patch_size": PATCH, "hidden_size": 32, "intermediate_size": 64},
        text_config=tower
        | {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": CONTEXT,
            "hidden_size": 24,
            "intermediate_size": 48,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        },
    )
    model = CLIPModel(config).eval()
    randomise(model, seed, LOGIT_SCALE)
    return model, short_table(model, "text_model.embeddings.token_embedding.weight", seed)


def hps_model(seed: int) -> tuple[open_clip.model.CLIP, dict]:
    vision = open_clip.model.CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=PATCH, image_size=SIZE)
    text = open_clip.model.CLIPTextCfg(context_length=CONTEXT, vocab_size=VOCABULARY, width=64, heads=1, layers=1)
    model = open_clip.model.CLIP(EMBED, vision, text, quick_gelu=False).eval()
    randomise(model, seed, LOGIT_SCALE)
    return model, short_table(model, "token_embedding.weight", seed)


def aesthetic_head(seed: int) -> dict[str, torch.Tensor]:
    """`MLP` of LAION's improved-aesthetic-predictor (dropouts between, no activations), narrower."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (into, out) in zip([0, 2, 4, 6, 7], [(EMBED, 16), (16, 8), (8, 6), (6, 4), (4, 1)]):
        state[f"layers.{layer}.weight"] = torch.randn([out, into], generator=generator) * into**-0.5
        state[f"layers.{layer}.bias"] = torch.randn([out], generator=generator)
    return state


def aesthetic(head: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for layer in [0, 2, 4, 6, 7]:
        x = torch.nn.functional.linear(x, head[f"layers.{layer}.weight"], head[f"layers.{layer}.bias"])
    return x.squeeze(-1)


def main() -> None:
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "pick_score").mkdir(exist_ok=True)
    openai, openai_state = openai_model(seed=1)
    pick, pick_state = pick_score_model(seed=2)
    hps, hps_state = hps_model(seed=3)
    head = aesthetic_head(seed=4)
    torch.save(openai_state, FOLDER / "clip.pt")
    pick.config.save_pretrained(FOLDER / "pick_score")
    torch.save(pick_state, FOLDER / "pick_score" / "pytorch_model.bin")
    torch.save({"epoch": 1, "state_dict": hps_state}, FOLDER / "hps.pt")
    torch.save(head, FOLDER / "aesthetic.pth")

    tokens = clip.tokenize(PROMPTS)
    pad_with_end = tokens.where(tokens != 0, torch.tensor(49407))  # as CLIPTokenizer does
    expected = {}

    def score(name: str, view, encode) -> None:
        for index, (case, (height, width)) in enumerate(CASES.items()):
            pixels = pictures(height, width, seed=10 + index).requires_grad_(True)
            scores = encode(view(pixels))
            scores.sum().backward()
            assert (scores[0] - scores[1]).abs() > 1e-3, f"{name} {case}: {scores}"
            expected[f"{case}.pixels"] = pixels.detach()
            expected[f"{case}.{name}"] = scores.detach()
            if (name, case) == ("hps-v2", "wide"):
                expected[f"{case}.{name}.gradient"] = pixels.grad

    def cosine(model, ids, x):
        return (unit(model.encode_image(x)) * unit(model.encode_text(ids))).sum(-1)

    def pick_score(x):
        text = pick.get_text_features(input_ids=pad_with_end).pooler_output
        image = pick.get_image_features(pixel_values=x).pooler_output
        return pick.logit_scale.exp() * (unit(image) * unit(text)).sum(-1)

    for model in (openai, pick, hps):
        model.requires_grad_(False)
    score("clip-score", clip_view, lambda x: cosine(openai, tokens, x))
    score("aesthetic", clip_view, lambda x: aesthetic(head, unit(openai.encode_image(x))))
    score("pick-score", clip_view, pick_score)
    score("hps-v2", letterbox_view, lambda x: cosine(hps, tokens, x))
    for index, (case, (height, width)) in enumerate(CASES.items()):
        expected[f"{case}.letterbox"] = letterbox_view(pictures(height, width, seed=10 + index)[:1])
    save_file({key: value.contiguous() for key, value in expected.items()}, FOLDER / "expected.safetensors")
    (FOLDER / "metrics.json").write_text(json.dumps({"prompts": PROMPTS, "cases": list(CASES)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
