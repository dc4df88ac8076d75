"""How evenly a step is split over ranks, and how fast: `python benchmarks/batching.py`.

A million rows of lognormal length (half under 300 tokens, up to 4,096), 16 examples a rank and
step, micro-batches of at most 8,192 tokens. Every rank computes the whole assignment, alone. Cost:
what a rank computes of an 8B model, attention included, so tokens and their squares.
"""

from __future__ import annotations

import time

import numpy as np

from trainer.data.batching import assign, examples_of_step

ROWS, EXAMPLES, MAX_TOKENS, STEPS = 1_000_000, 16, 8192, 5
# FLOP of one token of Llama-3.1-8B with LoRA, and of one pair in attention: 4 N, 12 x 32 x 4,096.
TOKEN_COST, PAIR_COST = 4 * 7.5e9, 12.0 * 32 * 4096


def main() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(300), 1.0, ROWS), 16, 4096).astype(np.int32)
    costs = TOKEN_COST * lengths + PAIR_COST * lengths.astype(np.float64) ** 2 / 2
    print("| ranks | ms a step | most tokens / mean | most cost / mean | micro-batch room used |")
    print("|---:|---:|---:|---:|---:|")
    for ranks in (1, 8, 64, 512, 2048, 4096):
        seconds, tokens, cost, used = [], [], [], []
        for step in range(STEPS):
            started = time.perf_counter()
            rows = examples_of_step(
                step, num_examples=ROWS, global_batch_size=EXAMPLES * ranks, seed=0
            )
            shares = assign(lengths[rows], ranks, MAX_TOKENS)
            seconds.append(time.perf_counter() - started)
            of_rank = [np.concatenate([rows[members] for members in share]) for share in shares]
            sums = np.array([lengths[share].sum() for share in of_rank])
            loads = np.array([costs[share].sum() for share in of_rank])
            tokens.append(sums.max() / sums.mean())
            cost.append(loads.max() / loads.mean())
            used.append(sums.mean() / (len(shares[0]) * MAX_TOKENS))
        # The first step also shuffles the million rows.
        print(
            f"| {ranks} | {1e3 * np.median(seconds):.1f} | {np.median(tokens):.3f} "
            f"| {np.median(cost):.3f} | {np.median(used):.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
