# SPDX-License-Identifier: Apache-2.0
"""Advice can be followed: what an error, a page or a program's help names is there."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.compatibility import flat
from albert_jax.training.recipe import pretraining

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [
    ROOT / "train.py",
    *(f for top in ("albert_jax", "configs", "pretrain_data", "scripts") for f in sorted((ROOT / top).rglob("*.py"))),
]
FIELDS = flat(pretraining(AlbertConfig()).to_dict())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ELSEWHERE = {"--data_dir", "--file_format", "--out_file_format", "--model_type"}  # of tfds and of spm_train
# What its reader is to do, or a remedy made at run time; or what would be right; or that nothing can be done.
REMEDY = re.compile(
    r"\b(must|give|pass|choose|name|leave|lower|raise|pad|copy|build|make|train|run|put|set|see|use|take|install|export|"
    r"restore|save|write|check|start|convert|rename|remove|wait|free|pip|unpack|fetch|decompress|split|truncate|repair|say|keep|"
    r"quote|publish|look|compare|prepare|rebuilds|did you mean|the same command)\b|[;:] \{\}|"
    r"\b(needs?|needed|such as|largest possible|each|whose ids are|ALBERT's is|they have|it has|it takes|takes \[)|"
    r"\b(there|sizes|kinds|rows|ids|classes|numbers) (are|0 to)\b|classes at once are|a (phase|rule) is|'google' has|"
    r"can(not)? be (converted|read)|only .* can\b"
)


def template(node: ast.expr) -> str:
    """A message with `{}` for what is known at run time alone; parts of f-strings that are text are kept."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "{}"


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in SOURCES}
CALLS = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
MESSAGES = [
    (f"{file.relative_to(ROOT)}:{node.lineno}", template(node.args[0]))
    for file, node in CALLS
    if called(node) in ("UserError", "OutOfMemoryError") and node.args
]


def known_flags() -> set[str]:
    names = [template(n.args[0]) for _, n in CALLS if called(n).startswith("DEFINE_")]
    options = [template(a) for _, n in CALLS if called(n) == "add_argument" for a in n.args]
    shell = [f for file in ROOT.glob("scripts/*.sh") for f in re.findall(r"^#  +(--[\w-]+)", file.read_text(), re.M)]
    return {*(f"--{name}" for name in names), *options, *shell}


def unfollowable(text: str, flags: set[str]) -> list[str]:
    """What the text names that is not there."""
    wrong = [f for f in re.findall(r"--[a-z][\w-]*", text) if f not in flags | ELSEWHERE | {"--config"}]
    groups = "|".join({name.split(".")[0] for name in FIELDS if "." in name})
    named = re.findall(rf"(?<![\w/.])((?:{groups})\.[a-z_0-9]+)(?![\w.*{{])", text.replace("--config.", " "))
    wrong += [n for n in named if n not in FIELDS and n != "model.safetensors"]
    wrong += [n for n in re.findall(r"--config\.([a-z_]+)(?![\w.{])", text) if n not in FIELDS]
    paths = re.findall(r"(?<![\w/.{])((?:docs|configs|scripts|tests|pretrain_data)/[\w/.-]*\w)", text)
    paths += re.findall(r"(?<![\w/.}])([a-z_]+\.py)\b", text)
    wrong += [
        p for p in paths if not (p.isupper() or "NAME" in p or any((ROOT / at / p).exists() for at in ("", "scripts")))
    ]
    wrong += [e for extras in re.findall(r"\.\[([\w,]+)\]", text) for e in extras.split(",") if e not in EXTRAS]
    wrong += [
        p for p in re.findall(r"pip install (?!-)([\w.\[\]-]+)", text) if p not in ("tensorboard", "xprof", "gcsfs")
    ]
    wrong += re.findall(r"albert_jax\[\w+\]", text)  # no index has it
    return wrong


def test_an_error_is_one_sentence_with_a_remedy_in_which_all_names_are_right() -> None:
    assert len(MESSAGES) > 300
    flags = known_flags()
    told = "give --nosuch=1, --config.data.nope=2 or mesh.none, as docs/none.md and none.py say; -e '.[none]'"
    assert len(unfollowable(told, flags)) == 6
    assert unfollowable("pip install 'albert_jax[tpu]' or give --no", flags)
    wrong = {}
    for place, text in MESSAGES:
        faults = unfollowable(text, flags)
        if len(re.findall(r"[a-z]+", text)) > 2:  # else somebody else's sentence, passed on
            faults += ["two sentences"] * bool(re.search(r"[a-z)][.] [A-Z]", text))
            faults += ["no remedy"] * (not REMEDY.search(text))
        if faults:
            wrong[place] = (text, faults)
    assert not wrong, "\n".join(f"{place}: {text}\n    {faults}" for place, (text, faults) in wrong.items())
    assert str(UserError("a sentence")) == str(UserError("a sentence.")) == "a sentence."


def test_pages_and_comments_name_no_package_of_an_index_that_has_none() -> None:
    files = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("scripts/**/*.sh"), *SOURCES]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    wrong = {
        str(f): found for f, text in texts.items() if (found := re.findall(r"pip install[^\n]*albert_jax\[?", text))
    }
    assert not wrong
    assert {e for text in texts.values() for e in re.findall(r"-e '\.\[(\w+)\]'", text)} <= EXTRAS.keys()


# All in one process, which saves seconds, and in none of the tests': a bench sets what it needs when it is imported.
HELP = """
import contextlib, io, pathlib, runpy, sys

for file in sys.argv[1:]:
    sys.argv, sys.path[0], out = [file, "--help"], str(pathlib.Path(file).parent), io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(file, run_name="__main__")
        print(file, "went on after its help")
    except SystemExit as end:
        if end.code or len(out.getvalue().splitlines()) < 5:
            print(file, end.code, out.getvalue())
"""


def test_every_program_has_its_help_and_needs_nothing_for_it() -> None:
    programs = [f for f in SOURCES if '"__main__"' in f.read_text(encoding="utf-8")]
    shells = [f for f in [*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/bench/*.sh")] if f.name != "environment.sh"]
    assert len(programs) > 15 and len(shells) > 4
    found = subprocess.run(
        [sys.executable, "-c", HELP, *programs], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert (found.returncode, found.stdout) == (0, ""), found
    for file in shells:
        done = subprocess.run(["bash", file, "--help"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout.splitlines()) > 4 and not done.stderr, file
