# SPDX-License-Identifier: Apache-2.0
"""What `show` prints: the rows of a step, their text and masks, at any width, in any script, with colour or without."""

import io
import itertools
import pathlib
import re
from typing import Any

import ml_collections
import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from albert_jax.config import AlbertConfig
from albert_jax.data.rows import Batch
from albert_jax.data.stream import LABEL_ONE, SENTENCE_ORDERS
from albert_jax.data.vocabulary import CLS, MASK, SEP
from albert_jax.errors import UserError
from albert_jax.tokenization import AlbertTokenizer
from albert_jax.training.data import open_data
from albert_jax.training.recipe import pretraining
from pretrain_data.show import Reader, print_example, read_row, show, with_data
from pretrain_data.vocabulary import train_vocabulary
from tests import text_store

ENGLISH = ["the quick brown fox jumps over the lazy dog.", "it was seen by nobody but a cat, who told no one."]
ARABIC = ["كتبت المساعدة الخاصة في تدوينة نشرتها يوم الاثنين.", "الانتقال السلمي للسلطة سبق له أن حدث."]
CHINESE = ["虽然美国的许多数字化过渡是史无前例的，但权力的和平交接却不是。", "许多人在星期一写下了这一点。"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> AlbertTokenizer:
    """A vocabulary of the three languages."""
    folder = tmp_path_factory.mktemp("vocabulary")
    sentences = ENGLISH + ARABIC + CHINESE
    parts = [sentence[i:j] for sentence in sentences for i in range(0, 30, 3) for j in range(i + 5, i + 40, 5)]
    train_vocabulary(sentences + parts, folder, size=200, keep_accents=True, character_coverage=1.0)
    return AlbertTokenizer.from_pretrained(folder)


def row_of(
    first: list[int], second: list[int], *, slots: int = 96, label: int = 0, masked: dict[int, int] | None = None
) -> Batch:
    """One row of one example; `masked` maps places of the row to the ids that stand there."""
    ids = [CLS, *first, SEP, *second, *([SEP] if second else [])]
    inputs, types, places, owners = np.zeros((4, 1, slots), np.int32)
    inputs[0, : len(ids)], places[0, : len(ids)], owners[0, : len(ids)] = ids, range(len(ids)), 1
    types[0, len(first) + 2 : len(ids)] = 1
    positions, labels = np.zeros(20, np.int32), np.full(20, -100, np.int32)
    for nth, (place, stands) in enumerate(sorted((masked or {}).items())):
        positions[nth], labels[nth], inputs[0, place] = place, inputs[0, place], stands
    one = np.zeros((1, 3), np.int32)
    sop = np.array([[label, -100, -100]], np.int32)
    return Batch(inputs, types, places, owners, positions[None], labels[None], one, sop, np.zeros(1, np.int32))


def printed(batch: Batch, tokenizer: AlbertTokenizer, width: int = 500, order: str = "sop", **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, **options)
    for number, example in enumerate(read_row(batch, 0), 1):
        print_example(number, example, order, Reader(tokenizer.vocab_file), console)
    return out.getvalue()


def encoded(tokenizer: AlbertTokenizer, text: str) -> list[int]:
    return tokenizer.encode_sentences([text])[0]


def every_third(tokenizer: AlbertTokenizer, sentences: list[str]) -> Batch:
    """A pair with every third token masked."""
    first, second = (encoded(tokenizer, sentence) for sentence in sentences)
    places = [1 + i for i in range(0, len(first), 3)] + [len(first) + 2 + i for i in range(0, len(second), 3)]
    return row_of(first, second, masked=dict.fromkeys(places[:20], MASK))


# --- text and masks ---------------------------------------------------------------------------------------------------


def test_an_example_reads_as_its_text_with_what_is_predicted_in_brackets(tokenizer: AlbertTokenizer) -> None:
    first = [encoded(tokenizer, word) for word in ("the", "quick", "brown", "fox")]
    cat = encoded(tokenizer, "cat")[-1]
    second = encoded(tokenizer, "it was seen")
    place = np.cumsum([1, *map(len, first)])
    masked = dict.fromkeys(range(place[1], place[2]), MASK)  # all of "quick"
    masked |= {int(p): ids for p, ids in zip(range(place[2], place[3]), first[2], strict=True)}  # "brown" is kept
    masked |= dict.fromkeys(range(place[3], place[4]), cat)  # "fox" is replaced
    lines = printed(row_of([*itertools.chain(*first)], second, label=1, masked=masked), tokenizer).splitlines()
    times = f"×{len(first[1])}".removesuffix("×1")
    cats = Reader(tokenizer.vocab_file).text(np.array([cat] * len(first[3]))).strip()
    count = sum(map(len, first[1:]))
    assert lines == [
        f"  1. swapped · A {sum(map(len, first))} tokens, B {len(second)} tokens, {count} masked",
        f"   A  the [MASK{times}→quick] [kept:brown] [{cats}→fox]",
        "   B  it was seen",
    ]


def test_a_masked_part_of_a_word_stays_with_its_word(tokenizer: AlbertTokenizer) -> None:
    word = encoded(tokenizer, "foxdogs")
    assert len(word) > 1
    text = tokenizer.decode(word)
    end = tokenizer.decode(word[1:])
    shown = printed(row_of(word, [], masked={i: MASK for i in range(2, len(word) + 1)}), tokenizer)
    times = f"×{len(word) - 1}".removesuffix("×1")
    assert f"   A  {text.removesuffix(end)}[MASK{times}→{end}]\n" in shown


def test_a_piece_without_letters_is_named(tokenizer: AlbertTokenizer) -> None:
    space = tokenizer.convert_tokens_to_ids("▁")
    shown = printed(row_of([space, *encoded(tokenizer, "dog")[1:]], [], masked={1: MASK}), tokenizer)
    assert "[MASK→▁]" in shown


@pytest.mark.parametrize(
    ("order", "label", "second", "words"),
    [
        ("sop", 0, [9, 10], "in order"),
        ("sop", 1, [9, 10], "swapped"),
        ("sop_parity", 0, [9, 10], "in order"),
        ("sop_parity", 1, [9, 10], "swapped, or B from another document"),
        ("nsp", 0, [9, 10], "in order"),
        ("nsp", 1, [9, 10], "B from another document"),
        ("sop", -100, [], "one segment, no order label"),
        ("none", -100, [9, 10], "two segments, no order label"),
    ],
)
def test_the_order_is_said(tokenizer: AlbertTokenizer, order: str, label: int, second: list[int], words: str) -> None:
    shown = printed(row_of([8, 9], second, label=label), tokenizer, order=order)
    assert shown.startswith(f"  1. {words} · A 2 tokens")


def test_every_sentence_order_has_words() -> None:
    assert {*LABEL_ONE, "none"} == set(SENTENCE_ORDERS)


def test_a_vocabulary_cannot_send_control_characters_to_the_terminal(
    tokenizer: AlbertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile:
        def id_to_piece(self, i: int) -> str:
            return "▁\x1b[2J"

        def decode(self, ids: list[int]) -> str:
            return "\x1b[2J\x07\x9b"

    reader = Reader(tokenizer.vocab_file)
    monkeypatch.setattr(reader, "_processor", Hostile())
    assert reader.text(np.array([7])) == " \ufffd[2J\ufffd\ufffd"


# --- terminals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sentences", [ENGLISH, ARABIC, CHINESE], ids=["english", "arabic", "chinese"])
@pytest.mark.parametrize("width", [24, 60])
def test_lines_fit_the_terminal_and_nothing_is_lost(
    tokenizer: AlbertTokenizer, sentences: list[str], width: int
) -> None:
    batch = every_third(tokenizer, sentences)

    def text(shown: str) -> str:
        """Both segments, without what wrapping changes: margins, spaces at line ends, direction marks."""
        lines = [line for line in shown.splitlines() if not re.match(r" +1\.", line) and line.startswith("   ")]
        return re.sub(r"[\s\u2066-\u2069]", "", "".join(line[6:] for line in lines))

    narrow = printed(batch, tokenizer, width)
    segments = narrow[narrow.index("   A") :].splitlines()
    assert max(map(cell_len, segments)) <= width
    assert text(narrow) == text(printed(batch, tokenizer, 10_000))
    for line in (re.sub("[\u2066-\u2069]", "", line) for line in segments):
        assert line == line.rstrip() and line[6] != " "
    assert narrow.count("[MASK") == np.sum(batch.mlm_labels >= 0)


def test_right_to_left_text_is_isolated_line_by_line(tokenizer: AlbertTokenizer) -> None:
    shown = printed(every_third(tokenizer, ARABIC), tokenizer, 40)
    lines = shown[shown.index("   A") :].splitlines()
    assert len(lines) > 3
    for line in lines:
        assert line[6] == "\u2067" and line[-1] == "\u2069"
    assert shown.count("\u2066[MASK→") == shown.count("[MASK→") == 6
    assert "\u2067" not in printed(every_third(tokenizer, ENGLISH), tokenizer)


def test_colour_is_for_terminals_and_says_nothing_more(
    tokenizer: AlbertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    batch = every_third(tokenizer, ENGLISH)
    plain = printed(batch, tokenizer)
    terminal = printed(batch, tokenizer, force_terminal=True, color_system="standard")
    assert "\x1b" not in plain and "\x1b[1;32m[MASK" in terminal
    assert re.sub(r"\x1b\[[0-9;]*m", "", terminal) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in printed(batch, tokenizer, force_terminal=True, color_system="standard")


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return text_store.topics_data(tmp_path_factory)


def recipe(**fields: Any) -> ml_collections.ConfigDict:
    config = pretraining(AlbertConfig())
    config.update_from_flattened_dict(
        {
            "data.sequence_length": 96,
            "masking.slots": 20,
            "batch.unit": "rows",
            "batch.size": 8,
            **{name.replace("__", "."): value for name, value in fields.items()},
        }
    )
    return config


def shown(data: pathlib.Path, config: ml_collections.ConfigDict, step: int = 1, rows: int = 1, **options: Any) -> str:
    out = io.StringIO()
    show(data, config, step=step, rows=rows, split=options.get("split", "train"), console=Console(file=out, width=9999))
    return out.getvalue()


def slowly(example: text_store.Example, reader: Reader) -> list[str]:
    """The lines of an example's segments, put together token by token."""
    stands = {place: given for place, _, given in example.targets}
    lines = []
    for name, begin, ids in (("A", 1, example.first), ("B", len(example.first) + 2, example.second)):
        runs: list[tuple[str, list[int], list[int]]] = []
        for place, token in enumerate(ids or [], begin):
            given = stands.get(place)
            kind = {None: "text", MASK: "mask", token: "kept"}.get(given, "other")
            if not runs or runs[-1][0] != kind:
                runs.append((kind, [], []))
            runs[-1][1].append(token)
            runs[-1][2].append(token if given is None else given)
        line = ""
        for kind, tokens, inputs in runs:
            text, name_of = reader.text(np.array(tokens)), reader.named(np.array(tokens))
            mask = "MASK" if len(tokens) == 1 else f"MASK×{len(tokens)}"
            other = reader.named(np.array(inputs)) if kind == "other" else ""
            shown = {"text": text.lstrip(" "), "mask": f"[{mask}→{name_of}]", "kept": f"[kept:{name_of}]"}
            line += " " * text.startswith(" ") + shown.get(kind, f"[{other}→{name_of}]")
        lines += [f"   {name}  {line.strip()}"] if ids else []
    return lines


def test_a_step_shows_the_rows_that_it_trains_on(data: pathlib.Path) -> None:
    config = recipe()
    text = shown(data, config, step=3, rows=5)
    stream = open_data(with_data(config, data)).train
    rows = text_store.read_batch(stream.batch(16, 5))
    blocks = text.split("\n\n")[1:]
    assert len(blocks) == len(rows) == 5
    for r, (block, row) in enumerate(zip(blocks, rows, strict=True)):
        lines = block.splitlines()
        assert lines[0] == f"step 3 · row {16 + r} of {stream.rows:,} an epoch · epoch {(16 + r) / stream.rows:.4f}"
        filled, masked = sum(e.length for e in row), sum(len(e.targets) for e in row)
        budget = sum(max(1, round(0.15 * e.length)) for e in row)
        counts = f"{len(row)} example" + "s" * (len(row) > 1)
        assert lines[1] == (
            f"{counts} · {filled} of 96 slots filled · {masked} of a budget of {budget} tokens masked · 20 mask slots"
        )
        expected = [line for example in row for line in slowly(example, Reader(data / "spiece.model"))]
        assert [line for line in lines if line.startswith("   ")] == expected


def test_validation_shows_the_batches_of_an_evaluation(data: pathlib.Path) -> None:
    config = recipe(eval__rows=12, batch__size=16, batch__rows_per_device=8)
    text = shown(data, config, step=2, rows=8, split="validation")
    assert "note: this batch has 4 rows, fewer than --rows 8." in text
    assert "evaluation batch 2 · row 8 of" in text and "row 11 of" in text and "row 12 of" not in text
    with pytest.raises(UserError, match="--step 3 must be from 1 to 2, the batches of an evaluation"):
        shown(data, config, step=3, split="validation")


def test_the_first_step_is_shown_where_training_would_refuse_the_batch_and_that_is_said(data: pathlib.Path) -> None:
    config = recipe(batch__size=10**6)
    text = shown(data, config)
    assert "note: training would refuse this recipe: the training split has" in text
    assert text[text.index("step 1") :] == (few := shown(data, recipe()))[few.index("step 1") :]
    with pytest.raises(UserError, match="fewer than the"):
        shown(data, config, step=2)


def test_the_given_recipe_stays_as_it_is(data: pathlib.Path) -> None:
    config = recipe()
    before = config.to_dict()
    shown(data, config)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0}, "--step 0 must be from 1 to the recipe's 125000 steps"),
        ({"step": 125_001}, "--step 125001 must be from 1 to"),
        ({"rows": 0}, "--rows 0 must be at least 1"),
        ({"split": "test"}, "--split 'test' must be train or validation"),
    ],
)
def test_what_cannot_be_shown_is_refused(data: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        shown(data, recipe(), **options)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="holds no data set"):
        shown(tmp_path, recipe())
