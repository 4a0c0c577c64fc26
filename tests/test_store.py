# SPDX-License-Identifier: Apache-2.0
"""Reading data sets, compared with TFDS's own decoding, and refusing those that are not whole."""

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow_datasets as tfds

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

    spec = shards.features(70_000)
    tokens = np.array([5, 65_536, 69_999, 65_535, 0, 7], np.int32)
    infos = []
    for split in shards.SPLITS:
        writer = shards.SplitWriter(tmp_path, split, spec)
        writer.write(tokens, np.array([2, 4], np.uint16), "made up:0", 0)
        infos.append(writer.finish())
    shards.write_metadata(tmp_path, spec, infos)
    splits = shards.read_back(tmp_path, 70_000)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "splits": splits}))
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
        ('{"format": 2}', "format 2, not 1"),
        ("{}", "format None"),
        ("[1]", "format None"),
        ('{"format": 1', "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
)
def test_a_manifest_of_another_format_is_refused(copy: pathlib.Path, content: str, named: str) -> None:
    (copy / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"manifest\.json.*{named}"):
        TextStore(copy, "train")


@pytest.mark.parametrize("name", ["sentence_lengths", "sentences_per_record", "unigrams"])
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


@pytest.mark.parametrize("name", ["sentence_lengths", "sentences_per_record", "unigrams"])
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
    with pytest.raises(UserError, match=r"not as long as its index says; build the data set again\.$"):
        store.read(np.array([0]))


def shard_of(data: pathlib.Path) -> pathlib.Path:
    (shard,) = data.glob("*-train.array_record-*")
    return shard


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    return lambda data: shard_of(data).write_bytes(change(shard_of(data).read_bytes()))


SHARDS: dict[str, Damage] = {
    "truncated": rewrite(lambda raw: raw[: len(raw) // 2]),
    "truncated to whole blocks": rewrite(lambda raw: raw[: 2**16]),
    "empty": rewrite(lambda raw: b""),
    "bytes flipped": rewrite(lambda raw: raw[:70_000] + bytes(b ^ 0xFF for b in raw[70_000:150_000]) + raw[150_000:]),
    "another split's": lambda data: shutil.copy(next(data.glob("*-validation.array_record-*")), shard_of(data)),
    "missing": lambda data: shard_of(data).unlink(),
    "without features.json": lambda data: (data / "features.json").unlink(),
    "without dataset_info.json": lambda data: (data / "dataset_info.json").unlink(),
    "broken features.json": lambda data: (data / "features.json").write_text("{"),
    "broken dataset_info.json": lambda data: (data / "dataset_info.json").write_text("{"),
}


@pytest.mark.parametrize("damage", SHARDS)
def test_damaged_shards_are_refused_in_one_sentence_with_the_remedy(copy: pathlib.Path, damage: str) -> None:
    SHARDS[damage](copy)
    with pytest.raises(UserError, match=rf"^[^\n]*{copy}[^\n]*; build the data set again\.$"):
        store = TextStore(copy, "train")
        store.read(np.arange(len(store.sentences_per_record)))
