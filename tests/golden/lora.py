"""Writes lora/: a tiny UNet and text encoder, LoRA files in every convention, and the outputs with each file loaded.

pip install torch==2.11.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 safetensors
python tests/golden/lora.py

Both factors of every adapter are random and no alpha is its rank. Weights are stored in fp16; the outputs are in fp32, of the
rounded weights.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

FOLDER = Path(__file__).parent / "lora"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "proj_in", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj", "ff.net.0.proj"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def unet():
    torch.manual_seed(1)
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return model.half().float().eval().requires_grad_(False)


def text():
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12,
        bos_token_id=58, eos_token_id=59, pad_token_id=59, projection_dim=16,
    )
    return CLIPTextModel(config).half().float().eval().requires_grad_(False)


def randomise(model, seed, scale=0.3):
    """Both factors of every adapter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_" in name:
            values = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data.copy_(values.half().float())


INPUT = {}


def run_unet(model):
    with torch.no_grad():
        return model(INPUT["latents"], INPUT["timesteps"], INPUT["context"]).sample


def run_text(model):
    with torch.no_grad():
        return model(INPUT["ids"]).last_hidden_state


def loaded(path):
    """The UNet's output with diffusers' own reading of a file."""
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(path, unet_config=unet().config, return_lora_metadata=True)
    model = unet()
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=model, metadata=metadata)
    return run_unet(model)


def half(path):
    """The same file with its tensors in fp16, which holds them exactly."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, model in (("unet", unet()), ("text_encoder", text())):
        model.half().save_pretrained(FOLDER / name)
    generator = torch.Generator().manual_seed(3)
    INPUT.update(
        latents=torch.randn(2, 4, 8, 8, generator=generator),
        timesteps=torch.tensor([700, 3]),
        context=torch.randn(2, 5, 16, generator=generator),
        ids=torch.randint(0, 58, (2, 12), generator=generator),
    )
    expected = {"unet.base": run_unet(unet()), "text.base": run_text(text())}

    # diffusers, by its own save function: ranks and alphas differ between layers.
    model, encoder = unet(), text()
    config = dict(r=4, lora_alpha=6, rank_pattern={"attn2.to_k": 3, "proj_in": 2}, alpha_pattern={"attn2.to_q": 2.5, "proj_in": 3})
    model.add_adapter(LoraConfig(target_modules=ATTENTION + CONVOLUTIONS, **config))
    inject_adapter_in_model(LoraConfig(target_modules=TEXT, r=2, lora_alpha=5), encoder)
    randomise(model, 4)
    randomise(encoder, 5)
    StableDiffusionPipeline.save_lora_weights(
        FOLDER / "diffusers",
        unet_lora_layers=get_peft_model_state_dict(model),
        text_encoder_lora_layers=get_peft_model_state_dict(encoder, adapter_name="default"),
        **_collate_lora_metadata({"unet": model, "text_encoder": encoder}),
    )
    path = FOLDER / "diffusers/pytorch_lora_weights.safetensors"
    half(path)
    expected["unet.diffusers"] = loaded(path)
    assert torch.equal(expected["unet.diffusers"], run_unet(model))
    expected["text.diffusers"] = run_text(encoder)

    # PEFT, by its own save function, with the scale alpha / sqrt(r).
    model = get_peft_model(unet(), LoraConfig(target_modules=ATTENTION, r=3, lora_alpha=2, use_rslora=True))
    randomise(model, 6)
    model.save_pretrained(FOLDER / "peft")
    (FOLDER / "peft/README.md").unlink(missing_ok=True)
    half(FOLDER / "peft/adapter_model.safetensors")
    expected["unet.peft"] = run_unet(model.base_model.model)

    # kohya: `lora_unet_` and `lora_te_` with underscores, an alpha a layer, LoCon on convolutions.
    model, encoder = unet(), text()
    model.add_adapter(LoraConfig(target_modules=ATTENTION + CONVOLUTIONS, r=4, lora_alpha=1))
    inject_adapter_in_model(LoraConfig(target_modules=TEXT, r=4, lora_alpha=1), encoder)
    randomise(model, 7)
    randomise(encoder, 8)
    kohya = {}
    for prefix, state in (("lora_unet", get_peft_model_state_dict(model)), ("lora_te_text_model", get_peft_model_state_dict(encoder, adapter_name="default"))):
        for name, tensor in state.items():
            layer, part = name.rsplit(".lora_", 1)
            layer = f"{prefix}_{layer.replace('.', '_')}"
            kohya[f"{layer}.lora_{'down' if part == 'A.weight' else 'up'}.weight"] = tensor.contiguous().half()
            kohya[f"{layer}.alpha"] = torch.tensor(1.0).half()
    save_file(kohya, FOLDER / "kohya.safetensors", {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "1.0"})
    expected["unet.kohya"] = run_unet(model)
    expected["text.kohya"] = run_text(encoder)
    # diffusers reads the layers it knows kohya's names of: attention only, here.
    with tempfile.TemporaryDirectory() as temporary:
        attention = {name: tensor for name, tensor in kohya.items() if "_attn" in name and "unet" in name}
        save_file(attention, Path(temporary) / "attention.safetensors")
        by_diffusers = loaded(Path(temporary) / "attention.safetensors")
    model = unet()
    model.add_adapter(LoraConfig(target_modules=ATTENTION, r=4, lora_alpha=1))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            layer, part = name.removesuffix(".default.weight").rsplit(".lora_", 1)
            parameter.data.copy_(kohya[f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if part == 'A' else 'up'}.weight"].float())
    assert (by_diffusers - run_unet(model)).abs().max() < 1e-6

    # Attention processors of diffusers before 0.22: no alpha, so that it is the rank.
    old = {}
    draw = torch.Generator().manual_seed(9)
    for name, module in unet().named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_v", "attn2.to_out.0")):
            attention, projection = name.replace(".to_out.0", ".to_out").rsplit(".", 1)
            for part, shape in (("down", (4, module.in_features)), ("up", (module.out_features, 4))):
                old[f"unet.{attention}.processor.{projection}_lora.{part}.weight"] = (torch.randn(shape, generator=draw) * 0.3).half()
    save_file(old, FOLDER / "processors.safetensors")
    expected["unet.processors"] = loaded(FOLDER / "processors.safetensors")

    for name, output in expected.items():
        base = expected[name.split(".")[0] + ".base"]
        assert name.endswith("base") or (output - base).abs().max() > 0.05, name
        print(name, (output - base).abs().max().item())
    save_file({**INPUT, **{name: output.contiguous() for name, output in expected.items()}}, FOLDER / "expected.safetensors")


main()
