"""The parts of github.com/Picsart-AI-Research/Social-Reward that its training and validation share, as it has them:
openai-clip's model and transform, PIL in the main process, no cache, no workers unless asked for."""

import resource
from pathlib import Path

import clip
import clip.model
import pandas
import torch
from PIL import Image
from safetensors.torch import load_file


def load_model(path: Path) -> clip.model.CLIP:
    """Builds openai-clip's CLIP from an OpenAI-layout .safetensors file, of any size, in float32 as on a CPU."""
    clip.model.convert_weights = lambda model: None  # it would round the weights to float16 before float() widens them
    return clip.model.build_model(load_file(path)).float()


class PromptImagePair(torch.utils.data.Dataset):
    """Rows of a parquet file (prompt, pos_path, neg_path); relative paths belong to the file's folder."""

    def __init__(self, parquet: Path, preprocess):
        self.rows = pandas.read_parquet(parquet)
        self.folder, self.preprocess = parquet.parent, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        row = self.rows.iloc[index]
        images = [self.preprocess(Image.open(self.folder / path)) for path in (row.pos_path, row.neg_path)]
        return row.prompt, *images


def loader(parquet: Path, model: clip.model.CLIP, batch_size: int, shuffle: bool, num_workers: int = 0):
    dataset = PromptImagePair(parquet, clip.clip._transform(model.visual.input_resolution))
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers)


def encode(model: clip.model.CLIP, prompts, positives, negatives) -> list[torch.Tensor]:
    """Unit embeddings of prompts, positives and negatives, each [B, D]."""
    device = model.positional_embedding.device
    tokens = clip.tokenize(list(prompts), context_length=model.context_length, truncate=True).to(device)
    images = [model.encode_image(images.to(device)) for images in (positives, negatives)]
    embeddings = (model.encode_text(tokens), *images)
    return [embedding / embedding.norm(dim=-1, keepdim=True) for embedding in embeddings]


def peak_rss_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
