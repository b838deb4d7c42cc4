"""A tiny ImageReward as it is published, and the scores of a re-statement of its code in PyTorch.

    python tests/golden/image_reward.py       writes tests/golden/image_reward/

The text tower is transformers 5.24.0's own `BertModel` with cross-attention (BLIP's `med.py` is a copy of it), tokens are those
of its `BertTokenizer`; the ViT restates BLIP's `models/vit.py`, the head and its standardisation ImageReward's
`ImageReward.py` (image-reward 1.5). Pictures, prompts and keys as in `metrics.py`.
"""

import json
from pathlib import Path

import torch
from metrics import CASES, PROMPTS, F, InterpolationMode, pictures
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

FOLDER = Path(__file__).parent / "image_reward"
SIZE, PATCH, VISION, VISION_LAYERS, HEADS, TEXT, TEXT_LAYERS = 32, 16, 128, 2, 2, 32, 2
MAX_LENGTH = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PIECES = """[PAD] [UNK] [CLS] [SEP] [MASK] a the red fox in snow , . ! ? ( ) - & ; ' " sun ##set over sea high ##ly
detail ##ed cafe strasse ##s ##e 大 家 un ##want resume naive dog 1 ##2 ##3 of x ##y""".split()
TEXTS = [
    *PROMPTS,
    "The red Café, naïve RÉSUMÉ!",
    "unwanted  sunset\t(over the sea)\n大家 x123y",
    "fox & fox; [SEP] é it's \u200bfox\u0000 red-fox 123",
    "fox " * 60,
    "",
    "un" * 60,
]


class Block(nn.Module):
    """`Block` of BLIP's vit.py (timm's)."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(VISION, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(VISION, 3 * VISION), "proj": nn.Linear(VISION, VISION)})
        self.norm2 = nn.LayerNorm(VISION, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(VISION, VISION), "fc2": nn.Linear(VISION, VISION)})

    def forward(self, x):
        batch, tokens, _ = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, HEADS, VISION // HEADS).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) * (VISION // HEADS) ** -0.5).softmax(dim=-1)
        x = x + self.attn["proj"]((weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, VISION))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, VISION, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, VISION))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + 1, VISION))
        self.blocks = nn.ModuleList(Block() for _ in range(VISION_LAYERS))
        self.norm = nn.LayerNorm(VISION, eps=1e-6)

    def forward(self, pixels):
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ImageReward(nn.Module):
    def __init__(self, med_config: dict):
        super().__init__()
        self.visual_encoder = Vit()
        config = BertConfig(**{key: value for key, value in med_config.items() if key not in ("encoder_width", "add_type_embeddings")})
        config.is_decoder, config.add_cross_attention, config._attn_implementation = True, True, "eager"
        self.text_encoder = BertModel(config, add_pooling_layer=False)
        for layer in self.text_encoder.encoder.layer:  # keys and values read the picture, which is wider
            for part in ("key", "value"):
                setattr(layer.crossattention.self, part, nn.Linear(VISION, TEXT))
        # BLIP's `med.py` runs BERT as an encoder (its text is not masked causally) that has cross-attention.
        self.layers = nn.Sequential(*[nn.Linear(a, b) for a, b in zip([TEXT, 24, 16, 8, 4], [24, 16, 8, 4, 1])])

    def forward(self, pixels, ids, mask):
        image = self.visual_encoder(pixels)
        x = self.text_encoder.embeddings(input_ids=ids)
        keep = (1.0 - mask[:, None, None, :].to(x)) * torch.finfo(x.dtype).min
        for layer in self.text_encoder.encoder.layer:
            x = self.attention(layer.attention, x, x, keep)
            x = self.attention(layer.crossattention, x, image, None)
            x = layer.output(layer.intermediate(x), x)
        return (self.layers(x[:, 0]).squeeze(-1) - MEAN) / STD

    def attention(self, module, x, context, mask):
        """`BertAttention` by its own layers, as `med.py` has it."""
        heads = module.self.num_attention_heads
        split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(1, 2)  # noqa: E731
        query, key, value = split(module.self.query(x)), split(module.self.key(context)), split(module.self.value(context))
        scores = query @ key.transpose(-1, -2) / (TEXT // heads) ** 0.5
        attended = ((scores if mask is None else scores + mask).softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
        return module.output(attended, x)


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * noise)
        elif "embed" in name and "proj" not in name or name.endswith("cls_token"):
            parameter.copy_(0.7 * noise)
        else:
            parameter.copy_(1.4 * noise * parameter[0].numel() ** -0.5)
        parameter.copy_(parameter.half().float())


def view(pixels: torch.Tensor) -> torch.Tensor:
    """`_transform` of ImageReward's `utils.py`, on tensors."""
    if min(pixels.shape[2:]) != SIZE:
        pixels = F.resize(pixels, SIZE, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return F.normalize(F.center_crop(pixels, [SIZE, SIZE]), PIXEL_MEAN, PIXEL_STD)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    vocab = FOLDER / "vocab.txt"
    vocab.write_text("\n".join(PIECES) + "\n")
    med_config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": TEXT,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": TEXT_LAYERS,
        "pad_token_id": 0,
        "add_type_embeddings": False,
        "type_vocab_size": 2,
        "vocab_size": len(PIECES) + 2,  # [DEC] and [ENC]
        "encoder_width": VISION,
        "add_cross_attention": True,
    }
    (FOLDER / "med_config.json").write_text(json.dumps(med_config, indent=2) + "\n")
    tokenizer = BertTokenizer.from_pretrained(str(FOLDER))
    model = ImageReward(med_config).eval()
    randomise(model, seed=5)

    def rename(name: str) -> str:
        if name.startswith("layers."):
            index, part = name.split(".")[1:]
            return f"mlp.layers.{[0, 2, 4, 6, 7][int(index)]}.{part}"
        return f"blip.{name}"

    state = {rename(name): value.half() for name, value in model.state_dict().items() if "token_type" not in name}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    # BLIP's contrastive projections, which the reward does not use.
    state |= {f"blip.{name}_proj.weight": torch.zeros(4, 8) for name in ("vision", "text")}
    torch.save(state, FOLDER / "ImageReward.pt")

    def encode(texts):
        return tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")

    # BLIP has no token types; transformers adds row 0 of its table.
    with torch.no_grad():
        model.text_encoder.embeddings.token_type_embeddings.weight.zero_()
    expected = {}
    tokens = encode(PROMPTS)
    for index, (case, (height, width)) in enumerate(CASES.items()):
        with torch.no_grad():
            scores = model(view(pictures(height, width, seed=10 + index)), tokens.input_ids, tokens.attention_mask)
        assert (scores[0] - scores[1]).abs() > 1e-3, scores
        expected[f"{case}.image-reward"] = scores
    rows = encode(TEXTS)
    expected["input_ids"] = rows.input_ids
    expected["lengths"] = rows.attention_mask.sum(-1)
    save_file(expected, FOLDER / "expected.safetensors")
    (FOLDER / "texts.json").write_text(json.dumps(TEXTS, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
