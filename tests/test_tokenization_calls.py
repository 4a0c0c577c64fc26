# SPDX-License-Identifier: Apache-2.0
"""Calling the tokenizer is calling transformers 4.57's: batches, pairs, truncation, padding, masks, decoding."""

import copy
import itertools
import json
import logging
import pathlib
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
from tokenizer_peers import call

from albert_jax.errors import UserError
from albert_jax.tokenization import AlbertTokenizer
from tests.peers import transformers4
from tests.tokenizer_samples import ask_peer, corpus, spiece, unicode_fuzz

Calls = list[tuple[str, list[Any], dict[str, Any]]]

SHORT, LONG = "A short text, of 2,000 words.", "The value of `x` in [MASK] is returned, if it is in the list. " * 3
WORDS = ["Hello,", "2,000", "", "[MASK]", "two words", "日本", "Été"]


@pytest.fixture
def ours(tmp_path: pathlib.Path) -> AlbertTokenizer:
    """The uncased tokenizer."""
    (tmp_path / "vocabulary").mkdir()
    return AlbertTokenizer(spiece(tmp_path / "vocabulary"))


def check_calls(ours: AlbertTokenizer, peer: str, calls: Calls) -> None:
    """Compares our values of the calls with transformers 4's, whose tokenizer `peer` is; see tokenizer_peers.py."""
    directory = ours.vocab_file.parent / "saved"
    ours.save_pretrained(directory)
    answers = ask_peer(transformers4(), directory, calls=calls)
    for one, theirs in zip(calls, answers[peer]["calls"], strict=True):
        mine = json.loads(json.dumps(call(ours, *one)))
        if isinstance(theirs, dict) and isinstance(mine, dict) and mine.keys() == theirs.keys() == {"error"}:
            continue
        assert mine == theirs, one
        if isinstance(theirs, dict):
            assert list(mine) == list(theirs), one


# --- the call ---------------------------------------------------------------------------------------------------------


def test_inputs_of_every_form_give_what_transformers_fast_tokenizer_gives(ours: AlbertTokenizer) -> None:
    inputs: list[list[Any]] = [
        [SHORT],
        [SHORT, LONG],
        [[SHORT, LONG, ""]],
        [[SHORT, LONG], [LONG, SHORT]],
        [[[SHORT, LONG], [LONG, SHORT]]],
        [""],
    ]
    options: list[dict[str, Any]] = [
        {},
        {"add_special_tokens": False},
        {"return_special_tokens_mask": True, "return_length": True},
        {"return_token_type_ids": False, "return_attention_mask": False},
        {"padding": True},
        {"padding": "max_length", "max_length": 120, "return_special_tokens_mask": True},
        {"padding": "longest", "pad_to_multiple_of": 8, "padding_side": "left", "return_special_tokens_mask": True},
        {"padding": True, "return_tensors": "np"},
    ]
    check_calls(ours, "auto", [("__call__", i, o) for i, o in itertools.product(inputs, options)])


def test_truncation_cuts_as_transformers_fast_tokenizer_does(ours: AlbertTokenizer) -> None:
    inputs: list[list[Any]] = [
        [LONG],
        [LONG, SHORT],
        [SHORT, LONG],
        [LONG, LONG],
        [[SHORT, LONG, LONG]],
        [[LONG, SHORT], [SHORT, LONG]],
    ]
    options: list[dict[str, Any]] = [
        {"truncation": strategy, "max_length": length, "stride": stride, "return_overflowing_tokens": overflow}
        for strategy in (True, "longest_first", "only_first", "only_second", False, "do_not_truncate")
        for length, stride, overflow in ((16, 0, False), (17, 3, True), (30, 0, True), (2, 0, False), (400, 7, True))
    ]
    options += [{"truncation": True, "max_length": 24, "padding": "max_length", "pad_to_multiple_of": 8}]
    options += [{"truncation": True, "max_length": 20, "padding": True, "return_overflowing_tokens": True, "stride": 2}]
    options += [{"truncation": True, "max_length": 9, "add_special_tokens": False}, {"max_length": 9}]
    cases = [("__call__", i, o) for i, o in itertools.product(inputs, options)]
    # Without room for a token of the text, transformers' fast tokenizer cuts what it was not told to cut, or leaves the
    # truncation undone without a word.
    tight = [c for c in cases if c[2]["max_length"] == 2 and (len(c[1]) == 2 or "only" in str(c[2]["truncation"]))]
    check_calls(ours, "auto", [c for c in cases if c not in tight])


