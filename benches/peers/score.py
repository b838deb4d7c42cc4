"""Scores pictures with transformers: a batch is decoded and preprocessed by its CLIPProcessor, then encoded.

    python benches/peers/score.py CLIP_FOLDER manifest.csv --batch-size 16

Prints one JSON line: seconds (decoding included, loading the weights not), scores (cosines), threads.
"""

import argparse
import json
import time
from pathlib import Path

import pandas
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("manifest", type=Path, help="CSV with prompt and path")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = CLIPModel.from_pretrained(arguments.model).eval()
    processor = CLIPProcessor.from_pretrained(arguments.model)
    table = pandas.read_csv(arguments.manifest)
    scores = []
    start = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(table), arguments.batch_size):
            rows = table.iloc[first : first + arguments.batch_size]
            images = [Image.open(arguments.manifest.parent / path).convert("RGB") for path in rows["path"]]
            inputs = processor(text=list(rows["prompt"]), images=images, return_tensors="pt", padding=True)
            output = model(**inputs)
            scores += (output.text_embeds * output.image_embeds).sum(-1).tolist()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "scores": scores, "threads": torch.get_num_threads()}))
