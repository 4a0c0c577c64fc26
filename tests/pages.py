# SPDX-License-Identifier: Apache-2.0
"""Runs the pages of docs/ block by block, in a directory that holds a small model where the quick start would put one.

Blocks marked `transformers` need transformers 5 and torch; those marked `transformers4` in the second environment of
peers.py are left to test_docs.py.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import pydoc_data.topics
import re
from typing import Any

import albert_jax
from tests import tokenizer_samples
from tests.architectures import model

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {file.stem: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
MIGRATION = "from_transformers_flax"
TRAINED = ("text_classification", "token_classification", "question_answering", "multiple_choice")
MODEL = "runs/quickstart/export"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, what is marked beside it, and its text, led by blank lines to keep line numbers."""

    language: str
    mark: str
    text: str


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = re.finditer(r"^```(\w+) ?(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], "\n" * PAGES[page].count("\n", 0, m.start(3)) + m[3]) for m in found]


def has_transformers5() -> bool:
    """Whether blocks marked `transformers` can run here."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return False
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def sides(block: Block) -> tuple[str, str]:
    """What stood before and what stands after a change that a page shows as a diff."""
    lines = block.text.strip("\n").splitlines()
    return tuple("\n".join(line[1:] for line in lines if line[:1] in ("", " ", sign)) for sign in "-+")  # type: ignore[return-value]


def only(page: str, language: str, mark: str = "") -> Block:
    """The one block of its kind."""
    (block,) = [block for block in blocks(page) if (block.language, block.mark) == (language, mark)]
    return block


def make_model(place: pathlib.Path) -> None:
    """Makes a model of the quick start's architecture in a working directory, random but for its vocabulary."""
    directory = place / MODEL
    directory.mkdir(parents=True)
    manuals = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
    lines = [line for text in PAGES.values() for line in text.splitlines() if line.strip()]
    (directory / "spiece.model").write_bytes(tokenizer_samples.train(manuals[:2000] + lines * 10, vocab_size=2500))
    tokenizer = albert_jax.AlbertTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory, model_max_length=64)
    config = albert_jax.AlbertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    made, params = model("FlaxAlbertForPreTraining", config)  # random, biases too
    made.save_pretrained(directory, params)


def run_page(page: str, place: pathlib.Path) -> dict[str, Any]:
    """Runs a page and gives the names that its blocks leave."""
    names: dict[str, Any] = {"__name__": page}
    for block in blocks(page):
        wanted = block.mark == "" or (block.mark == "transformers" and has_transformers5())
        if block.language == "python" and wanted:
            with contextlib.chdir(place):
                exec(compile(block.text, f"docs/{page}.md", "exec"), names)
    return names
