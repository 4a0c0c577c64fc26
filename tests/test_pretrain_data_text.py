# SPDX-License-Identifier: Apache-2.0
"""Reading text, telling sentences from paragraphs, the vocabulary's recipe, and prose out of docstrings."""

import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from pretrain_data import python_docs
from pretrain_data.__main__ import main
from pretrain_data.docstrings import paragraphs
from pretrain_data.python_docs import PythonDocs
from pretrain_data.sentences import SentenceSplitter
from pretrain_data.sources.base import Document, ReadLog

TEXT = (
    'The river is wide.\nThe harbor is near, and (so) "far" - it is said.\n\nThe winter was long.\nThe garden sleeps.\n'
    * 40
)


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Then Mrs. Smith met Mr. Jones at 3.14 p.m. on Monday.", "They left!"]),
        ("en", ["An astral 😀 one.", "Another 😀😀 follows here.", "It ends."]),
        ("de", ["Das ist z.B. ein Satz.", "Hier kommt noch einer."]),
        ("zh", ["今天天气很好。", "我们去公园散步。"]),
    ],
)
def test_sentences_split_by_the_languages_rules_and_lose_no_character(language: str, sentences: list[str]) -> None:
    assert SentenceSplitter(language).split("  ".join(sentences)) == sentences


def test_a_trained_vocabulary_has_alberts_special_and_user_defined_pieces(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    for name in ("v", "w"):
        assert (
            main(["vocab", "--source", str(tmp_path / "text.txt"), "--size", "36", "--out", str(tmp_path / name)]) == 0
        )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v" / "spiece.model"))
    expected = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "(", ")", '"', "-", ".", "–", "£", "€"]
    assert [model.id_to_piece(i) for i in range(13)] == expected
    assert model.get_piece_size() == 36 and (model.bos_id(), model.eos_id()) == (-1, -1)
    assert all(model.is_control(i) for i in (0, 2, 3, 4)) and model.is_unknown(1)
    assert model.encode("[MASK]").count(4) == 0
    pieces = [line.split("\t")[0] for line in (tmp_path / "v" / "spiece.vocab").read_text().splitlines()]
    assert pieces == [model.id_to_piece(i) for i in range(36)]
    assert all(piece == piece.lower() for piece in pieces[5:])
    assert (tmp_path / "v" / "spiece.model").read_bytes() == (tmp_path / "w" / "spiece.model").read_bytes()


def test_a_docstring_gives_its_prose_without_code_tables_and_parameter_names() -> None:
    text = """Compute the *mean* of the given ``values`` along
    one axis.

    See :func:`~numpy.sum` for the sum that is used here [1]_.

    Parameters
    ----------
    axis : int, optional
        Axis along which the means are computed.
    out : ndarray
        Where the result goes when it is given.

    .. versionadded:: 1.2
        This sentence tells when it was added.

    .. note::
        The result is never rounded to integers.

    Use it as follows in your own code::

        x = mean([1, 2, 3]) of some values here

    ===== =====
    left  right table of two columns
    ===== =====

    Examples
    --------
    >>> mean([1, 2])
    1.5 is what comes out of it

    * The first item of this list is kept.
    * The second item is kept as well.

    References
    ----------
    .. [1] A. Author, A book about the mean of numbers, 1999.
    """
    assert paragraphs(text) == [
        "Compute the mean of the given values along one axis.",
        "See numpy.sum for the sum that is used here.",
        "Axis along which the means are computed.",
        "Where the result goes when it is given.",
        "The result is never rounded to integers.",
        "The first item of this list is kept.",
        "The second item is kept as well.",
    ]


def test_google_and_sphinx_layouts_give_the_descriptions() -> None:
    google = """Opens a file.

    Args:
      path (str): The place of the file on the disk,
        as an absolute path.
      mode: How the file is to be opened.

    Returns:
      A handle that must be closed.

    :param size: The number of bytes that are read.
    :type size: int or None of all
    """
    assert paragraphs(google) == [
        "The place of the file on the disk, as an absolute path.",
        "How the file is to be opened.",
        "A handle that must be closed.",
        "The number of bytes that are read.",
    ]


def read(docs: PythonDocs) -> list[Document]:
    return [document for part in docs.parts() for document in docs.read(part, ReadLog())]


def test_the_embedded_corpus_imports_nothing_repeats_nothing_and_is_the_same_twice() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        "from pretrain_data.python_docs import PythonDocs\n"
        "docs = PythonDocs(packages=('optax', 'absl'), standard_library=False)\n"
        "from pretrain_data.sources.base import ReadLog\n"
        "print(docs.digest); [list(docs.read(part, ReadLog())) for part in docs.parts()]\n"
        "assert not {'optax', 'absl', 'jax'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True
    )
    docs = PythonDocs(packages=("optax", "absl"), standard_library=False)
    assert done.stdout.strip() == docs.digest
    found = read(docs)
    texts = [line.casefold() for document in found for line in document.lines]
    assert len(found) > 100 and len(set(texts)) == len(texts)
    assert len({document.id for document in found}) == len(found)
    adam = next(document for document in found if document.id == "python-docs:optax/_src/alias.py:adam")
    assert len(adam.lines) > 3 and not any(">>>" in line or "\n" in line for line in adam.lines)


def test_files_that_all_cores_parse_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    one = read(PythonDocs(packages=("absl",), standard_library=False))
    monkeypatch.setattr(python_docs, "_MANY_FILES", 1)
    assert read(PythonDocs(packages=("absl",), standard_library=False)) == one


def test_docstrings_of_classes_methods_and_repeated_names_have_ids_of_their_own(tmp_path: Path) -> None:
    package = tmp_path / "tinypackage"
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""A package about small things in life."""\nimport missing_module\n'
        'class A:\n    """A class that holds one thing only."""\n'
        '    def f(self):\n        """Returns the thing that it holds inside."""\n'
        '    def f(self, x):\n        """Puts another thing in its place."""\n'
        'add_newdoc("place", "g", """\nTells about something written in another language.\n""")\n'
    )
    (package / "broken.py").write_text("def (:\n")
    sys.path.insert(0, str(tmp_path))
    try:
        docs = PythonDocs(packages=("tinypackage", "package_that_is_not_there"), standard_library=False)
        found = {document.id.split(":", 2)[2]: document.lines[0] for document in read(docs)}
    finally:
        sys.path.remove(str(tmp_path))
    assert found == {
        "module": "A package about small things in life.",
        "A": "A class that holds one thing only.",
        "A.f": "Returns the thing that it holds inside.",
        "A.f#2": "Puts another thing in its place.",
        "g": "Tells about something written in another language.",
    }
