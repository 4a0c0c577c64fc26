# SPDX-License-Identifier: Apache-2.0
"""The report's page: tables of facts, the pictures, the most frequent pieces."""

import html
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import sentencepiece

from albert_jax.training.recipe import RESUMABLE_FIELDS
from pretrain_data.report.numbers import Coverage, Numbers
from pretrain_data.report.pictures import Panel, panels

_FREQUENT = 60
_LISTED = 20  # entries of a list in the manifest
_CSS = """
:root { color-scheme: light }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: #fff; color: #1f2933;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.5rem; margin: 0.5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem }
h3 { font-size: 1rem; margin: 0 0 0.25rem }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0; min-width: 0 }
figure svg { display: block; width: 100%; height: auto }
figcaption { font-size: 0.875rem; color: #52606d }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.875rem; margin-bottom: 1rem }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #e4e7eb }
th { font-weight: 600 }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; min-width: 5rem }
.pieces { display: flex; flex-wrap: wrap; gap: 0.4rem; list-style: none; padding: 0; margin: 0.5rem 0 }
.pieces li { border: 1px solid #e4e7eb; border-radius: 0.3rem; padding: 0 0.4rem }
.pieces small { color: #52606d }
"""


def render(
    name: str, manifest: dict[str, Any], config: ml_collections.ConfigDict, numbers: Numbers, model_file: pathlib.Path
) -> str:
    """The page as text.

    Args:
      name: the data set's.
      manifest: likewise.
      config: the recipe.
      numbers: what was measured.
      model_file: the SentencePiece model, for the names of pieces.
    """
    sample = numbers.sample
    read = f"{len(sample.examples_per_row):,} rows with {len(sample.lengths):,} examples"
    figures = "".join(_figure(panel) for panel in panels(manifest, config, numbers))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data set {html.escape(name)}</title><style>{_CSS}</style></head><body>"
        f"<h1>Data set {html.escape(name)}</h1>"
        "<p>Numbers are of the training split unless they say otherwise. Examples, rows and masks were measured on "
        f"{read}, the first that a run with this recipe and seed {config.seed} trains on.</p>"
        f"<h2>What it holds</h2>{_table(split_facts(manifest))}"
        f"<h2>Where it comes from</h2>{_table(source_facts(manifest))}{_table(other_facts(manifest))}"
        f"<h2>Pictures</h2><div class=grid>{figures}</div>"
        f"<h2>Most frequent pieces</h2>{_pieces(numbers.coverage, model_file)}"
        f"<h2>Recipe, as far as it shapes examples</h2>{_table(recipe_facts(config))}"
        "</body></html>\n"
    )


Row = Sequence[str]


# Of a split: what `source_facts` lists, and where its records lie.
_NOT_COUNTS = ("sources", "parts", "shard_records")


def split_facts(manifest: dict[str, Any]) -> list[Row]:
    """A heading and a row for each count of the manifest, with a column for each split."""
    columns = []
    for counts in manifest["splits"].values():
        facts = dict(flat({name: value for name, value in counts.items() if name not in _NOT_COUNTS}))
        tokens = max(1, counts["tokens"])
        facts["bytes per token"] = f"{counts['text_bytes'] / tokens:.3f}"
        facts["unknown rate"] = f"{counts['unknown_tokens'] / tokens:.4%}"
        facts["fingerprint"] = facts.pop("fingerprint")[:16]
        columns.append(facts)
    names = dict.fromkeys(name for facts in columns for name in facts)
    return [("", *manifest["splits"]), *((name, *(facts.get(name, "") for facts in columns)) for name in names)]


def source_facts(manifest: dict[str, Any]) -> list[Row]:
    """A row for each fact, with a column for each source; among them what each split has of it."""
    columns = []
    for source in manifest["sources"]:
        facts = dict(flat(source))
        for split, counts in manifest["splits"].items():
            facts |= dict(flat(counts.get("sources", {}).get(source.get("name"), {}), split))
        columns.append(facts)
    names = dict.fromkeys(name for facts in columns for name in facts)
    return [(name, *(facts.get(name, "") for facts in columns)) for name in names]


def other_facts(manifest: dict[str, Any]) -> list[Row]:
    """Everything else in the manifest."""
    return [("", ""), *flat({name: value for name, value in manifest.items() if name not in ("splits", "sources")})]


def recipe_facts(config: ml_collections.ConfigDict) -> list[Row]:
    """The recipe's fields that shape examples."""
    fields = {f"{group}.{name}": value for group in ("data", "masking") for name, value in config[group].items()}
    fields["seed"] = config.seed
    return [("", ""), *((name, _text(value)) for name, value in fields.items() if name not in RESUMABLE_FIELDS)]


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Names and texts of everything in a JSON value; a long list is cut, and says so."""
    if isinstance(value, dict):
        return [fact for key, inner in value.items() for fact in flat(inner, f"{name}, {key}" if name else str(key))]
    name = name.replace("_", " ")
    if isinstance(value, list):
        if any(isinstance(inner, dict | list) for inner in value):
            facts = [fact for nth, inner in enumerate(value[:_LISTED], 1) for fact in flat(inner, f"{name} {nth}")]
        else:
            facts = [(name, ", ".join(_text(inner) for inner in value[:_LISTED]))]
        more = len(value) - _LISTED
        return [*facts, (f"more {name}", f"{more:,}, not listed here")] if more > 0 else facts
    return [(name, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value) or '""'


def _table(rows: list[Row]) -> str:
    """The first row is the heading, unless it is empty."""
    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    lines = [f"<tr>{''.join(f'<th scope=col>{cell}</th>' for cell in head)}</tr>"] if any(head) else []
    for first, *rest in body:
        cells = "".join(f"<td dir=auto>{cell}</td>" for cell in rest)
        lines.append(f"<tr><th scope=row>{first}</th>{cells}</tr>")
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _figure(panel: Panel) -> str:
    return (
        f"<figure><h3>{html.escape(panel.title)}</h3>{panel.svg}"
        f"<figcaption>{html.escape(panel.caption)}</figcaption></figure>"
    )


def _pieces(used: Coverage, model_file: pathlib.Path) -> str:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_file.read_bytes())
    total = max(1, used.counts.sum())
    items = [
        f"<li><bdi>{html.escape(processor.id_to_piece(int(i)))}</bdi> <small>{count / total:.2%}</small></li>"
        for i, count in zip(used.order[:_FREQUENT], used.counts[:_FREQUENT], strict=True)
        if count
    ]
    return (
        f"<ol class=pieces>{''.join(items)}</ol><p>▁ marks the start of a word. Good: function words and punctuation; "
        "markup, menus or boilerplate here would be learned with everything else.</p>"
    )
