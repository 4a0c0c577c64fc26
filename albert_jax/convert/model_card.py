# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported model: what it is, how it was trained, how to load it."""

import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from albert_jax.config import AlbertConfig
from albert_jax.data.stream import LABEL_ONE

_PLACES = {
    "data": ("path", "validation_path", "vocab"),
    "": ("init_from", "branch_from"),
}  # which say nothing elsewhere
_PAIRS = {"sop": "sentence order", "sop_parity": "sentence order", "nsp": "next sentences"}
_ANY = "[MASK]"  # where no sentence of the data can be had
_HOW_TO_LOAD = """\
```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForMaskedLM.from_pretrained("DIRECTORY")
COMMENTtext = TEXT
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    scores = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
print(tokenizer.convert_ids_to_tokens(scores[0].topk(5).indices))
```

With albert_jax: `python scripts/fill_mask.py DIRECTORY QUOTED`

PAIRS
Take `AutoTokenizer` rather than transformers 5's `AlbertTokenizer`, which puts its own pipeline in tokenizer.json's
place.
"""


class Told(NamedTuple):
    """What the run does not know of its model, and the card says.

    Attributes:
      languages: of the text, ISO 639 codes.
      licence: of the model, by the hub's name, or None where nobody said.
      example: a sentence of the data with "[MASK]" in it, or None where none can be had.
    """

    languages: Sequence[str] = ()
    licence: str | None = None
    example: str | None = None


NOTHING_TOLD = Told()


def model_card(
    name: str, meta: dict[str, Any], records: Sequence[dict[str, Any]], version: str, told: Told = NOTHING_TOLD
) -> str:
    """Writes the card.

    Args:
      name: of the model; the title.
      meta: of the checkpoint, see `albert_jax.training.checkpoint`: `model`, `config`, `data`, `data_fingerprint`,
        `vocabulary_sha256`, `step`, `position`, `versions`.
      records: of metrics.jsonl; those after the step are not looked at.
      version: of albert_jax.
      told: what is said by whoever exports.

    Returns:
      Markdown with the hub's YAML front matter.
    """
    records = [record for record in records if record["step"] <= meta["step"]]
    evaluations = [record for record in records if record["kind"] == "eval"]
    order = _sentence_order(meta["config"]["data"], records)
    sections = [
        f"---\n{_front_matter(told)}\n---",
        f"# {name}",
        "An ALBERT (Lan et al. 2019, [arXiv:1909.11942](https://arxiv.org/abs/1909.11942)) pretrained from raw text on "
        f"{_objective(order)} with albert_jax {version}.",
        "## Training\n\n" + _table("fact", "value", _training_facts(meta, order, told)),
        "## Validation\n\n" + _validation(evaluations[-1] if evaluations else None, order),
        "## Use\n\n" + _how_to_load(name, told.example, order),
        "## Configuration\n\n```json\n" + json.dumps(_settings(meta["config"]), indent=2, sort_keys=True) + "\n```",
        "## Versions\n\n" + _table("what", "version", list(meta["versions"].items())),
    ]
    return "\n\n".join(sections) + "\n"


