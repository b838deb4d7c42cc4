"""Times the original's training steps (src/train_pair_pos_neg.py, mode visual_upper_layers_textual_upper_layers).

    python benches/peers/train.py model.safetensors train.parquet --batch-size 8 --steps 3 --warm-up 1

As in the original the optimizer holds the upper layers alone, but nothing is frozen: the backward pass runs through the
whole model, and the gradients of the other layers pile up unused. A step counts from fetching its batch to the end of
its update. On CUDA the forward pass runs under autocast where --precision is bf16. Prints one JSON line: seconds_per_step and losses (of the steps after the warm-up), peak_rss_bytes, threads.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from original import encode, loader, load_model, peak_rss_bytes

VISUAL_BLOCKS, TEXTUAL_BLOCKS, MARGIN, LEARNING_RATE = 3, 2, 0.3, 3e-5


def upper_layers(model) -> list[torch.nn.Parameter]:
    modules = [
        *model.visual.transformer.resblocks[-VISUAL_BLOCKS:],
        model.visual.ln_post,
        *model.transformer.resblocks[-TEXTUAL_BLOCKS:],
        model.ln_final,
    ]
    return [parameter for module in modules for parameter in module.parameters()] + [model.text_projection]


def epochs(batches):
    while True:
        yield from batches


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="OpenAI-layout .safetensors")
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="timed steps; epochs follow one another")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the timed ones")
    parser.add_argument("--seed", type=int, default=0, help="order of the rows")
    parser.add_argument("--in-order", action="store_true", help="rows as they stand in the file, to compare losses")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: by autocast")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode; the original has none")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    model = load_model(arguments.model).to(arguments.device)
    optimizer = torch.optim.AdamW(upper_layers(model), lr=LEARNING_RATE)
    shuffle, workers = not arguments.in_order, arguments.workers
    batches = epochs(loader(arguments.parquet, model, arguments.batch_size, shuffle, workers))
    seconds, losses = [], []
    for _ in range(arguments.warm_up + arguments.steps):
        start = time.perf_counter()
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            text, positive, negative = encode(model, *next(batches))
        distances = (text - positive).square().sum(-1) - (text - negative).square().sum(-1)
        loss = torch.relu(distances + MARGIN).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    timed = slice(arguments.warm_up, None)
    result = {"seconds_per_step": seconds[timed], "losses": losses[timed]}
    result["peak_cuda_bytes"] = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else None
    print(json.dumps(result | {"peak_rss_bytes": peak_rss_bytes(), "threads": torch.get_num_threads()}))
