"""Pictures and scores under preprocessing other than OpenAI's, as transformers, open_clip and torchvision have them.

    python tests/golden/preprocessing.py      writes tests/golden/preprocessing/

transformers 5.24.0, open_clip_torch 3.3.0, torchvision 0.26.0, Pillow 13.0.0, torch 2.11.0. Pictures are those of pixels.py,
models those of metrics.py (`pick_score/` for transformers, `hps.pt` for open_clip). See README.md for the files and their keys.
"""

import json
import tempfile
from pathlib import Path

import open_clip
import torch
from open_clip.transform import CenterCropOrPad, PreprocessCfg, ResizeKeepRatio, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize
from transformers import CLIPImageProcessorPil, CLIPModel

FOLDER = Path(__file__).parent / "preprocessing"
PIXELS, MODELS = FOLDER.parent / "pixels", FOLDER.parent / "metrics"
SIZE = 28
PROMPT = "a red fox in snow"
PICTURES = ["rgb_odd.png", "rgba.png", "grey16.png", "palette.png", "upscaled.png"]
# For transformers: RGB, and no surplus of 3 more than a multiple of 4, where it crops one pixel earlier than torchvision.
SCORED = ["rgb.png", "rgb_odd.png"]
OPENAI_MEAN, OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def view(resize: str, filter: InterpolationMode, fill: int) -> Compose:
    steps = {
        "shortest": [Resize(SIZE, filter), CenterCrop(SIZE)],
        "squash": [Resize((SIZE, SIZE), filter)],
        "longest": [ResizeKeepRatio(SIZE, longest=1, interpolation=filter), CenterCropOrPad(SIZE, fill=fill)],
    }
    return Compose([*steps[resize], lambda picture: picture.convert("RGB"), PILToTensor()])


def write_pixels() -> None:
    """Every picture with every filter in every way of becoming square, u8 [28, 28, 3]."""
    expected, cases = {}, []
    for picture in PICTURES:
        for filter in ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]:
            for resize, fill in [("shortest", 0), ("squash", 0), ("longest", 127)]:
                if resize == "longest" and picture == "palette.png":
                    continue  # filled up with the palette's entry 127
                key = f"{picture}.{filter}.{resize}.{fill}"
                pixels = view(resize, InterpolationMode(filter), fill)(Image.open(PIXELS / picture))
                assert pixels.shape == (3, SIZE, SIZE)
                expected[key] = pixels.permute(1, 2, 0).contiguous()
                cases.append({"key": key, "picture": picture, "filter": filter, "resize": resize, "fill": fill})
    save_file(expected, FOLDER / "pixels.safetensors")
    (FOLDER / "pixels.json").write_text(json.dumps(cases, indent=0) + "\n")


def hugging_face_scores() -> list[dict]:
    model = CLIPModel.from_pretrained(MODELS / "pick_score").eval()
    base = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    settings = {
        "openai": {},
        "half": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "bilinear": {"resample": 2},
        "lanczos, signed bytes": {"resample": 1, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        "no mean": {"do_normalize": False},
        "squash": {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False},
        "box, squash": {"size": {"height": SIZE, "width": SIZE}, "resample": 4, "image_mean": [0.2, 0.3, 0.4]},
    }
    cases = []
    for name, more in settings.items():
        with tempfile.TemporaryDirectory() as folder:
            CLIPImageProcessorPil(**{**base, **more}).save_pretrained(folder)
            written = json.loads((Path(folder) / "preprocessor_config.json").read_text())
        processor = CLIPImageProcessorPil(**written)
        for picture in SCORED:
            pixels = processor(Image.open(PIXELS / picture), return_tensors="pt").pixel_values
            out = model(input_ids=open_clip.tokenize([PROMPT]), pixel_values=pixels)
            cases.append({"library": "transformers", "name": name, "settings": written, "picture": picture,
                          "score": (out.image_embeds * out.text_embeds).sum().item()})
    return cases


def open_clip_scores() -> list[dict]:
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 64, "head_width": 64, "patch_size": 7},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    state = torch.load(MODELS / "hps.pt")["state_dict"]
    settings = {
        "openai": {},
        "half": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "squash, bilinear": {"resize_mode": "squash", "interpolation": "bilinear"},
        "longest": {"resize_mode": "longest", "fill_color": 127},
        "longest, bilinear": {"resize_mode": "longest", "interpolation": "bilinear", "mean": 0.5, "std": 0.25},
    }
    cases = []
    for quick in [False, True]:
        model = open_clip.model.CLIP(**model_cfg, quick_gelu=quick).eval()
        model.load_state_dict({key: value.float() for key, value in state.items()})
        for name, preprocess in settings.items():
            transform = image_transform_v2(PreprocessCfg(size=SIZE, **preprocess), is_train=False)
            for picture in SCORED + ["upscaled.png", "rgba.png"]:
                image = model.encode_image(transform(Image.open(PIXELS / picture))[None], normalize=True)
                text = model.encode_text(open_clip.tokenize([PROMPT]), normalize=True)
                config = {"model_cfg": model_cfg | {"quick_gelu": quick}, "preprocess_cfg": {"mean": OPENAI_MEAN, "std": OPENAI_STD} | preprocess}
                cases.append({"library": "open_clip", "name": f"{name}, quick {quick}", "settings": config, "picture": picture,
                              "score": (image * text).sum().item()})
    return cases


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    write_pixels()
    with torch.no_grad():
        cases = hugging_face_scores() + open_clip_scores()
    (FOLDER / "scores.json").write_text(json.dumps(cases, indent=0) + "\n")
    print("\n".join(f"{case['library']} {case['name']} {case['picture']} {case['score']:.5f}" for case in cases))


if __name__ == "__main__":
    main()