def test_left_truncation_and_left_padding_are_transformers(ours: AlbertTokenizer) -> None:
    left = AlbertTokenizer(ours.vocab_file, padding_side="left", truncation_side="left")
    options = {"truncation": True, "max_length": 16, "stride": 2, "return_overflowing_tokens": True, "padding": True}
    check_calls(left, "auto", [("__call__", i, options) for i in ([LONG], [LONG, SHORT], [[SHORT, LONG]])])


def test_words_given_by_the_caller_are_numbered_as_in_transformers(ours: AlbertTokenizer) -> None:
    inputs: list[list[Any]] = [[WORDS], [WORDS, WORDS[:2]], [[WORDS, ["one"], [""]]], [[WORDS, ["a"]], [["b"], WORDS]]]
    options: list[dict[str, Any]] = [{}, {"return_offsets_mapping": True}]
    options += [{"truncation": True, "max_length": 9, "padding": "max_length"}]
    cases = [("__call__", i, o | {"is_split_into_words": True}) for i, o in itertools.product(inputs, options)]
    check_calls(ours, "auto", cases)


def test_words_of_prose_are_numbered_as_in_transformers(ours: AlbertTokenizer) -> None:
    lines = ["in [MASK] <pad>is[SEP]x <unk>y", *corpus()[::20]]
    check_calls(ours, "auto", [("__call__", [lines, lines[::-1]], {})])


def test_encode_is_the_ids_of_the_slow_tokenizer(ours: AlbertTokenizer) -> None:
    cases: list[tuple[list[Any], dict[str, Any]]] = [([LONG, SHORT], {}), ([SHORT], {"add_special_tokens": False})]
    cases += [([LONG], {"truncation": True, "max_length": 9}), ([SHORT, ""], {}), ([SHORT], {"max_length": 5})]
    check_calls(ours, "slow", [("encode", arguments, options) for arguments, options in cases])


def test_encode_is_for_one_text(ours: AlbertTokenizer) -> None:
    with pytest.raises(UserError, match="is a list, not a text"):
        ours.encode([SHORT, LONG])
    assert ours.encode(WORDS, is_split_into_words=True) == ours(WORDS, is_split_into_words=True).input_ids


def test_arrays_hold_the_same_numbers_and_one_text_is_a_batch_of_one(ours: AlbertTokenizer) -> None:
    wanted = ours([SHORT, LONG], padding=True, return_offsets_mapping=True)
    for kind, dtype in (("np", "int64"), ("jax", "int32"), ("pt", "torch.int64")):
        if kind == "pt":
            pytest.importorskip("torch", reason="torch is not installed")
        got = ours([SHORT, LONG], padding=True, return_offsets_mapping=True, return_tensors=kind)
        assert list(got) == list(wanted)
        for name, value in got.items():
            assert str(value.dtype) == dtype
            assert np.array_equal(np.asarray(value), wanted[name])
    assert ours(SHORT, return_tensors="np").input_ids.tolist() == [ours.encode(SHORT)]
    assert ours(SHORT, return_tensors="jax", return_overflowing_tokens=True).overflow_to_sample_mapping.tolist() == [0]


