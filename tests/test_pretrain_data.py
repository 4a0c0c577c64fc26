# SPDX-License-Identifier: Apache-2.0
"""The data set that `python -m pretrain_data build` writes, compared with SentencePiece and the text itself."""

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import sentencepiece

from albert_jax.config import AlbertConfig
from albert_jax.data.masking import MaskRule
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.store import TextStore
from albert_jax.data.stream import PretrainingStream
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.tokenization.vocabulary import parse_vocabulary
from albert_jax.training.data import open_data
from albert_jax.training.recipe import pretraining
from pretrain_data.__main__ import main
from pretrain_data.sentences import SentenceSplitter
from pretrain_data.show import with_data
from tests.corpora import (
    NOUNS,
    build,
    documents,
    identifiers,
    records,
    sentence,
    sentencepiece_ids,
    sentences_of,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrain_data")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Path:
    return write(folder / "corpus.txt", documents(1, 300))


@pytest.fixture(scope="module")
def vocab(folder: Path, corpus: Path) -> Path:
    assert main(["vocab", "--source", str(corpus), "--size", "200", "--out", str(folder / "vocab")]) == 0
    return folder / "vocab" / "spiece.model"


@pytest.fixture(scope="module")
def data(folder: Path, corpus: Path, vocab: Path) -> Path:
    assert build(corpus, vocab, folder / "data", "--validation-fraction", "0.1") == 0
    return folder / "data"


def test_records_hold_the_tokens_that_sentencepiece_gives_for_the_corpus(data: Path, corpus: Path, vocab: Path) -> None:
    expected = {
        name: [sentencepiece_ids(vocab, line) for line in block.split("\n")]
        for name, block in zip(identifiers(corpus), corpus.read_text().strip().split("\n\n"), strict=True)
    }
    for split in ("train", "validation"):
        found: dict[str, list[tuple[int, ...]]] = {}
        for document, tokens in sentences_of(data, split):
            found.setdefault(document, []).append(tokens)
        assert found and all(found[document] == expected[document] for document in found)


def test_every_sentence_of_the_corpus_is_in_exactly_one_split_once(data: Path, corpus: Path, vocab: Path) -> None:
    lines = [line for line in corpus.read_text().split("\n") if line]
    found = Counter(tokens for split in ("train", "validation") for _, tokens in sentences_of(data, split))
    assert found == Counter(sentencepiece_ids(vocab, line) for line in lines)
    train, validation = ({name for name, _ in sentences_of(data, split)} for split in ("train", "validation"))
    assert len(train) + len(validation) == 300 and not train & validation


@pytest.mark.parametrize("split", ["train", "validation"])
def test_records_stand_in_corpus_order_and_index_and_manifest_agree_with_them(data: Path, split: str) -> None:
    found = records(data, split)
    places = [(int(record["document"].decode().split(":")[1]), int(record["part"])) for record in found]
    assert places == sorted(places)
    lengths = np.concatenate([record["sentence_lengths"] for record in found])
    tokens = np.concatenate([record["tokens"] for record in found])
    manifest = json.loads((data / "manifest.json").read_text())
    fingerprint = hashlib.sha256()
    for record in found:
        assert record["tokens"].dtype == np.uint16 and record["sentence_lengths"].dtype == np.uint16
        assert (
            record["sentence_lengths"].min() >= 1 and record["sentence_lengths"].sum() == len(record["tokens"]) <= 2048
        )
        content = [len(record["tokens"]), *record["tokens"], *record["sentence_lengths"]]
        fingerprint.update(hashlib.blake2b(np.array(content, "<u4").tobytes(), digest_size=16).digest())
    index = {
        name: np.load(data / "index" / f"{split}.{name}.npy")
        for name in ("sentence_lengths", "sentences_per_record", "records_per_document")
    }
    unigrams = np.load(data / "index" / f"{split}.unigrams.npy")
    np.testing.assert_array_equal(index["sentence_lengths"], lengths)
    np.testing.assert_array_equal(index["sentences_per_record"], [len(record["sentence_lengths"]) for record in found])
    firsts = [place for place, record in enumerate(found) if record["part"] == 0]
    np.testing.assert_array_equal(index["records_per_document"], np.diff([*firsts, len(found)]))
    np.testing.assert_array_equal(unigrams, np.bincount(tokens, minlength=manifest["vocabulary"]["size"]))
    assert (index["sentence_lengths"].dtype, index["sentences_per_record"].dtype) == (np.uint16, np.int32)
    assert manifest["splits"][split]["fingerprint"] == fingerprint.hexdigest()
    counts = {
        "records": len(found),
        "sentences": len(lengths),
        "tokens": len(tokens),
        "unknown_tokens": int((tokens == 1).sum()),
    }
    assert manifest["splits"][split].items() >= counts.items()


def test_manifest_counts_the_bytes_of_the_text_and_hashes_the_copied_vocabulary(
    data: Path, corpus: Path, vocab: Path
) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    lines = [line for line in corpus.read_text().split("\n") if line]
    assert sum(split["text_bytes"] for split in manifest["splits"].values()) == sum(len(line) for line in lines)
    assert (data / "spiece.model").read_bytes() == vocab.read_bytes()
    assert manifest["vocabulary"]["sha256"] == hashlib.sha256(vocab.read_bytes()).hexdigest()
    assert manifest["format"] == 2


def test_the_same_input_gives_the_same_fingerprints(data: Path, corpus: Path, vocab: Path, tmp_path: Path) -> None:
    assert build(corpus, vocab, tmp_path / "again", "--validation-fraction", "0.1") == 0
    first, second = (json.loads((path / "manifest.json").read_text())["splits"] for path in (data, tmp_path / "again"))
    assert first == second


def test_a_sentence_longer_than_a_record_is_cut_at_a_word_start_and_counted(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(5)
    long = " ".join(rng.choice(NOUNS) for _ in range(4000))
    write(tmp_path / "long.txt", [[long, sentence(rng)], *documents(6, 40)])
    assert (
        build(tmp_path / "long.txt", vocab, tmp_path / "out", "--lines", "sentence", "--validation-fraction", "0.2")
        == 0
    )
    report = {line[:38].strip(): line[38:].split() for line in capsys.readouterr().out.split("\n")}
    assert sorted(report["longer than 2,048 tokens, split"]) == ["0", "1"]
    assert report["cuts inside a word"] == ["0", "0"]
    found = [
        x for split in ("train", "validation") for x in sentences_of(tmp_path / "out", split) if x[0] == "long.txt:0"
    ]
    expected = sentencepiece_ids(vocab, long)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocab))
    assert len(expected) > 2048 and sum((tokens for _, tokens in found[:-1]), ()) == expected
    assert all(pieces.id_to_piece(tokens[0]).startswith("▁") and len(tokens) <= 2048 for _, tokens in found)


