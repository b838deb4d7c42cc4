"""Measures this machine's float32 matrix-product rate through PyTorch: the yardstick of `make bench`.

    python benches/peers/gemm.py --threads 2

Each shape is timed over several rounds and its best round counts. Prints one JSON line: gflops (the best shape),
shapes {"MxKxN": gflops}, threads.
"""

import argparse
import json
import time

import torch

SHAPES = [(2056, 1024, 4096), (2056, 4096, 1024), (2056, 1024, 1024), (4096, 4096, 4096)]
ROUNDS = 5

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)

    rates = {}
    for m, k, n in SHAPES:
        left, right, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        torch.mm(left, right, out=out)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            seconds.append(time.perf_counter() - start)
        rates[f"{m}x{k}x{n}"] = 2e-9 * m * k * n / min(seconds)
    print(json.dumps({"gflops": max(rates.values()), "shapes": rates, "threads": torch.get_num_threads()}))
