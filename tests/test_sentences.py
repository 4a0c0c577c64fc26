# SPDX-License-Identifier: Apache-2.0
"""Sentence boundaries: quality by language, nothing lost, bounded cost, what is said of a language, and the bench."""

import importlib.util
import pickle
import random
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import icu
import pytest

from albert_jax.errors import UserError
from pretrain_data.sentences import SentenceSplitter

BENCH = Path(__file__).parents[1] / "scripts" / "bench"

# Gold: one sentence a line, joined by a space, or by nothing where the language has none.
GOLD = {
    "en": """Dr. Gomez met Gen. Ellis and J. R. Stone on Oct. 3 in the U.S. Senate.
        "Are you sure?" asked the chairman, who had come late.
        See Fig. 3 and, e.g. Baker's essay (vol. 2), for more.
        It was cold that January.
        1987 had been warmer.
        ok, that is all i know about the weather.
        nobody asked for more.
        The page is at example.org/find?Name=x and it works!
        He stayed.""",
    "de": """Am 3. Oktober kam Dr. Weber an, der 45. Gast des Jahres.
        Es war ein altes Haus.
        Im 19. Jahrhundert gehörte es einem Arzt, der z. B. Tiere heilte, bzw. Menschen.
        Was danach war, weiß keiner mehr genau.
        1921 brannte es ab.
        „Wer war das?“ fragte man.
        Niemand meldete sich dort am Ende jener Woche.
        2 Jahre später stand es wieder.""",
    "fr": """« Nous partons demain. »
        Mme Petit et M. Durand habitaient près de la mer.
        « Quelle heure est-il ? » demanda le Dr. Morel.
        Rome fut prise en 52 avant J.-C. par ses voisins, dit-on.
        J.-P. Martin n'en croit rien.
        Il pleuvait beaucoup.
        1968 fut une autre année.""",
    "ru": """Проф. Иванов родился в янв. 1950 г. в Москве.
        А. С. Пушкин жил раньше.
        Это было до н. э.
        Никто не помнит этого времени.
        1 октября пошёл снег.
        «Куда ты?» спросила она.
        Он молчал.""",
    "ar": """ذهب الولد إلى المدرسة صباحا.
        هل رأيت الكتاب؟
        نعم، رأيته على الطاولة.
        كان ذلك عام 300 ق.م تقريبا.
        ما أجمل السماء!
        عاد إلى البيت.""",
    "zh": """今天天气很好。
        “你去哪里？”
        “我去公园。”
        我们一起走了很久！
        （他没有来。）
        后来下雨了……
        大家都回家了。""",
    "hi": """आज मौसम अच्छा है।
        तुम कहाँ जा रहे हो?
        मैं बाज़ार जा रहा हूँ।
        वहाँ बहुत भीड़ थी!
        हम घर लौट आए।""",
    "ja": """今日は良い天気です。
        「雨が降るかもしれない。」と母が言った。
        本当ですか？
        『雪国』を読みました。
        「はい！」
        とても楽しかった。""",
    "el": """Ο καιρός είναι καλός.
        Πού πηγαίνεις;
        Πηγαίνω στην αγορά.
        Τι ωραία μέρα!
        Γυρίσαμε σπίτι.""",
}
# Below 0.95: an ellipsis of Chinese is no end by Unicode, and the Japanese と after a quotation may begin a sentence.
FLOORS = {"en": 0.95, "de": 0.95, "fr": 0.95, "ru": 0.95, "ar": 0.95, "zh": 0.85, "hi": 1.0, "ja": 0.85, "el": 1.0}


def bare(text: str) -> str:
    return "".join(text.split())


def ends(sentences: Iterable[str]) -> set[int]:
    """Where sentences end, the last left out, in characters that are not white space."""
    return set(list(accumulate(len(bare(sentence)) for sentence in sentences))[:-1])


