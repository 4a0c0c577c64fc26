# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus ``python-docs``: the English documentation that every Python installation carries.

``pydoc_data.topics`` (the language reference), and the docstrings of the standard library and of the packages named in
``PACKAGES`` that are installed. Sources are parsed with `ast`; nothing is imported or run. One document is one
docstring (or one topic); its id is ``python-docs:<file>:<qualified name>``. What counts as prose is said in
`pretrain_data.docstrings`.

The corpus varies with the installed versions, so its digest is printed and goes into the manifest.
"""

import ast
import hashlib
import multiprocessing
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from pretrain_data import docstrings
from pretrain_data.sources.base import Document, Part, ReadLog, Span

NAME = "python-docs"
# What this project depends on, directly or not, and what its tests install; packages that are not there are left out.
PACKAGES = (
    *("absl", "array_record", "clu", "etils", "flax", "google.protobuf", "grain", "jax", "jaxlib", "matplotlib"),
    *("ml_collections", "ml_dtypes", "msgpack", "networkx", "numpy", "opt_einsum", "optax", "orbax", "PIL", "psutil"),
    *("pygments", "rich", "safetensors", "scipy", "sentencepiece", "simple_parsing", "sklearn", "tensorboardX"),
    *("tensorflow_datasets", "tensorstore", "tokenizers", "tqdm", "treescope"),
)
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "testing",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib2to3",
    "turtledemo",
    "externals",
}
_MANY_FILES = 500


class PythonDocs:
    """The embedded corpus as a source of documents, in a fixed order (files by path, docstrings by line).

    Paragraphs that occurred before, in whichever file, are left out: packages repeat each other (jax repeats numpy).

    Attributes:
        name: ``python-docs``.
        lines: ``"paragraph"``: the lines of its documents are paragraphs.
    """

    name = NAME
    lines = "paragraph"

    def __init__(self, packages: tuple[str, ...] = PACKAGES, standard_library: bool = True) -> None:
        self._packages = packages
        self._standard_library = standard_library
        self.repeated_paragraphs = 0
        self.without_prose = 0

    @cached_property
    def roots(self) -> list[tuple[str, Path]]:
        """(label, folder) of the standard library and of each package that is installed."""
        roots = [("python", Path(sysconfig.get_paths()["stdlib"]))] if self._standard_library else []
        for package in self._packages:
            spec = _find(package)
            roots += [(package.replace(".", "/"), folder) for folder in spec]
        return roots

    @cached_property
    def _documents(self) -> list[Document]:
        # About ten megabytes, and parsing takes longer than anything done with them: read once, kept.
        seen: set[bytes] = set()
        documents = []
        for ident, found in self._prose():
            kept = []
            for paragraph in found:
                digest = hashlib.blake2b(paragraph.casefold().encode(), digest_size=12).digest()
                if digest not in seen:
                    seen.add(digest)
                    kept.append(paragraph)
            self.repeated_paragraphs += len(found) - len(kept)
            self.without_prose += not kept
            if kept:
                documents.append(Document(f"{NAME}:{ident}", kept))
        return documents

    def _prose(self) -> Iterator[tuple[str, list[str]]]:
        """(id, paragraphs) of all docstrings; files are parsed by all cores where they are many."""
        if self._standard_library:
            yield from ((ident, docstrings.paragraphs(text)) for ident, text in _topics())
        files = [
            (path, f"{label}/{path.relative_to(root).as_posix()}")
            for label, root in self.roots
            for path in _python_files(root)
        ]
        if len(files) < _MANY_FILES:
            yield from chain.from_iterable(map(_prose_of, files))
            return
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from chain.from_iterable(pool.map(_prose_of, files, chunksize=32))

    def parts(self) -> list[Part]:
        """One part: paragraphs that repeat are found by reading everything in order."""
        span = Span(NAME, 0, len(self._documents), self.size, state=self.digest)
        return [Part((span,))]

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """Yields the documents."""
        yield from self._documents

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(document.size for document in self._documents)

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of a sha256 over all ids and texts."""
        digest = hashlib.sha256()
        for document in self._documents:
            digest.update("\n".join([document.id, *document.lines, ""]).encode())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """One line: what the corpus is here and what was left out."""
        libraries = len(self.roots) - self._standard_library
        return (
            f"{NAME}: {len(self._documents):,} documents, {self.size / 1e6:.1f} MB from the standard library of Python "
            f"{sys.version.split()[0]} and {libraries} packages; {self.repeated_paragraphs:,} repeated paragraphs and "
            f"{self.without_prose:,} docstrings without prose left out; digest {self.digest}"
        )

    def manifest(self) -> dict[str, object]:
        """What the data set's manifest keeps of this source."""
        return {
            "source": NAME,
            "bytes": self.size,
            "digest": self.digest,
            "packages": [label for label, _ in self.roots],
        }


def _find(package: str) -> list[Path]:
    """The folders of an installed package, found without importing it."""
    first, *rest = package.split(".")
    spec = find_spec(first)
    if spec is None or not spec.submodule_search_locations:
        return []
    folders = [Path(folder, *rest) for folder in spec.submodule_search_locations]
    return sorted(folder for folder in folders if folder.is_dir())


def _python_files(root: Path) -> list[Path]:
    files = (
        path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
    )
    return sorted(
        path for path in files if not path.name.endswith(("_test.py", "_pb2.py")) and not path.name.startswith("test_")
    )


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escape sequences
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None  # deliberately broken files exist in installed packages


def _topics() -> Iterator[tuple[str, str]]:
    spec = find_spec("pydoc_data")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "topics.py"
        tree = _parse(path) if path.exists() else None
        for node in tree.body if tree else []:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                for name, text in sorted(ast.literal_eval(node.value).items()):
                    yield f"pydoc_data/topics:{name}", text


def _prose_of(file: tuple[Path, str]) -> list[tuple[str, list[str]]]:
    """(id, paragraphs) of a file's docstrings."""
    return [(ident, docstrings.paragraphs(text)) for ident, text in _docstrings(*file)]


def _docstrings(path: Path, label: str) -> Iterator[tuple[str, str]]:
    """(id, docstring) for the module and all that is defined in it, in the order of the source."""
    tree = _parse(path)
    names: dict[str, int] = {}
    for name, text in _walk(tree, "") if tree else ():
        names[name] = names.get(name, 0) + 1
        yield f"{label}:{name}" + (f"#{names[name]}" if names[name] > 1 else ""), text


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield "module", text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            text = ast.get_docstring(child, clean=False)
            if text:
                yield name, text
            yield from _walk(child, f"{name}.")
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added_docstring(child.value, prefix)
        elif isinstance(child, ast.stmt):
            yield from _walk(child, prefix)


def _added_docstring(call: ast.Call, prefix: str) -> Iterator[tuple[str, str]]:
    """`add_newdoc(place, name, doc)`, by which NumPy and SciPy document what is written in C."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in {"add_newdoc", "add_docstring"}:
        return
    texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    names = [text for text in texts if "\n" not in text]
    for text in texts:
        if "\n" in text:
            yield prefix + (names[-1] if names else "unnamed"), text
