# SPDX-License-Identifier: Apache-2.0
"""Reading data sets, compared with TFDS's own decoding, and refusing those that are not whole."""

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow_datasets as tfds

from albert_jax.data.shards import Shards
from albert_jax.data.store import TextStore, read_manifest
from albert_jax.errors import UserError
from tests.text_store import topics_data

Damage = Callable[[pathlib.Path], object]


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return topics_data(tmp_path_factory)


@pytest.fixture
def copy(topics: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(topics, tmp_path / "data"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_records_read_are_those_that_tfds_decodes(topics: pathlib.Path, split: str) -> None:
    expected = [record["tokens"] for record in tfds.builder_from_directory(str(topics)).as_data_source(split=split)]
    store = TextStore(topics, split)
    for records in ([0], [3, 1, 1, 5], list(range(len(expected)))):
        tokens, offsets = store.read(np.array(records))
        assert tokens.dtype == np.int32
        assert [len(expected[r]) for r in records] == np.diff(offsets).tolist()
        np.testing.assert_array_equal(tokens, np.concatenate([expected[r] for r in records]))
    np.testing.assert_array_equal(store.unigrams, np.bincount(np.concatenate(expected), minlength=1500))


def test_reading_no_records_gives_no_tokens(topics: pathlib.Path) -> None:
    tokens, offsets = TextStore(topics, "train").read(np.zeros(0, np.int64))
    assert len(tokens) == 0 and offsets.tolist() == [0]


def test_ids_above_two_bytes_are_read_whole(tmp_path: pathlib.Path) -> None:
    from pretrain_data import shards

    tokens, lengths = np.array([5, 65_536, 69_999, 65_535, 0, 7], np.int32), np.array([2, 4], np.uint16)
    shards.write_metadata(tmp_path, shards.features(70_000), dict.fromkeys(shards.SPLITS, ([1], 99)))
    for split in shards.SPLITS:
        writer = shards.ShardWriter(tmp_path / shards.shard_name(split, 0, 1), 70_000)
        writer.write(tokens, lengths, "made up:0", 0)
        writer.close()
    index = {
        "sentence_lengths": lengths,
        "sentences_per_record": np.array([2]),
        "records_per_document": np.array([1]),
        "continued_sentences": np.zeros(0, np.int64),
        "unigrams": np.bincount(tokens),
    }
    (tmp_path / "index").mkdir()
    for name, array in index.items():
        np.save(tmp_path / "index" / f"train.{name}.npy", array)
    counts = {"records": 1, "documents": 1, "sentences": 2, "tokens": 6, "fingerprint": ""}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 2, "splits": {"train": counts}}))
    np.testing.assert_array_equal(TextStore(tmp_path, "train").read(np.array([0]))[0], tokens)


def test_an_empty_path_asks_for_a_data_set() -> None:
    for call in (read_manifest, lambda path: TextStore(path, "train")):
        with pytest.raises(UserError, match=r"^no data set is named; give one with --config\.data\.path=DIRECTORY\.$"):
            call("")


def test_a_directory_that_is_missing_or_holds_something_else_is_named(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=rf"{path} holds no data set .*; make one with"):
            TextStore(path, "train")


def test_a_split_that_the_data_set_lacks_is_named_beside_those_it_has(topics: pathlib.Path) -> None:
    with pytest.raises(UserError, match="has no split 'test', only train, validation"):
        TextStore(topics, "test")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"format": 1}', "format 1, not 2"),
        ("{}", "format None"),
        ("[1]", "format None"),
        ('{"format": 2', "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
)
def test_a_manifest_of_another_format_is_refused(copy: pathlib.Path, content: str, named: str) -> None:
    (copy / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"manifest\.json.*{named}"):
        TextStore(copy, "train")


@pytest.mark.parametrize(
    "name", ["sentence_lengths", "sentences_per_record", "records_per_document", "continued_sentences", "unigrams"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "magic", "header"])