def test_a_word_longer_than_a_record_is_cut_inside_and_counted(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = "".join(random.Random(7).choices("abcdefgh", k=9000))
    write(tmp_path / "word.txt", [[word, "A short sentence follows it."], *documents(8, 40)])
    assert (
        build(tmp_path / "word.txt", vocab, tmp_path / "out", "--lines", "sentence", "--validation-fraction", "0.2")
        == 0
    )
    assert "cuts inside a word" in capsys.readouterr().out
    found = [
        t for split in ("train", "validation") for d, t in sentences_of(tmp_path / "out", split) if d == "word.txt:0"
    ]
    assert sum(found[:-1], ()) == sentencepiece_ids(vocab, word)


def shingles(lines: list[str]) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in " ".join(lines).lower()).split()
    return {tuple(words[i : i + 8]) for i in range(max(1, len(words) - 7))}


def test_no_validation_document_shares_more_than_a_fifth_of_its_word_runs_with_training_documents(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = documents(11, 60, 8)
    # Each text again with one sentence changed: pairs that a split by content alone tears apart.
    texts += [[*text[:-1], "Something else is said at the end of it."] for text in texts if len(text) > 4]
    # A chain in which each text shares a third with its neighbors: one that is moved to train gives the next one away.
    (chain,) = ([sentence(rng) for _ in range(180)] for rng in [random.Random(12)])
    texts += [chain[start : start + 6] for start in range(0, 176, 4)]
    write(tmp_path / "near.txt", texts)
    assert build(tmp_path / "near.txt", vocab, tmp_path / "out", "--validation-fraction", "0.5") == 0
    order = identifiers(tmp_path / "near.txt")
    assert len(order) == len(texts)
    train, validation = (
        {order.index(name) for name, _ in sentences_of(tmp_path / "out", split)} for split in ("train", "validation")
    )
    seen = set().union(*(shingles(texts[i]) for i in train))
    shares = [len(shingles(texts[i]) & seen) / len(shingles(texts[i])) for i in validation]
    assert shares and max(shares) <= 0.2
    told = next(line for line in capsys.readouterr().out.split("\n") if line.startswith("validation documents with"))
    assert "more than 20% of their runs of 8 words in training text" in told
    assert int(re.findall(r"to train with them went (\d+)", told)[0]) > 5
    assert train | validation == set(range(len(texts)))


def forms(count: int) -> list[list[str]]:
    """Notes whose last sentences are the form's own, about a third of their words."""
    wording = ["this note was written on the form that the office gives out", "all fields have been read by two people"]
    return [[*lines, ". ".join(wording).capitalize() + "."] for lines in documents(21, count, 3) if len(lines) == 3]


@pytest.fixture(scope="module")
def notes(folder: Path) -> Path:
    return write(folder / "notes.txt", forms(300))


def test_where_documents_share_a_forms_wording_each_advice_of_the_refusal_helps(
    notes: Path, corpus: Path, vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("--lines", "sentence")
    assert build(notes, vocab, tmp_path / "no", *lines, "--validation-fraction", "0.3") == 2
    refusal = capsys.readouterr().err
    share = int(re.findall(r"half of all have (\d+)% or more there; --validation-overlap sets the share", refusal)[0])
    assert 20 < share < 60
    total = len(forms(300))
    for name, options, splits in (
        ("overlap", ["--validation-fraction", "0.3", "--validation-overlap", "0.6"], {"train", "validation"}),
        ("source", ["--validation-source", str(corpus)], {"train", "validation"}),
        ("none", ["--validation-fraction", "0"], {"train"}),
    ):
        advice = {"none": "--validation-fraction 0 for a data set without"}.get(name, f"--validation-{name}")
        assert advice in refusal
        assert build(notes, vocab, tmp_path / name, *lines, *options) == 0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert set(manifest["splits"]) == splits
        found = {split: len({name for name, _ in sentences_of(tmp_path / name, split)}) for split in splits}
        assert found["train"] == total if name != "overlap" else sum(found.values()) == total
    assert "no validation split, as was asked" in capsys.readouterr().out


def test_validation_text_of_its_own_stays_whole_and_what_training_repeats_of_it_is_counted(
    corpus: Path, vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = documents(33, 40)
    repeated = [block.split("\n") for block in corpus.read_text().strip().split("\n\n")[:3]]
    write(tmp_path / "own.txt", own + repeated)
    options = ("--lines", "sentence", "--validation-source", f"corpus={tmp_path / 'own.txt'}")
    assert build(corpus, vocab, tmp_path / "out", *options) == 0
    assert "in training text: 3 of 43, which stay" in capsys.readouterr().out
    for split, source in (("train", corpus), ("validation", tmp_path / "own.txt")):
        assert list(dict.fromkeys(name for name, _ in sentences_of(tmp_path / "out", split))) == identifiers(source)
    shard = next((tmp_path / "out").glob("*validation*"))
    shard.write_bytes(shard.read_bytes()[:-50])
    assert main(["repair", str(tmp_path / "out")]) == 0
    assert list(dict.fromkeys(name for name, _ in sentences_of(tmp_path / "out", "validation"))) == identifiers(
        tmp_path / "own.txt"
    )
    assert build(corpus, vocab, tmp_path / "two", *options, "--validation-fraction", "0.1") == 2
    assert "leave one of the two away" in capsys.readouterr().err


def test_one_document_alone_can_be_trained_on_without_validation(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one.txt", documents(5, 1))
    assert build(one, vocab, tmp_path / "out", "--lines", "sentence") == 2
    assert "--validation-fraction 0 for a data set without validation" in capsys.readouterr().err
    assert build(one, vocab, tmp_path / "out", "--lines", "sentence", "--validation-fraction", "0") == 0
    assert main(["show", str(tmp_path / "out"), "--rows", "1"]) == 0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "out"), "--split", "validation"]) == 2
    assert "was built without a validation split; name another by --split." in capsys.readouterr().err


def test_text_in_other_scripts_builds_cased_with_its_accents_kept(tmp_path: Path) -> None:
    base = [
        ["Été à Zürich, où l’âme rêve.", "Der Fluß trägt müde Boote."],
        ["今天天气很好。", "我们去公园散步。"],
        ["ذهب الولد إلى المدرسة.", "قرأ الكتاب الجديد."],
        ["Η θάλασσα είναι ήρεμη 😀.", "Το πλοίο φεύγει αύριο."],
    ]
    texts = [[f"{line} {number}" for line in lines] for number in range(60) for lines in base]
    source = write(tmp_path / "world.txt", texts)
    options = ["--cleaning", "unicode", "--lines", "sentence"]
    arguments = ["--source", str(source), "--size", "110", "--character-coverage", "1", "--out", str(tmp_path / "v")]
    assert main(["vocab", *arguments, *options]) == 0
    assert build(source, tmp_path / "v", tmp_path / "out", *options, "--validation-fraction", "0.3") == 0
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v" / "spiece.model"))
    found = [t for split in ("train", "validation") for t in sentences_of(tmp_path / "out", split)]
    order = identifiers(source)
    for name, tokens in found:
        assert 1 not in tokens
        assert pieces.decode(list(tokens)) in texts[order.index(name)]
    assert len(found) == sum(len(text) for text in texts)


def test_overwrite_replaces_a_data_set_and_leaves_other_folders_alone(
    vocab: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert build(corpus, vocab, out, "--validation-fraction", "0.1") == 0
    assert build(corpus, vocab, out, "--validation-fraction", "0.1") == 2
    assert "exists" in capsys.readouterr().err
    assert (
        build(write(tmp_path / "b.txt", documents(9, 100)), vocab, out, "--validation-fraction", "0.2", "--overwrite")
        == 0
    )
    assert {record["document"].decode().split(":")[0] for record in records(out, "train")} == {"b.txt"}
    (tmp_path / "home").mkdir()
    assert build(corpus, vocab, tmp_path / "home", "--overwrite") == 2
    assert (tmp_path / "home").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["b.txt", "home", "out"]


def test_building_and_reading_need_no_tensorflow(vocab: Path, corpus: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pretrain_data.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit('imported' if 'tensorflow' in sys.modules else status)"
    )
    command = ["build", "--source", str(corpus), "--vocab", str(vocab), "--out", str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", script, *command, "--validation-fraction", "0.1"],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )


def test_a_vocabulary_of_more_than_65536_pieces_is_built_and_streamed_whole(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = parse_vocabulary(vocab.read_bytes())
    for number in range(70_000):
        proto.pieces.add(piece=f"▁z{number}", score=-1.0)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "spiece.model").write_bytes(proto.SerializeToString())
    texts = [[f"the river z{69_999 - number} z{number} is wide.", f"z{number + 66_000}"] for number in range(200)]
    source = write(tmp_path / "text.txt", texts)
    options = ["--lines", "sentence", "--validation-fraction", "0.2"]
    assert build(source, tmp_path / "v" / "spiece.model", tmp_path / "out", *options) == 0
    ids = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v" / "spiece.model"))
    expected = Counter(tuple(ids.encode(line)) for text in texts for line in text)
    found = Counter(tokens for split in ("train", "validation") for _, tokens in sentences_of(tmp_path / "out", split))
    assert found == expected and max(max(tokens) for tokens in found) > 70_000
    store, vocabulary = TextStore(tmp_path / "out", "train"), Vocabulary.load(tmp_path / "out" / "spiece.model")
    settings = PlanSettings(slots=64, examples=4, mask_slots=16, mask_rate=0.15, short_fraction=0.0)
    rule = MaskRule.paper(vocabulary, rate=0.15, count=0, longest_ngram=3, whole_word=True, corrupt_by="token")
    stream = PretrainingStream(store, make_plan(store, vocabulary.starts_word, settings), settings, rule, seed=0)
    batch = stream.batch(0, stream.rows)
    assert batch.input_ids.max() > 70_000 and batch.mlm_labels.max() > 70_000


def test_letters_that_the_cleaning_changes_are_counted_where_the_text_is_not_english(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"Şehirde {n} kişi yağmurda yürüdü." for n in range(60)]
    (tmp_path / "tr.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    letters = sum(c.isalpha() for line in lines for c in line)
    command = ["vocab", "--source", str(tmp_path / "tr.txt"), "--size", "40", "--language", "tr", "--out"]
    assert main([*command, str(tmp_path / "v")]) == 0
    # ğ, Ş and ş, and three times ü, in each line
    said = f"cleaning 'huggingface' is for English and changes {60 * 6:,} of {letters:,} sample letters, case apart"
    out = capsys.readouterr().out
    assert said in out and "ü 180, ğ 60, Ş 60, ş 60); give --cleaning unicode to keep them" in out
    assert main([*command, str(tmp_path / "u"), "--cleaning", "unicode"]) == 0
    assert "warning" not in capsys.readouterr().out
    build(tmp_path / "tr.txt", tmp_path / "v", tmp_path / "data", "--lines", "sentence", "--validation-fraction", "0")
    assert "train a vocabulary with --cleaning unicode to keep them" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text(corpus.read_text() + "\n\nZoë met José.\n")
    assert main(["vocab", "--source", str(tmp_path / "names.txt"), "--size", "200", "--out", str(tmp_path / "e")]) == 0
    assert "warning" not in capsys.readouterr().out


def recipe_of(data: Path, **fields: object) -> ml_collections.ConfigDict:
    """The defaults with rows of 64 slots."""
    config = with_data(pretraining(AlbertConfig()), data)
    config.unlock()
    config.update_from_flattened_dict({"data.sequence_length": 64, "masking.slots": 10} | fields)
    return config


def test_text_without_spaces_is_warned_of_at_the_build_and_in_training_though_it_has_punctuation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(3)
    characters = [chr(code) for code in range(0x4E00, 0x4E40)]
    clause = lambda: "".join(rng.choices(characters, k=rng.randint(8, 20)))  # noqa: E731
    texts = [[f"{clause()}，{clause()}。" for _ in range(6)] for _ in range(40)]
    write(tmp_path / "zh.txt", texts)
    options = ["--lines", "sentence", "--source", str(tmp_path / "zh.txt")]
    vocab = ["vocab", *options, "--cleaning", "unicode", "--character-coverage", "1", "--size", "90"]
    assert main([*vocab, "--out", str(tmp_path / "v")]) == 0
    assert main(["build", *options, "--vocab", str(tmp_path / "v"), "--out", str(tmp_path / "data")]) == 0
    assert "warning: few tokens begin a word, as in text without spaces" in capsys.readouterr().out
    opened = open_data(recipe_of(tmp_path / "data"))
    store = TextStore(tmp_path / "data", "train")
    (said,) = re.findall(r"([\d.]+) % of the tokens begin a word, and (\d+) % stand in words longer", caplog.text)
    assert 100 / 16 < float(said[0]) < 100 / 6
    # By hand: words of the first rows' texts that are longer than a row's budget.
    tokens, begins = store.read(np.arange(len(store.sentences_per_record)))
    starts, long, total = opened.vocabulary.starts_word, 0, 0
    for a, b in itertools.pairwise(begins):
        text = tokens[a : min(b, a + 61)].tolist()
        words = "".join("▁x" if starts[token] else "x" for token in text).split("▁")
        lengths = [len(word) for word in words if word]
        long, total = long + sum(n for n in lengths if n > round(0.15 * (len(text) + 3))), total + len(text)
    assert int(said[1]) == round(100 * long / total) > 50
    caplog.clear()
    open_data(recipe_of(tmp_path / "data", **{"masking.whole_word": False}))
    assert "begin a word" not in caplog.text


def test_documents_of_one_sentence_are_warned_of_with_the_reasons_counted(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    long = [" ".join(NOUNS * 4) + "." for _ in range(2)]  # no two of them share a row
    write(tmp_path / "ones.txt", [[line] for lines in documents(9, 60) for line in lines][:95] + [long] * 5)
    assert (
        build(tmp_path / "ones.txt", vocab, tmp_path / "data", "--lines", "sentence", "--validation-fraction", "0") == 0
    )
    assert "warning: 95% of the training documents have one sentence, so that no sentence" in capsys.readouterr().out
    open_data(recipe_of(tmp_path / "data"))
    form = (
        r"100\.0 % of the (\d+) training examples have no sentence order: 95 are documents of one sentence, (\d+) are "
    )
    ((examples, too_long),) = re.findall(form + "sentences, or parts of one, too long to share 64 slots", caplog.text)
    assert int(examples) == 95 + int(too_long) > 105
    caplog.clear()
    open_data(recipe_of(tmp_path / "data", **{"data.sentence_order": "none"}))
    assert "sentence order" not in caplog.text


def test_what_ends_a_document_is_an_option_of_both_commands_for_plain_text_alone(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, lines in enumerate(documents(9, 8)):
        write(tmp_path / f"{number}.txt", [[line] for line in lines])
    read = ("--lines", "sentence", "--documents", "file")
    assert build(f"{tmp_path}/*.txt", vocab, tmp_path / "data", *read, "--validation-fraction", "0") == 0
    assert {record["document"].decode() for record in records(tmp_path / "data", "train")} == {
        f"{number}.txt:0" for number in range(8)
    }
    assert main(["vocab", "--source", f"{tmp_path}/*.txt", *read, "--size", "70", "--out", str(tmp_path / "v")]) == 0
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": " ".join(d)}) + "\n" for d in documents(3, 20)))
    capsys.readouterr()
    assert build(tmp_path / "a.jsonl", vocab, tmp_path / "out", *read) == 2
    assert "--documents file is for plain text, and no --source is; leave it away" in capsys.readouterr().err
    validation = ("--validation-source", f"{tmp_path}/*.txt")
    assert build(tmp_path / "a.jsonl", vocab, tmp_path / "out", *read, *validation) == 0
    assert len({record["document"] for record in records(tmp_path / "out", "validation")}) == 8


def test_each_source_is_divided_by_the_rules_of_its_own_language(
    vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # "3." is an ordinal in German and ends a sentence in English, "Mr." the other way round.
    paragraph = "Er kam am 3. Oktober an. It was Mr. Smith. They went home."
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{paragraph} {n}" for n in range(20)) + "\n")
    sources = [argument for name in ("a", "b") for argument in ("--source", f"{name}={tmp_path / name}.txt")]
    command = ["build", *sources, "--vocab", str(vocab), "--lines", "paragraph", "--validation-fraction", "0"]
    options = ["--language", "en", "--language", "b=de"]
    assert main([*command, *options, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "abbreviations for 'en'" in said and "abbreviations for 'de'" in said
    split = {"a": SentenceSplitter("en"), "b": SentenceSplitter("de")}
    wanted = {
        name: [sentencepiece_ids(vocab, s) for n in range(20) for s in own.split(f"{paragraph} {n}")]
        for name, own in split.items()
    }
    assert wanted["a"] != wanted["b"]
    for name, expected in wanted.items():
        found = [tokens for id, tokens in sentences_of(tmp_path / "out", "train") if id.startswith(f"{name}.txt:")]
        assert found == expected
    shard = next((tmp_path / "out").glob("*train*"))
    before = shard.read_bytes()
    shard.write_bytes(before[:-50])
    assert main(["repair", str(tmp_path / "out")]) == 0 and shard.read_bytes() == before
    for bad, message in (("c=de", "names no source; name one of a, b"), ("fr", "names a language twice")):
        assert main([*command, *options, "--language", bad, "--out", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err
