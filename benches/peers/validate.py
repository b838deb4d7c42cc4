"""Times the original's validation (src/validate.py): every prompt and image of every row is encoded, row by row.

    python benches/peers/validate.py model.safetensors validation.parquet --batch-size 8

Prints one JSON line: seconds (data and model, without loading the weights), accuracy (ties count as right, as in the
original), peak_rss_bytes, threads.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from original import encode, loader, load_model, peak_rss_bytes

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="OpenAI-layout .safetensors")
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = load_model(arguments.model)
    right = rows = 0
    start = time.perf_counter()
    with torch.no_grad():
        for batch in loader(arguments.parquet, model, arguments.batch_size, False, arguments.num_workers):
            text, positive, negative = encode(model, *batch)
            right += ((text * positive).sum(-1) >= (text * negative).sum(-1)).sum().item()
            rows += len(text)
    result = {"seconds": time.perf_counter() - start, "accuracy": right / rows}
    print(json.dumps(result | {"peak_rss_bytes": peak_rss_bytes(), "threads": torch.get_num_threads()}))
