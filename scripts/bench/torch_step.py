# SPDX-License-Identifier: Apache-2.0
"""Tokens/s of transformers' torch AlbertForPreTraining in training, for train_step.py and gpu.py.

    python scripts/bench/torch_step.py                          # ALBERT-base, 8 x 128, as train_step.py has it
    python scripts/bench/torch_step.py --size xxlarge --batch 16 --sequence 512 --masks 80 --dtype bfloat16

Attention by SDPA, AdamW, rows of one example each without padding and so without a mask, dropout as in the released
version 2: none. All slots are scored, as the class does. On the GPU where torch finds one. Prints one JSON line;
tokens/s counts all positions of a step: forward, backward and optimizer.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

# Hidden size, layers, heads and feed-forward size, as in albert_jax/config.py, which is not imported: torch may live in
# an environment without this project's packages.
SIZES = {"base": (768, 12, 12, 3072), "xxlarge": (4096, 12, 64, 16384)}
TINY = (32, 2, 4, 64)
LONGEST = 12.0  # seconds of timed steps


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base", help="published size")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers of 32 in its place, for rehearsals")
    parser.add_argument("--vocabulary", type=int, default=30000, help="pieces")
    parser.add_argument("--batch", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches in a step")
    parser.add_argument("--sequence", type=int, default=128, help="slots in a row")
    parser.add_argument("--masks", type=int, default=20, help="masked slots in a row")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is by autocast")
    parser.add_argument("--compile", default="", metavar="BACKEND", help="torch.compile with it, such as inductor")
    parser.add_argument(
        "--steps", type=int, default=10, help=f"timed steps, fewer where they take over {LONGEST:.0f} s"
    )
    return parser.parse_args()


def random_rows(options: argparse.Namespace, device: str) -> dict[str, torch.Tensor]:
    """A micro-batch: ids, types and both kinds of labels, int64 on the device."""
    random = torch.Generator().manual_seed(1)
    rows, slots = options.batch, options.sequence
    ids = torch.randint(5, options.vocabulary, (rows, slots), generator=random)
    ids[:, 0] = 2
    masked = 1 + torch.rand(rows, slots - 1, generator=random).argsort(1)[:, : options.masks]
    labels = torch.full_like(ids, -100).scatter(1, masked, ids.gather(1, masked))
    batch = {
        "input_ids": ids.scatter(1, masked, 4),
        "token_type_ids": (torch.arange(slots) >= slots // 2).long().expand(rows, -1),
        "labels": labels,
        "sentence_order_label": torch.randint(0, 2, (rows,), generator=random),
    }
    return {name: value.to(device) for name, value in batch.items()}


def make_step(options: argparse.Namespace, device: str) -> Callable[[], float]:
    """A function that does one step of training and gives its loss."""
    torch.manual_seed(0)
    hidden, layers, heads, ffn = TINY if options.tiny else SIZES[options.size]
    config = transformers.AlbertConfig(
        vocab_size=options.vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
    )
    config._attn_implementation = "sdpa"
    model: Any = transformers.AlbertForPreTraining(config)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=device == "cuda")
    forward = torch.compile(model, backend=options.compile) if options.compile else model
    batch = random_rows(options, device)

    def step() -> float:
        total = torch.zeros((), device=device)
        for _ in range(options.accumulation):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"):
                loss = forward(**batch).loss / options.accumulation
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()  # waits for the device

    return step


def main() -> None:
    """Times steps after two others and prints the medians."""
    options = parse()
    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = make_step(options, device)
    began = time.perf_counter()
    losses = [step(), step()]
    first = time.perf_counter() - began
    times: list[float] = []
    while len(times) < options.steps and sum(times) < LONGEST:
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    tokens = options.batch * options.accumulation * options.sequence
    result = {
        "peer": "transformers " + transformers.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": options.dtype,
        "compile": options.compile,
        "attention": "sdpa",
        "opt": "adamw",
        "batch": options.batch,
        "accumulation": options.accumulation,
        "seq": options.sequence,
        "mlm": options.masks,
        "steps": len(times),
        "step_s_median": round(median, 4),
        "tokens_per_s_median": round(tokens / median, 1),
        "first_two_steps_s": round(first, 2),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