def _sentence_order(data: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """What the labels of pairs were by: `data.sentence_order`, 'baked', or 'none' where no pair had a label."""
    counted = [r for r in records if r["kind"] in ("train", "eval")]
    # Earlier versions recorded a loss of exactly 0 over no pairs.
    if counted and not any(record.get("sop_loss") or record.get("eval_sop_count") for record in counted):
        return "none"
    return "baked" if data["recipe"] == "baked" else str(data["sentence_order"])


def _objective(order: str) -> str:
    pairs = {"none": "", "baked": " and the pairs of Google's records"}
    return "masked words" + pairs.get(order, f" and {_PAIRS.get(order)}")


def _front_matter(told: Told) -> str:
    example: dict[str, Any] = {"widget": [{"text": told.example}]} if told.example else {}
    data = ModelCardData(
        language=list(told.languages) or None,
        license=told.licence or "unknown",
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["albert"],
        mask_token="[MASK]",
        **example,
    )
    return data.to_yaml()


def _table(left: str, right: str, rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _training_facts(meta: dict[str, Any], order: str, told: Told) -> list[tuple[str, Any]]:
    model, vocabulary, config = AlbertConfig.from_dict(meta["model"]), meta["data"]["vocabulary"], meta["config"]
    flags = f"do_lower_case={vocabulary['do_lower_case']}, keep_accents={vocabulary['keep_accents']}"
    started = config.get("init_from") or config.get("branch_from")
    label = f"; label 1: {LABEL_ONE[order]}" if order in LABEL_ONE else ""
    return [
        ("parameters", f"{model.pretraining_parameters():,}"),
        ("objective", _objective(order) + label),
        ("masking", _masking(config)),
        ("optimizer", _optimizer(config)),
        ("batch", f"{config['batch']['size']:,} {config['batch']['unit']} of {_slots(config['data'])} slots"),
        ("optimizer steps", f"{meta['step']:,} of {config['steps']:,}"),
        ("rows of the stream consumed", f"{meta['position']:,}"),
        *([("started from", f"`{pathlib.PurePath(started).name}`")] if started else []),
        ("language", ", ".join(told.languages) or "unknown"),
        ("licence", told.licence or "unknown"),
        ("training text", _training_text(meta["data"])),
        ("training text fingerprint", f"`{meta['data_fingerprint']}`"),
        ("vocabulary", f"{vocabulary['size']:,} pieces, {flags}"),
        ("vocabulary SHA-256", f"`{meta['vocabulary_sha256']}`"),
        *([("data set built by", meta["data"]["created_by"])] if "created_by" in meta["data"] else []),
    ]


def _masking(config: dict[str, Any]) -> str:
    masking = config["masking"]
    if config["data"]["recipe"] == "baked":
        return "as Google's records have it"
    unit = "words" if masking["whole_word"] else "pieces"
    return f"{masking['rate']:.0%} of the tokens, in spans of 1 to {masking['max_ngram']} {unit}"


def _slots(data: dict[str, Any]) -> str:
    """The lengths of rows: of each phase, then the last."""
    return ", then ".join([phase.split(":")[0] for phase in data["phases"].split()] + [str(data["sequence_length"])])


def _optimizer(config: dict[str, Any]) -> str:
    o = config["optimizer"]
    return (
        f"{o['name']}, learning rate {o['learning_rate']:g} after {o['warmup_steps']:,} steps of warm-up, then decay "
        f"of power {o['decay_power']:g}; weight decay {o['weight_decay']:g}; seed {config['seed']}"
    )


def _training_text(data: dict[str, Any]) -> str:
    """The size of a data set's training text, or of Google's records, and its sources."""
    if "records" in data:
        return str(data["records"]["train"])
    train = data["splits"]["train"]
    sources = [f"{name} {counts['documents']:,}" for name, counts in train.get("sources", {}).items()]
    by_source = f" ({', '.join(sources)})" if sources else ""
    return f"{train['documents']:,} documents{by_source}, {train['sentences']:,} sentences, {train['tokens']:,} tokens"


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the places where things lay."""
    settings = config | {"data": {k: v for k, v in config["data"].items() if k not in _PLACES["data"]}}
    return {name: value for name, value in settings.items() if name not in _PLACES[""]}


def _validation(evaluation: dict[str, Any] | None, order: str) -> str:
    if evaluation is None:
        return "This run has no evaluation at or before the exported step."
    # A figure over nothing is none; earlier versions recorded it as 0.
    empty = [f"eval_{of}_" for of in ("mlm", "sop") if not evaluation.get(f"eval_{of}_count")]
    empty += ["eval_unigram_"] if "eval_mlm_" in empty else []
    found = {k: v for k, v in evaluation.items() if k.startswith("eval_") and not k.startswith(tuple(empty))}
    pairs = "nsp" if order == "nsp" else "sop"
    rows = [
        (name.removeprefix("eval_").replace("sop", pairs).replace("_", " "), f"{value:,.4f}".removesuffix(".0000"))
        for name, value in found.items()
    ]
    heading = f"At step {evaluation['step']:,}. Losses in nats."
    if "eval_unigram_loss" in found:
        heading += " `unigram loss` is that of the same masked targets under the training text's word frequencies."
    if "eval_sop_low" in found:
        heading += f" `{pairs} low` and `{pairs} high` bound the accuracy of {_PAIRS.get(order, 'pairs')} (95 %)."
    return heading + "\n\n" + _table("figure", "value", rows)


def _how_to_load(name: str, example: str | None, order: str) -> str:
    if order == "none":
        pairs = (
            "The pooler and the second head of transformers' `AutoModelForPreTraining` were not trained by this run.\n"
        )
    else:
        first = "B follows A" if order == "nsp" else "in order"
        second = LABEL_ONE.get(order, LABEL_ONE["sop_parity"])
        pairs = (
            f"Transformers' `AutoModelForPreTraining` loads the head for {_PAIRS.get(order, 'pairs')} as well: class 0 "
            f'is "{first}", class 1 "{second}".\n'
        )
    text = example or _ANY
    parts = {
        "DIRECTORY": name,
        "PAIRS": pairs,
        "COMMENT": "" if example else "# Put in a sentence of the model's language.\n",
        "TEXT": json.dumps(text, ensure_ascii=False),
        "QUOTED": shlex.quote(text),
    }
    card = _HOW_TO_LOAD
    for part, words in parts.items():
        card = card.replace(part, words)
    return card