def test_an_index_file_that_cannot_be_read_is_named(copy: pathlib.Path, name: str, damage: str) -> None:
    file = copy / "index" / f"train.{name}.npy"
    raw = file.read_bytes()
    file.unlink()
    header = raw.replace(b"'shape': (", b"'shape': [", 1)
    contents = {"empty": b"", "cut": raw[: len(raw) // 2], "magic": b"\x00" + raw[1:], "header": header}
    if damage != "missing":
        file.write_bytes(contents[damage])
    with pytest.raises(UserError, match=rf"index {file} cannot be read .*; build the data set again\.$"):
        TextStore(copy, "train")


@pytest.mark.parametrize("name", ["sentence_lengths", "sentences_per_record", "records_per_document", "unigrams"])
def test_an_index_of_another_split_is_noticed_at_opening(copy: pathlib.Path, name: str) -> None:
    shutil.copy(copy / "index" / f"validation.{name}.npy", copy / "index" / f"train.{name}.npy")
    with pytest.raises(UserError, match=r"do not belong together .*; build the data set again\.$"):
        TextStore(copy, "train")


def test_lengths_that_only_sum_to_the_same_are_noticed_at_reading(copy: pathlib.Path) -> None:
    file = copy / "index" / "train.sentence_lengths.npy"
    lengths = np.load(file)
    lengths[0], lengths[-1] = lengths[0] + 1, lengths[-1] - 1
    np.save(file, lengths)
    store = TextStore(copy, "train")
    store.read(np.array([1, 2]))
    with pytest.raises(UserError, match=r"the shard .* is damaged \(its records are not as long as the index says\); "):
        store.read(np.array([0]))


def shard_of(data: pathlib.Path) -> pathlib.Path:
    (shard,) = data.glob("*-train.array_record-*")
    return shard


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    return lambda data: shard_of(data).write_bytes(change(shard_of(data).read_bytes()))


REPAIRED: dict[str, Damage] = {
    "truncated": rewrite(lambda raw: raw[: len(raw) // 2]),
    "truncated to whole blocks": rewrite(lambda raw: raw[: 2**16]),
    "empty": rewrite(lambda raw: b""),
    "bytes flipped": rewrite(lambda raw: raw[:70_000] + bytes(b ^ 0xFF for b in raw[70_000:150_000]) + raw[150_000:]),
    "another split's": lambda data: shutil.copy(next(data.glob("*-validation.array_record-*")), shard_of(data)),
    "missing": lambda data: shard_of(data).unlink(),
}
BUILT_AGAIN: dict[str, Damage] = {
    "without features.json": lambda data: (data / "features.json").unlink(),
    "without dataset_info.json": lambda data: (data / "dataset_info.json").unlink(),
    "broken features.json": lambda data: (data / "features.json").write_text("{"),
    "broken dataset_info.json": lambda data: (data / "dataset_info.json").write_text("{"),
}


@pytest.mark.parametrize("damage", REPAIRED)
def test_a_damaged_shard_is_named_with_the_command_that_rebuilds_it(copy: pathlib.Path, damage: str) -> None:
    shard = shard_of(copy)
    REPAIRED[damage](copy)
    sentence = rf"^the shard {shard} of the data set is damaged \([^\n]*\); `python -m pretrain_data repair {copy}` "
    with pytest.raises(UserError, match=sentence + r"rebuilds it from its sources\.$"):
        store = TextStore(copy, "train")
        store.read(np.arange(len(store.sentences_per_record)))


@pytest.mark.parametrize("damage", BUILT_AGAIN)
def test_a_data_set_without_its_description_is_refused_in_one_sentence(copy: pathlib.Path, damage: str) -> None:
    BUILT_AGAIN[damage](copy)
    with pytest.raises(UserError, match=rf"^[^\n]*{copy}[^\n]*; build the data set again\.$"):
        TextStore(copy, "train")


def test_of_several_shards_the_damaged_one_is_named(copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TextStore(copy, "train")
    records = np.arange(len(store.sentences_per_record))
    divided = Shards({"first": 10, "second": 3, "third": len(records) - 13})
    monkeypatch.setattr(store._shards, "file_of", divided.file_of)
    tokens = store._tokens
    for broken, shard in ((0, "first"), (9, "first"), (10, "second"), (12, "second"), (13, "third"), (30, "third")):

        def failing(wanted: np.ndarray, broken: int = broken) -> list[np.ndarray]:
            if broken in wanted:
                raise RuntimeError("checksum")
            return tokens(wanted)

        monkeypatch.setattr(store, "_tokens", failing)
        with pytest.raises(UserError, match=rf"the shard {shard} of the data set is damaged \(checksum\)"):
            store.read(records)
        store.read(np.delete(records, broken))


# --- where things are -------------------------------------------------------------------------------------------------


def test_tokens_of_records_documents_and_sentences_are_where_counting_finds_them(topics: pathlib.Path) -> None:
    store = TextStore(topics, "train")
    sentences = np.cumsum([0, *store.sentence_lengths.tolist()])
    np.testing.assert_array_equal(store.sentence_begins(np.arange(len(sentences) - 1)), sentences[:-1])
    some = np.array([5, 0, 8000, 5])
    np.testing.assert_array_equal(store.sentence_begins(some), sentences[some])
    np.testing.assert_array_equal(store.record_begins, sentences[store.record_sentences])
    np.testing.assert_array_equal(store.document_begins, sentences[store.document_sentences])
    assert len(store.document_begins) == len(store.records_per_document) + 1
    assert (np.diff(store.record_begins) <= 2048).all() and np.diff(store.document_begins).max() > 2048


def test_sources_and_their_weights_are_read_and_checked(copy: pathlib.Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    store = TextStore(copy, "train")
    records, documents = len(store.sentences_per_record), int(store.document_records[5])
    manifest["splits"]["train"].pop("sources", None)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert TextStore(copy, "train").sources == {"text": records}
    assert TextStore(copy, "train").weights == {"text": 1.0}
    counts = {"a": {"records": documents}, "none": {"records": 0}, "b": {"records": records - documents}}
    manifest["splits"]["train"]["sources"] = counts
    manifest["sources"] = [{"name": "a", "weight": 2.5}, {"name": "none", "weight": 3}, {"name": "b"}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    store = TextStore(copy, "train")
    assert store.sources == {"a": documents, "b": records - documents}
    assert store.weights == {"a": 2.5, "b": 1.0}
    for wrong in (documents + 1, records):  # within a document; more than there are
        counts["a"]["records"] = wrong
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"do not belong together \(the sources of its train split"):
            TextStore(copy, "train")