@pytest.mark.parametrize("language", GOLD)
def test_f1_of_boundaries_reaches_the_floor_of_the_language(language: str) -> None:
    gold = [line.strip() for line in GOLD[language].splitlines()]
    found = SentenceSplitter(language).split(("" if language in ("zh", "ja") else " ").join(gold))
    right = len(ends(gold) & ends(found))
    assert 2 * right / (len(ends(gold)) + len(ends(found))) >= FLOORS[language], found


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("de", ["Es kostet einen Dollar.", "Das ist, was er schrieb.", "So."]),  # "r." and "b." are listed
        ("en", ["Ask the board of St. Louis.", "It is 5 p.m. now.", "He saw the film.", "Go on!"]),
        ("fr", ["Il habite près de la mer.", "Il gagne le jeu.", "Fin."]),
        ("nl", ["Dat is het einde.", "Niemand weet meer."]),
        ("hr", ["Rođen je 3. listopada u Zagrebu.", "Umro je ondje."]),
        ("km", ["ថ្ងៃនេះអាកាសធាតុល្អ។", "យើងទៅសួន។"]),
        ("my", ["ယနေ့ရာသီဥတုကောင်းသည်။", "ပန်းခြံသို့သွားသည်။"]),
        ("am", ["ዛሬ አየሩ ጥሩ ነው።", "ወደ መናፈሻ ሄድን።"]),
        ("en", ["1. Introduction is first.", "2. Methods come next."]),
        ("zh", ["他说：“很好。", "“你呢？”"]),
    ],
)
def test_whole_words_are_compared_and_marks_of_many_scripts_end_sentences(language: str, sentences: list[str]) -> None:
    assert SentenceSplitter(language).split((" " if language != "zh" else "").join(sentences)) == sentences


def test_a_line_break_inside_a_paragraph_ends_a_sentence_even_after_an_abbreviation() -> None:
    for mark in ("\r\n", "\n", "\r", "\x85", "\u2028", "\u2029"):
        assert SentenceSplitter("en").split(f"He met Dr.{mark}Stone there{mark}today. So") == [
            "He met Dr.",
            "Stone there",
            "today.",
            "So",
        ]


@pytest.mark.parametrize("language", ["en", "de", "fr", "ja", "ar", "sw"])
def test_nothing_but_white_space_is_lost_from_random_text(language: str) -> None:
    rng = random.Random(7)
    usual = ".?!。？」「“”»«…'\"()[]  \t\u00a0\u3000\r\n\x85\u2028\u0301\u200d\ufeff\x00aAzZéßЖя中と1٣😀𝒜🇩"
    splitter = SentenceSplitter(language)
    for _ in range(300):
        characters = (rng.choice(usual) if rng.random() < 0.8 else chr(rng.randrange(0x110000)) for _ in range(60))
        text = "".join(characters) + rng.choice(("", " Dr. ", "3. ", "\r\n"))
        sentences = splitter.split(text)
        assert bare("".join(sentences)) == bare(text)
        assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    assert splitter.split("") == splitter.split(" \u2028\r\n ") == []


