# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported model: what it is, how it was trained, how to load it."""

import json
from typing import Any

from albert_jax.config import AlbertConfig

_HOW_TO_LOAD = """\
```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForMaskedLM.from_pretrained("DIRECTORY")
inputs = tokenizer("The sum of two [MASK] is returned.", return_tensors="pt")
with torch.no_grad():
    scores = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
print(tokenizer.convert_ids_to_tokens(scores[0].topk(5).indices))
```

With albert_jax: `python scripts/fill_mask.py DIRECTORY "The sum of two [MASK] is returned."`

Transformers' `AutoModelForPreTraining` loads the sentence-order head as well: class 0 is "in order", class 1 "swapped".
Take `AutoTokenizer` rather than transformers 5's `AlbertTokenizer`, which puts its own pipeline in tokenizer.json's
place.
"""


def model_card(name: str, meta: dict[str, Any], evaluation: dict[str, Any] | None, version: str) -> str:
    """Writes the card.

    Args:
      name: of the model; the title.
      meta: of the checkpoint, see `albert_jax.training.checkpoint`: `model`, `config`, `data`, `data_fingerprint`,
        `vocabulary_sha256`, `step`, `position`, `versions`.
      evaluation: the last record of kind 'eval' in metrics.jsonl at or before the step, or None where there is none.
      version: of albert_jax.

    Returns:
      Markdown with the hub's YAML front matter.
    """
    sections = [
        _front_matter(),
        f"# {name}",
        "An ALBERT (Lan et al. 2019, [arXiv:1909.11942](https://arxiv.org/abs/1909.11942)) pretrained from raw text on "
        f"masked words and sentence order with albert_jax {version}.",
        "## Training\n\n" + _table("fact", "value", _training_facts(meta)),
        "## Validation\n\n" + _validation(evaluation),
        "## Use\n\n" + _HOW_TO_LOAD.replace("DIRECTORY", name),
        "## Configuration\n\n```json\n" + json.dumps(meta["config"], indent=2, sort_keys=True) + "\n```",
        "## Versions\n\n" + _table("what", "version", list(meta["versions"].items())),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter() -> str:
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: fill-mask",
            'mask_token: "[MASK]"',
            "tags:",
            "- albert",
            "---",
        ]
    )


def _table(left: str, right: str, rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _training_facts(meta: dict[str, Any]) -> list[tuple[str, Any]]:
    model, vocabulary = AlbertConfig.from_dict(meta["model"]), meta["data"]["vocabulary"]
    flags = f"do_lower_case={vocabulary['do_lower_case']}, keep_accents={vocabulary['keep_accents']}"
    return [
        ("parameters", f"{model.pretraining_parameters():,}"),
        ("optimizer steps", f"{meta['step']:,}"),
        ("rows of the stream consumed", f"{meta['position']:,}"),
        ("training text", _training_text(meta["data"])),
        ("training text fingerprint", f"`{meta['data_fingerprint']}`"),
        ("vocabulary", f"{vocabulary['size']:,} pieces, {flags}"),
        ("vocabulary SHA-256", f"`{meta['vocabulary_sha256']}`"),
        *([("data set built by", meta["data"]["created_by"])] if "created_by" in meta["data"] else []),
    ]


def _training_text(data: dict[str, Any]) -> str:
    """The size of a data set's training text, or of Google's records."""
    if "records" in data:
        return str(data["records"]["train"])
    train = data["splits"]["train"]
    return f"{train['documents']:,} documents, {train['sentences']:,} sentences, {train['tokens']:,} tokens"


def _validation(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "This run has no evaluation at or before the exported step."
    rows = [
        (name.removeprefix("eval_").replace("_", " "), f"{value:,.4f}".removesuffix(".0000"))
        for name, value in evaluation.items()
        if name.startswith("eval_")
    ]
    heading = (
        f"At step {evaluation['step']:,}. Losses in nats; `unigram loss` is that of the same masked targets under the "
        "training text's word frequencies; `sop low` and `sop high` bound the sentence-order accuracy (95 %)."
    )
    return heading + "\n\n" + _table("figure", "value", rows)