def test_no_texts_and_no_words_give_no_rows_and_no_tokens(ours: AlbertTokenizer) -> None:
    assert dict(ours([])) == {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    assert ours([], is_split_into_words=True).input_ids == [2, 3]
    assert ours([[], ["a"]], is_split_into_words=True).word_ids(0) == [None, None]


def test_a_batch_has_attributes_and_survives_copies_and_pickles(ours: AlbertTokenizer) -> None:
    batch = ours([SHORT, LONG], ["a b", "c"], padding=True)
    assert batch.input_ids is batch["input_ids"]
    with pytest.raises(AttributeError, match=r"there is no 'labels' in this batch; it has input_ids, token_type_ids"):
        _ = batch.labels
    for again in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert dict(again) == dict(batch)
        assert again.word_ids(1) == batch.word_ids(1) and again.sequence_ids(0) == batch.sequence_ids(0)


def test_a_tokenizer_survives_pickles_and_gives_the_same(ours: AlbertTokenizer) -> None:
    wanted = ours([SHORT, LONG], truncation=True, max_length=10)
    assert pickle.loads(pickle.dumps(ours))([SHORT, LONG], truncation=True, max_length=10) == wanted


def test_threads_may_share_a_tokenizer_with_options_of_their_own(ours: AlbertTokenizer) -> None:
    lengths = [8, 12, 16, 20]
    wanted = {n: ours([LONG] * 50, truncation=True, padding="max_length", max_length=n).input_ids for n in lengths}
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(20):
            if ours([LONG] * 50, truncation=True, padding="max_length", max_length=n).input_ids != wanted[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in lengths]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_truncation_and_padding_without_a_length_take_the_models(ours: AlbertTokenizer) -> None:
    small = AlbertTokenizer(ours.vocab_file, model_max_length=12)
    assert len(small.encode(LONG, truncation=True)) == 12
    assert len(small.encode("a", padding="max_length")) == 12


def test_a_text_longer_than_the_model_is_warned_of_once(
    ours: AlbertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    small = AlbertTokenizer(ours.vocab_file, model_max_length=12)
    small("a")
    small(LONG, truncation=True)
    small(LONG, truncation=False, max_length=50)
    assert caplog.records == []
    small([SHORT, LONG])
    small(LONG)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert f"{len(small.encode(LONG))} tokens, more than the model's 12 positions" in caplog.text


def test_a_length_that_is_not_said_to_be_for_truncation_is_warned_of(
    ours: AlbertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(ours.encode(LONG, max_length=9)) == 9
    assert "max_length=9 is given without truncation" in caplog.text
    assert len(ours.encode(LONG, max_length=9, padding=True)) > 9
    assert "max_length=9 is ignored" in caplog.text


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([LONG], {"truncation": True, "max_length": 1}, "max_length=1 has no room for the 2 special tokens"),
        ([LONG, LONG], {"truncation": True, "max_length": 2}, "max_length=2 has no room for the 3 special tokens"),
        ([LONG], {"truncation": "only_second", "max_length": 9}, "text 0 fit max_length=9: .* that side has 0"),
        ([[LONG, "b"], ["a", LONG]], {"truncation": "only_first", "max_length": 9}, "'only_first' cannot .* text 1"),
        ([LONG], {"truncation": True, "max_length": 9, "stride": 7}, "stride=7 must be less than the 7 tokens"),
        ([LONG], {"truncation": True, "max_length": 9, "stride": -1}, "stride=-1"),
        ([LONG], {"truncation": "middle"}, "truncation='middle' is none of True, False"),
        ([LONG], {"truncation": 1}, "truncation=1 is none of"),
        ([LONG], {"padding": "full"}, "padding='full' is none of True, False"),
        ([LONG], {"padding": True, "padding_side": "top"}, "padding_side='top'"),
        ([LONG], {"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
        ([LONG], {"max_length": 0}, "max_length=0"),
        ([LONG], {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8}, "not a multiple"),
        ([LONG], {"return_tensors": "tf"}, "return_tensors='tf'"),
        ([[SHORT, LONG]], {"return_tensors": "np"}, "input_ids differ; give padding=True"),
        ([[SHORT, LONG], [LONG]], {}, "a batch of 2, and text_pair 1 texts"),
        ([[SHORT, LONG], LONG], {}, "a batch of 2, and text_pair one str"),
        ([SHORT, [LONG]], {}, r"is a list, not a text"),
        ([None], {}, "None is a NoneType, not a text"),
        ([[SHORT, 5]], {}, "5 is a int, not a text"),
        ([SHORT], {"is_split_into_words": True}, "not a list of words"),
        ([["a", 5]], {"is_split_into_words": True}, "5 is a int, not a text"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(
    texts: list[Any], options: dict[str, Any], message: str, ours: AlbertTokenizer
) -> None:
    with pytest.raises(UserError, match=message):
        ours(*texts, **options)


def test_a_tokenizer_without_a_model_length_asks_for_one(ours: AlbertTokenizer) -> None:
    unlimited = AlbertTokenizer(ours.vocab_file, model_max_length=10**30)
    assert len(unlimited.encode(LONG * 40)) > 512
    with pytest.raises(UserError, match="truncation needs a max_length"):
        unlimited(LONG, truncation=True)
    with pytest.raises(UserError, match="padding needs a max_length"):
        unlimited(LONG, padding="max_length")


# --- the other methods ------------------------------------------------------------------------------------------------


def test_special_token_methods_give_what_transformers_slow_tokenizer_gives(ours: AlbertTokenizer) -> None:
    a, b = [10, 11, 4, 1], [12, 0]
    inputs: list[list[Any]] = [[a], [a, b], [[]], [[], []], [a, []]]
    methods = ("build_inputs_with_special_tokens", "create_token_type_ids_from_sequences", "get_special_tokens_mask")
    calls: Calls = [(method, one, {}) for method in methods for one in inputs]
    finished: list[list[Any]] = [[[2, *a, 3]], [a, b]]
    calls += [("get_special_tokens_mask", one, {"already_has_special_tokens": True}) for one in finished]
    calls += [("num_special_tokens_to_add", [pair], {}) for pair in (False, True)]
    calls += [("__len__", [], {}), ("get_vocab", [], {})]
    check_calls(ours, "slow", calls)


def test_special_token_attributes_are_transformers(ours: AlbertTokenizer) -> None:
    names = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    names += [f"{name}_id" for name in names] + ["pad_token_type_id", "all_special_tokens", "all_special_ids"]
    names += ["vocab_size", "model_max_length", "padding_side", "truncation_side", "model_input_names"]
    names += ["special_tokens_map", "clean_up_tokenization_spaces"]
    check_calls(ours, "slow", [(name, [], {}) for name in names])


def test_tokens_and_ids_are_converted_as_in_transformers_slow_tokenizer(ours: AlbertTokenizer) -> None:
    pieces = ours.convert_ids_to_tokens(range(ours.vocab_size))
    calls: Calls = [
        ("convert_ids_to_tokens", [list(range(ours.vocab_size))], {}),
        ("convert_ids_to_tokens", [[2, 9, 1, 30, 0, 4, 3]], {"skip_special_tokens": True}),
        ("convert_ids_to_tokens", [30], {}),
        ("convert_ids_to_tokens", [[ours.vocab_size]], {}),
        ("convert_tokens_to_ids", [[*pieces, "no such piece", ""]], {}),
        ("convert_tokens_to_ids", ["[MASK]"], {}),
        ("convert_tokens_to_ids", ["no such piece"], {}),
    ]
    calls += [("tokenize", [text], {}) for text in [*corpus()[::10], LONG, "x[SEP] [MASK]日本 <pad>", ""]]
    check_calls(ours, "slow", calls)


def test_decoding_gives_what_transformers_slow_tokenizer_gives(ours: AlbertTokenizer) -> None:
    encoded = ours([*corpus()[::30], LONG, SHORT, "a [MASK] , [MASK][MASK] b <unk> it 's", *unicode_fuzz(100)])
    sequences: list[Any] = [*encoded.input_ids, [], [4, 30, 31, 4, 4, 32, 0, 0], 30, list(range(5, 200))]
    options: list[dict[str, Any]] = [{}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}]
    calls = [("decode", [ids], o) for ids, o in itertools.product(sequences, options)]
    calls += [("batch_decode", [sequences[:5]], o) for o in options]
    calls += [("convert_tokens_to_string", [tokens], {}) for tokens in (["▁a", "b", "[MASK]", "▁日本"], ["日本", "▁"])]
    check_calls(ours, "slow", calls)


def test_decoding_takes_arrays_and_refuses_ids_that_are_none(ours: AlbertTokenizer) -> None:
    ids = ours.encode(SHORT)
    assert ours.decode(np.asarray(ids)) == ours.decode(ids)
    assert ours.decode(ours(SHORT, return_tensors="jax").input_ids[0]) == ours.decode(ids)
    assert ours.batch_decode(np.asarray([ids, ids])) == [ours.decode(ids)] * 2
    assert ours.decode(np.int64(30)) == ours.decode(30)
    for bad in (-1, ours.vocab_size):
        with pytest.raises(UserError, match=f"{bad} is no id"):
            ours.decode([2, bad])


def test_recorded_clean_up_is_what_decode_does(ours: AlbertTokenizer) -> None:
    ids = ours.encode("it , [MASK] .", add_special_tokens=False)
    tidy = AlbertTokenizer(ours.vocab_file, clean_up_tokenization_spaces=True)
    assert tidy.decode(ids) == ours.decode(ids, clean_up_tokenization_spaces=True) != ours.decode(ids)


def test_the_vocabulary_is_saved_under_transformers_name(ours: AlbertTokenizer, tmp_path: pathlib.Path) -> None:
    for prefix, name in ((None, "spiece.model"), ("mine", "mine-spiece.model")):
        assert ours.save_vocabulary(str(tmp_path), filename_prefix=prefix) == (str(tmp_path / name),)
        assert (tmp_path / name).read_bytes() == ours.vocab_file.read_bytes()
    check_calls(ours, "slow", [("save_vocabulary", [str(tmp_path), "mine"], {})])
    with pytest.raises(UserError, match="nowhere is not a directory"):
        ours.save_vocabulary(tmp_path / "nowhere")
    ours.save_pretrained(tmp_path / "saved")
    alone = AlbertTokenizer(tmp_path / "saved" / "tokenizer.json")
    again = AlbertTokenizer(alone.save_vocabulary(tmp_path)[0])
    assert again.encode_sentences(corpus()[::20]) == ours.encode_sentences(corpus()[::20])


# --- padding what was encoded before ----------------------------------------------------------------------------------


def test_pad_fills_up_rows_as_transformers_does(ours: AlbertTokenizer) -> None:
    long, short = ({name: value for name, value in ours(text).items()} for text in (LONG, SHORT))
    ids = [{"input_ids": row["input_ids"], "label": number} for number, row in enumerate((long, short))]
    calls: Calls = [
        ("pad", [[long, short]], {}),
        ("pad", [{name: [long[name], short[name]] for name in long}], {"pad_to_multiple_of": 8}),
        ("pad", [ids], {"padding": "max_length", "max_length": 90, "padding_side": "left"}),
        ("pad", [ids], {"padding": "longest", "return_attention_mask": False}),
        ("pad", [short], {"padding": "max_length", "max_length": 20}),
        ("pad", [[long, short]], {"padding": False}),
        ("pad", [[long, short]], {"return_tensors": "np"}),
        ("pad", [[{"attention_mask": [1]}]], {}),
    ]
    check_calls(ours, "slow", calls)


def test_transformers_collators_take_the_tokenizer(ours: AlbertTokenizer) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rows = [dict(ours(text)) for text in (SHORT, LONG)]
    length = max(len(row["input_ids"]) for row in rows)
    batch = transformers.DataCollatorWithPadding(ours)([row | {"label": 0.5} for row in rows])
    assert batch["input_ids"].shape == (2, length) and batch["labels"].tolist() == [0.5, 0.5]
    labels = [row | {"labels": [3] * len(row["input_ids"])} for row in rows]
    batch = transformers.DataCollatorForTokenClassification(ours)(labels)
    assert batch["labels"].shape == (2, length) and batch["labels"][0, -1] == -100
    torch.manual_seed(0)
    batch = transformers.DataCollatorForLanguageModeling(ours, mlm_probability=0.5)(rows)
    predicted = batch["labels"] != -100
    assert predicted.any() and (batch["input_ids"][predicted] == ours.mask_token_id).float().mean() > 0.5
    assert not predicted[batch["input_ids"] == ours.cls_token_id].any()