@pytest.mark.parametrize(
    "unit", ["a", " ", "1. ", ". »", "» ", "Mr. ", "。「", "😀", "worte. b ", '."', "\u0301", "ab "]
)
def test_a_line_of_a_mebibyte_costs_time_in_proportion(unit: str) -> None:
    splitter = SentenceSplitter("de")
    started = time.process_time()
    splitter.split("Hier. " + unit * ((1 << 20) // len(unit)))
    assert time.process_time() - started < 4  # measured 0.5 s at most; a quadratic pass would take minutes


def test_a_splitter_arrives_in_another_process_as_it_was() -> None:
    splitter = SentenceSplitter("pt-BR")
    again = pickle.loads(pickle.dumps(splitter))
    assert again.language == "pt-BR" and again.describe() == splitter.describe()
    assert again.split("O Dr. Souza chegou. Ele ficou.") == ["O Dr. Souza chegou.", "Ele ficou."]


@pytest.fixture
def german_process() -> Iterator[None]:
    before = icu.Locale.getDefault()
    icu.Locale.setDefault(icu.Locale("de_DE"))
    yield
    icu.Locale.setDefault(before)


def test_it_is_said_whether_a_language_has_a_list_of_abbreviations(german_process: None) -> None:
    for language in ("de", "en", "es", "fr", "it", "pt", "ru", "pt-BR", "de-AT"):
        said = SentenceSplitter(language).describe()
        assert f"abbreviations for {language!r}" in said and "no list" not in said and "\n" not in said
        assert len(SentenceSplitter(language).abbreviations) > 15
    for language in ("sw", "nl", "el", "zh", "ja", "km"):  # the process's own list, German, is not taken for theirs
        splitter = SentenceSplitter(language)
        assert f"has no list of abbreviations for {language!r}" in splitter.describe()
        assert not splitter.abbreviations and f"ICU {icu.ICU_VERSION}" in splitter.describe()
    assert "ordinals" in SentenceSplitter("cs").describe() and "ordinals" not in SentenceSplitter("en").describe()


@pytest.mark.parametrize(("language", "script"), [("th", "Thai"), ("lo", "Lao"), ("bo", "Tibetan"), ("dz", "Tibetan")])
def test_a_language_without_ends_that_icu_finds_is_refused_when_split_with_the_remedy(
    language: str, script: str
) -> None:
    splitter = SentenceSplitter(language)  # can be made, as --lines sentence is the remedy
    assert f"finds none in {script} script" in splitter.describe()
    with pytest.raises(UserError, match=f"{language!r} is written in {script} script.*--lines sentence"):
        splitter.split("วันนี้อากาศดีมาก เราไปเดินเล่นที่สวน")
    assert SentenceSplitter("th-Latn").split("Sawatdi. Khrap.") == ["Sawatdi.", "Khrap."]


@pytest.mark.parametrize("language", ["english", "xx-YY", "", "q", "123"])
def test_an_unknown_code_is_refused_with_the_remedy(language: str) -> None:
    with pytest.raises(UserError, match="ISO 639 code"):
        SentenceSplitter(language)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    specification = importlib.util.spec_from_file_location("sentences_bench", BENCH / "sentences.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "sentences_bench", module)
    specification.loader.exec_module(module)
    return module


def test_the_bench_puts_paragraphs_together_as_the_treebank_says(bench: ModuleType, tmp_path: Path) -> None:
    def token(number: str, form: str, notes: str = "_") -> str:
        return "\t".join([number, form, *"_______", notes])

    text = [
        ["# newdoc id = a", "# newpar", "# text = Va au lit!", token("1", "Va"), token("2-3", "au"), token("2", "à")],
        [token("3", "le"), token("4", "lit", "SpaceAfter=No"), token("5", "!", "SpaceAfter=No"), ""],
        ["# text = Dors.", token("1-2", "Dors", "SpaceAfter=No"), token("1", "Do"), token("2", "rs")],
        [token("2.1", "_"), token("3", "."), ""],
        ["# text = (Bien)", token("1-2", "(Bien)"), token("1", "(Bien", "SpaceAfter=No"), token("2", ")"), ""],
        ["# newpar", "# text = Fin.", token("1", "Fin."), "", ""],
    ]
    (tmp_path / "fr_x-ud-test.conllu").write_text("\n".join(line for block in text for line in block))
    (path,) = bench.files([str(tmp_path)])
    treebank = bench.read(path)
    assert treebank.language == "fr"
    assert treebank.paragraphs == [("Va au lit!Dors. (Bien)", ["Va au lit!", "Dors.", "(Bien)"]), ("Fin.", ["Fin."])]
    assert bench.boundaries(["Va au lit!", "Dors. (Bien)"])[0] == {8}
    with pytest.raises(UserError, match="holds no treebank"):
        bench.files([str(tmp_path / "none")])
    with pytest.raises(UserError, match="tells no language"):
        bench.language_of(tmp_path / "qqq-PUD.conllu")
    assert bench.language_of(tmp_path / "UD_Ancient_Greek-PROIEL.conllu") == "grc"
