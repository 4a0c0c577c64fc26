# SPDX-License-Identifier: Apache-2.0
"""Texts and small vocabularies on which tokenizers are tried, and transformers' answers to compare with."""

import functools
import io
import json
import os
import pathlib
import pydoc_data.topics
import random
import subprocess
import sys
import tempfile
import unicodedata
from typing import IO, Any

import pytest
import sentencepiece

from albert_jax.tokenization import clean, settle_scores

PEERS = pathlib.Path(__file__).parent / "tokenizer_peers.py"
OTHER_SCRIPTS = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ο ΟΔΟΣ της Αθήνας, 1 αγάπη.",
    "モデルは文の順序を学ぶ。한국어 문장도 있습니다.",
    "हिन्दी में क्या लिखा है?",
    "Bộ não người Việt; über Straße, été à Orléans, £5 – €7.",
    "اللُّغَة العربية والعبرية: שָׁלוֹם",
]


@functools.cache
def corpus() -> list[str]:
    """Prose that every Python carries, other scripts, and plenty of numbers with commas."""
    prose = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
    numbers = [f"In {year}, {year % 9},{year:03d} of {year - 70}, that is 1, 2, 3." for year in range(1900, 2030)]
    return prose[:3000] + OTHER_SCRIPTS * 5 + numbers * 5


def train(lines: list[str], *, raw: bool = False, flags: dict[str, Any] | None = None, **options: Any) -> bytes:
    """Trains a small vocabulary by ALBERT's recipe on text cleaned by `flags`; `raw` leaves its scores as they came."""
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": 1500,
        "character_coverage": 1.0,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        "user_defined_symbols": ["(", ")", '"', "-", ".", "–", "£", "€"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 2,
    }
    sentences = iter([clean(line, **(flags or {})) for line in lines])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **(defaults | options))
    return model.getvalue() if raw else settle_scores(model.getvalue())


# Vocabularies by name: what they are trained on, and the flags that go with them.
FLAGS: dict[str, dict[str, Any]] = {
    "uncased": {},
    "cased": {"do_lower_case": False},
    "accents": {"keep_accents": True},
    "spaces": {"remove_space": False},
    "google": {"cleaning": "google"},
    "google cased": {"cleaning": "google", "do_lower_case": False, "remove_space": False},
    "unicode": {"cleaning": "unicode"},
    "no comma": {},
    "not English": {"do_lower_case": False, "keep_accents": True},
}


@functools.cache
def vocabulary(name: str, raw: bool = False) -> bytes:
    """The spiece.model of that name, trained once."""
    lines = {"no comma": [line.replace(",", "") for line in corpus()], "not English": OTHER_SCRIPTS * 20}
    return train(lines.get(name, corpus()), raw=raw, flags=FLAGS[name])


def spiece(directory: pathlib.Path, name: str = "uncased", raw: bool = False) -> pathlib.Path:
    """The vocabulary of that name as a file in a directory."""
    file = directory / "spiece.model"
    file.write_bytes(vocabulary(name, raw))
    return file


@functools.cache
def unicode_fuzz(count: int) -> list[str]:
    """Short strings of everything: accents, scripts, marks, invisible characters, numbers with commas."""
    chance = random.Random(1)
    assigned = [chr(c) for c in range(0x3FFFF) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    marks = [c for c in assigned if unicodedata.category(c).startswith("M")]
    invisible = [c for c in assigned if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp")]
    usual = list("aeiouAEIOUßıİéÉñΣςσ0123456789 ,,..'`\"()-–£€%&\t\n🙂") + list("".join(OTHER_SCRIPTS))
    kinds = [usual] * 12 + [marks, invisible, assigned]
    return ["".join(chance.choice(chance.choice(kinds)) for _ in range(chance.randint(1, 14))) for _ in range(count)]


# --- transformers -----------------------------------------------------------------------------------------------------


def ask_peer(peer: str | tuple[str, ...], directory: pathlib.Path, **job: Any) -> dict[str, Any]:
    """What transformers makes of texts and calls, in the environment of a Python or by a command.

    See tokenizer_peers.py.
    """
    process, errors = _peer((peer, str(PEERS)) if isinstance(peer, str) else peer)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps({"directory": str(directory), **job}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        errors.seek(0)
        pytest.fail(f"the peer ended: {errors.read()[-3000:]}")
    return json.loads(answer)


@functools.cache
def _peer(command: tuple[str, ...]) -> tuple["subprocess.Popen[str]", IO[str]]:
    """One process for all tests, since transformers takes seconds to import; it ends when its input does, with ours."""
    errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - it is open as long as we are
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    return process, errors


def transformers5() -> str:
    """This interpreter if it has transformers 5, or a skip that says what it has."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if transformers.__version__.startswith("4."):
        pytest.skip(f"this environment has transformers {transformers.__version__}, not 5")
    return sys.executable
