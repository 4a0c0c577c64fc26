# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/: their code runs as printed, their results are what they say, their links lead somewhere.

pages.py runs them; blocks marked `transformers4` run here, in the second environment of peers.py.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.training.compatibility import flat
from albert_jax.training.recipe import RESUMABLE_FIELDS, pretraining
from scripts import config_fields
from tests import flax_differences
from tests.architectures import model
from tests.flax_differences import DIFFERENCES, SAME
from tests.pages import MIGRATION, MODEL, PAGES, TRAINED, blocks, has_transformers5, make_model, only, run_page, sides
from tests.peers import transformers4

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {"continued_training", "config_fields"}  # without Python; the commands are tried in test_initialization.py
Pages = Callable[[str], dict[str, Any]]

needs_transformers = pytest.mark.skipif(
    not has_transformers5(), reason="no transformers 5 with torch here: what a page says of them is not tried"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The working directory."""
    place = tmp_path_factory.mktemp("docs")
    make_model(place)
    return place


class Elsewhere:
    """A program in the second environment, started at once; what it writes is asked for later."""

    def __init__(self, modules: tuple[str, ...], place: pathlib.Path, name: str, arguments: Callable[[str], list[str]]):
        self.out, self.errors = place / f"{name}.json", place / f"{name}.stderr"
        self.skip: BaseException | None = None
        try:
            python = transformers4(*modules)
        except pytest.skip.Exception as skip:
            self.skip = skip
            return
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, *arguments(str(self.out))],
                cwd=place,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def result(self) -> Any:
        """What it wrote; a skip where it could not be started."""
        if self.skip:
            raise self.skip
        assert self.process.wait() == 0, self.errors.read_text(encoding="utf-8")[-3000:]
        return json.loads(self.out.read_text(encoding="utf-8"))

    def close(self) -> None:
        """Ends it, if nobody wanted it."""
        if not self.skip:
            self.process.kill()
            self.process.wait()


def run_and_write(code: str, values: str) -> Callable[[str], list[str]]:
    """Arguments for a Python that runs a page's code and writes `values`, a Python expression, as JSON."""

    def arguments(out: str) -> list[str]:
        footer = f"\nimport json, pathlib\npathlib.Path({out!r}).write_text(json.dumps({values}))\n"
        return ["-c", textwrap.dedent(code) + footer]

    return arguments


@pytest.fixture(scope="module")
def elsewhere(place: pathlib.Path) -> Iterator[dict[str, Elsewhere]]:
    """Programs in the second environment that need nothing of the pages' results; they run while the pages do."""
    saved = place / "saved"
    for name in flax_differences.NAMES:
        made, params = model(f"FlaxAlbert{name}", albert_jax.AlbertConfig(**flax_differences.SHAPE))
        made.save_pretrained(saved / name, params)
    script = str(ROOT / "tests" / "flax_differences.py")
    before = run_and_write(sides(only(MIGRATION, "diff"))[0], "logits.tolist()")
    tensorflow = run_and_write(only(MIGRATION, "python", "transformers4").text, "logits.tolist()")
    running = {
        "differences": Elsewhere(("flax",), place, "differences", lambda out: [script, str(saved), out]),
        "before": Elsewhere(("flax", "sentencepiece"), place, "before", before),
        "tensorflow": Elsewhere(("tensorflow", "tf_keras", "torch"), place, "tensorflow", tensorflow),
    }
    yield running
    for program in running.values():
        program.close()


@pytest.fixture(scope="module")
def pages(place: pathlib.Path, elsewhere: dict[str, Elsewhere]) -> Pages:
    """Runs a page, once, and gives the names that its blocks leave."""
    done: dict[str, dict[str, Any]] = {}

    def run(page: str) -> dict[str, Any]:
        if page not in done:
            done[page] = run_page(page, place)
        return done[page]

    return run


# --- the five uses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(PAGES.keys() - COMMANDS))
def test_every_block_of_a_page_runs_in_order(page: str, pages: Pages) -> None:
    assert [block for block in blocks(page) if block.language == "python"]
    assert {block.mark for block in blocks(page)} <= {"", "transformers", "transformers4"}
    pages(page)


@pytest.mark.parametrize("page", TRAINED)
def test_the_training_step_is_compiled_once_and_learns(page: str, pages: Pages) -> None:
    names = pages(page)
    assert names["train_step"]._cache_size() == 1
    assert names["loss"] < 0.1


def test_the_text_classifier_gets_its_training_examples_right(pages: Pages) -> None:
    names = pages("text_classification")
    assert names["predicted"] == [name for _, name in names["examples"]]


@needs_transformers
def test_transformers_pipeline_classifies_texts_as_we_do(pages: Pages) -> None:
    names = pages("text_classification")
    scores = np.asarray(jax.nn.softmax(names["logits"])).max(-1)
    theirs = names["classify"](names["texts"])
    assert [answer["label"] for answer in theirs] == names["predicted"]
    np.testing.assert_allclose([answer["score"] for answer in theirs], scores, atol=1e-5)


def test_losses_of_the_text_classifier_are_those_of_its_table(pages: Pages, place: pathlib.Path) -> None:
    names = pages("text_classification")
    output = names["entailment"](**names["pairs"])
    logits = np.asarray(output.logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(names["output"].loss, -(log_p[0, 0] + log_p[1, 2]) / 2, rtol=1e-5)
    several = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    binary = np.log1p(np.exp(logits)) - several * logits
    np.testing.assert_allclose(names["entailment"](**names["pairs"], labels=several).loss, binary.mean(), rtol=1e-5)
    number = albert_jax.FlaxAlbertForSequenceClassification.from_pretrained(place / MODEL, num_labels=1)
    wanted = np.array([0.5, -2.0], np.float32)
    output = number(**names["pairs"], labels=wanted)
    np.testing.assert_allclose(output.loss, np.square(output.logits[:, 0] - wanted).mean(), rtol=1e-5)


def test_the_token_classifier_gets_its_training_sentences_right(pages: Pages) -> None:
    names = pages("token_classification")
    assert names["predicted"] == names["tags"]
    found = names["entities"](names["sentences"][0], names["predicted"][0])
    assert found == [("PER", "Ada Lovelace"), ("LOC", "London")]
    assert (names["labels"] != -100).sum() == sum(map(len, names["tags"]))


def test_names_are_read_from_tags_by_the_rules_of_bio(pages: Pages) -> None:
    entities = pages("token_classification")["entities"]
    words = ["a", "b", "c", "d", "e", "f"]
    tags = ["B-X", "I-X", "B-X", "O", "I-Y", "I-X"]
    assert entities(words, tags) == [("X", "a b"), ("X", "c"), ("Y", "e"), ("X", "f")]


@needs_transformers
def test_transformers_tags_the_words_as_we_do(pages: Pages) -> None:
    names = pages("token_classification")
    assert names["their_tags"] == names["predicted"][0]


def test_the_span_model_gets_its_training_questions_right(pages: Pages) -> None:
    names = pages("question_answering")
    assert names["predicted"] == list(names["answers"])


def test_windows_of_a_context_are_labelled_with_the_answers_characters(pages: Pages) -> None:
    names = pages("question_answering")
    rows, data = names["rows"], names["data"]
    of = rows["overflow_to_sample_mapping"]
    assert len(of) > 1.5 * len(names["examples"])  # there are contexts of several windows
    answered = set()
    for row, number in enumerate(of):
        first, last = data["start_positions"][row], data["end_positions"][row]
        if (first, last) != (0, 0):
            offsets = rows["offset_mapping"][row]
            assert names["contexts"][number][offsets[first, 0] : offsets[last, 1]] == names["answers"][number]
            answered.add(int(number))
    assert answered == set(range(len(names["examples"])))
    assert (data["start_positions"] == 0).any()


@needs_transformers
def test_transformers_finds_the_span_that_we_find(pages: Pages) -> None:
    names = pages("question_answering")
    found, probability = names["answer"]("Who opened the museum?", names["museum"])
    assert names["museum"][names["begin"] : names["end"]] == found == "Clara Hoffmann"
    assert names["probability"] == pytest.approx(probability, abs=1e-4)


def test_transformers_4s_pipeline_finds_the_span_that_we_find(pages: Pages, place: pathlib.Path) -> None:
    names = pages("question_answering")
    code = only("question_answering", "python", "transformers4").text
    theirs = Elsewhere(("torch",), place, "answers", run_and_write(code, "found")).result()
    found, probability = names["answer"]("Who opened the museum?", names["museum"])
    assert theirs["answer"] == found == "Clara Hoffmann"
    assert theirs["score"] == pytest.approx(probability, abs=1e-4)


def test_the_multiple_choice_model_gets_its_training_questions_right(pages: Pages) -> None:
    names = pages("multiple_choice")
    assert names["logits"].argmax(-1).tolist() == names["data"]["labels"].tolist()
    assert names["rows"]["input_ids"].shape == (12, 3, 32)


@needs_transformers
def test_transformers_scores_choices_as_we_do(pages: Pages) -> None:
    names = pages("multiple_choice")
    np.testing.assert_allclose(names["scores"].numpy()[0], names["logits"][0], atol=1e-4)


@needs_transformers
def test_transformers_fills_in_the_words_that_we_fill_in(pages: Pages) -> None:
    names = pages("fill_mask")
    theirs = names["fill"](names["text"])
    assert [answer["token"] for answer in theirs] == names["words"][0].tolist()
    np.testing.assert_allclose([answer["score"] for answer in theirs], names["probabilities"][0], atol=1e-6)


def test_the_masked_loss_is_minus_the_words_log_probability(pages: Pages) -> None:
    names = pages("fill_mask")
    assert names["tokenizer"].convert_ids_to_tokens(names["word"]) == "▁exist"
    log_p = jax.nn.log_softmax(names["logits"][names["masked"]])[0, names["word"]]
    np.testing.assert_allclose(names["loss"], -log_p, rtol=1e-5)


def test_a_repository_of_the_hub_does_as_well_as_a_directory(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    repository = tmp_path / "models--someone--albert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(place / MODEL, repository / "snapshots" / ("0" * 40))
    found = albert_jax.FlaxAlbertForMaskedLM.from_pretrained("someone/albert", cache_dir=tmp_path)
    tokenizer = albert_jax.AlbertTokenizer.from_pretrained("someone/albert", cache_dir=tmp_path)
    assert found.config.vocab_size == tokenizer.vocab_size


# --- coming from transformers 4 ---------------------------------------------------------------------------------------


def test_the_changed_import_is_all_that_changes(place: pathlib.Path, elsewhere: dict[str, Elsewhere]) -> None:
    before, after = sides(only(MIGRATION, "diff"))
    assert before.replace("from transformers ", "from albert_jax ") == after
    names: dict[str, Any] = {}
    with contextlib.chdir(place):
        exec(after, names)
    np.testing.assert_allclose(names["logits"], elsewhere["before"].result(), atol=1e-5)


@pytest.fixture(scope="module")
def ours(elsewhere: dict[str, Elsewhere], place: pathlib.Path) -> dict[str, Any]:
    """What our package does in each of the cases of the table."""
    return flax_differences.run(albert_jax, place / "saved")


def test_the_table_has_a_row_for_each_difference_that_is_tried() -> None:
    cells = re.findall(r"^\| ([^|]+) \|", PAGES[MIGRATION].split("## What differs")[1].split("\n## ")[0], re.MULTILINE)
    assert cells == list(DIFFERENCES)


@pytest.mark.parametrize("name", [*DIFFERENCES, *SAME])
def test_transformers_and_we_do_what_the_page_says(
    name: str, ours: dict[str, Any], elsewhere: dict[str, Elsewhere]
) -> None:
    _, theirs, wanted = DIFFERENCES[name] if name in DIFFERENCES else (*SAME[name], SAME[name][1])
    assert ours[name] == wanted
    assert elsewhere["differences"].result()[name] == theirs


def test_transformers_4s_tensorflow_class_gives_our_scores(
    place: pathlib.Path, elsewhere: dict[str, Elsewhere]
) -> None:
    ours = albert_jax.FlaxAlbertForMaskedLM.from_pretrained(place / MODEL)
    np.testing.assert_allclose(ours([[2, 4, 9, 3]]).logits, elsewhere["tensorflow"].result(), atol=1e-5)


@needs_transformers
def test_saved_tokenizers_are_free_of_the_faults_that_the_page_lists(place: pathlib.Path) -> None:
    import transformers

    ours = albert_jax.AlbertTokenizer.from_pretrained(place / MODEL)
    theirs = transformers.AutoTokenizer.from_pretrained(place / MODEL)
    pair = ("Raised in 1,024 of 2,000 cases (see 3.5).", "It is an [MASK] - or £5.")
    wanted = ours(*pair)
    assert dict(theirs(*pair)) == dict(wanted)
    assert 1 in wanted["token_type_ids"]
    mask = theirs.get_special_tokens_mask(wanted["input_ids"], already_has_special_tokens=True)
    assert mask == ours.get_special_tokens_mask(wanted["input_ids"], already_has_special_tokens=True)


@needs_transformers
def test_transformers_5_has_the_faults_that_the_page_lists(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import transformers

    ours = albert_jax.AlbertTokenizer.from_pretrained(place / MODEL)
    ours.save_vocabulary(tmp_path)
    theirs = transformers.AlbertTokenizer.from_pretrained(tmp_path)
    assert theirs("3.5")["input_ids"] != ours("3.5")["input_ids"]  # A
    assert "." in theirs.all_special_tokens  # B
    assert "token_type_ids" not in theirs("a", "b")  # C
    assert len(transformers.AlbertTokenizer(vocab_file=str(tmp_path / "spiece.model"))) == 5  # D


# --- fields ---------------------------------------------------------------------------------------------------------


def test_the_page_of_fields_is_what_the_code_says() -> None:
    assert PAGES["config_fields"] == config_fields.page(), "run python scripts/config_fields.py"
    fields = re.findall(r"^\| `([\w.]+)`( \*)? \| .* \| .+ \|$", PAGES["config_fields"], re.MULTILINE)
    assert {name for name, _ in fields} == flat(pretraining(albert_jax.AlbertConfig()).to_dict()).keys()
    assert {name for name, star in fields if star} == {*RESUMABLE_FIELDS}


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["README.md", *(f"docs/{page}.md" for page in PAGES)])
def test_links_and_paths_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:|#", link)]
    paths = re.findall(r"(?<![\w/])(?:scripts|tests|configs)/[\w/.-]+\.\w+", text)
    lost = [link for link in links if not ((ROOT / file).parent / link.split("#")[0]).exists()]
    lost += [path for path in paths if not (ROOT / path).exists()]
    assert lost == []
