# SPDX-License-Identifier: Apache-2.0
"""Opens what ``--source`` names: ``[NAME=]WHAT``.

WHAT is the word ``python-docs``; a path or a glob, whose suffix tells the format; or a kind, a colon and what it needs:
``text:`` ``jsonl:`` ``parquet:`` ``wikiextractor:`` ``mediawiki:`` before a path or a glob, ``tfds:`` before
``name[/config][:version][@split]`` or before a data set's folder. NAME is what the source is called in mixtures and
reports, by default what its path suggests.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from albert_jax.errors import UserError
from albert_jax.remote import is_remote
from pretrain_data.sources.base import Source, listing
from pretrain_data.sources.detection import Splitters, detect_documents, detect_lines
from pretrain_data.sources.files import FileSource, expand
from pretrain_data.sources.formats import KINDS, kind_of_files
from pretrain_data.sources.text import TextFiles

PYTHON_DOCS = "python-docs"
# Kinds whose lines may be sentences or paragraphs; the others have a layout of their own.
_EITHER = ("text", "jsonl", "parquet", "tfds")


class _Spec(NamedTuple):
    """What one ``--source`` says; `name` is empty where it gives none."""

    name: str
    kind: str
    what: str


def open_sources(
    specs: Sequence[str],
    *,
    lines: str,
    field: str,
    splitters: Splitters,
    documents: str = "blank",
    tfds_data_dir: str | os.PathLike[str] | None = None,
) -> tuple[list[Source], list[str]]:
    """Opens sources.

    Args:
        specs: see the module.
        lines: "sentence", "paragraph" or "detect", for sources whose lines may be either.
        field: the field, column or feature of the text in JSON, Parquet and TFDS.
        splitters: count the sentences of sample lines for "detect".
        documents: "blank", "line", "file" or "detect": what ends a document of plain text, see `TextFiles`.
        tfds_data_dir: where TFDS prepares data sets, if not where it does by default.

    Returns:
        The sources, and sentences for the person at the terminal: what was detected and what each source is.

    Raises:
        UserError: a source is not there, is named twice or cannot be read; two have the same name; it does not show
            what ends a document.
    """
    if len(set(specs)) < len(specs):
        raise UserError(f"--source {max(specs, key=list(specs).count)!r} is given twice; name each source once")
    parsed = [_parsed(spec) for spec in specs]
    sources = [
        _opened(spec, name, lines, field, tfds_data_dir) for spec, name in zip(parsed, _names(parsed), strict=True)
    ]
    of_files = [source for source in sources if isinstance(source, FileSource)]
    _refuse_repeated_files(of_files)
    repeated = Counter(Path(file.path).name for source in of_files for file in source.files)
    for files in of_files:
        files.ambiguous = {name for name, count in repeated.items() if count > 1}
    said = []
    for spec, source in zip(parsed, sources, strict=True):
        if spec.kind in _EITHER and lines == "detect":
            source.lines, why = detect_lines(source, splitters.of(source.name))
            said.append(f"lines{f' of {source.name}' if len(sources) > 1 else ''}: {why}")
        if isinstance(source, TextFiles):
            source.ends = documents
            if documents == "detect":
                source.ends, why = detect_documents(source, splitters.of(source.name))
                said.append(f"documents{f' of {source.name}' if len(sources) > 1 else ''}: {why}")
    return sources, said + [source.describe() for source in sources]


def _parsed(spec: str) -> _Spec:
    name, what = "", spec
    named = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", spec)
    # ``lang=en/*.parquet`` may be the path that it looks like.
    if named and next(glob.iglob(spec, recursive=True), None) is None:
        name, what = named.groups()
    kind, colon, rest = what.partition(":")
    if what == PYTHON_DOCS:
        return _Spec(name, PYTHON_DOCS, what)
    if kind in KINDS and rest:
        return _Spec(name, kind, what if kind == "tfds" else rest)
    if re.fullmatch("[a-z]+", kind) and colon and not is_remote(what) and not os.path.lexists(what):
        raise UserError(f"{kind + ':'!r} in --source {spec!r} is no kind of source; the kinds are {listing(KINDS)}")
    paths = expand(what)
    return _Spec(name, kind_of_files(paths, what), what)


def _names(specs: Sequence[_Spec]) -> list[str]:
    """The names given, and for the others short ones from their paths, all different."""
    given = [spec.name for spec in specs if spec.name]
    if len(set(given)) < len(given):
        raise UserError(f"two sources are called {max(given, key=given.count)!r}; give each --source another NAME=")
    names: list[str] = []
    for spec in specs:
        wanted = spec.name or _short_name(spec)
        number = 1
        name = wanted
        while not spec.name and name in {*given, *names}:
            number += 1
            name = f"{wanted}-{number}"
        names.append(name)
    return names


def _short_name(spec: _Spec) -> str:
    """What a path suggests: ``corpus`` for ``data/corpus/*.txt``, ``wiki`` for ``wiki.jsonl.gz``."""
    if spec.kind == "tfds":
        what = spec.what.removeprefix("tfds:").partition("@")[0]
        words = what.partition(":")[0] if not os.path.isdir(what) else "-".join(Path(what).parts[-2:])
        return _plain(words) or spec.kind
    for part in reversed(spec.what.split("/")):
        if word := _plain(part if spec.kind == PYTHON_DOCS else part.split(".")[0]):
            return word
    return spec.kind


def _plain(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")


def _opened(spec: _Spec, name: str, lines: str, field: str, tfds_data_dir: str | os.PathLike[str] | None) -> Source:
    # The formats' packages are imported where they are used: some of them take seconds.
    if spec.kind == "text":
        return TextFiles(spec.what, lines, name)
    if spec.kind == "jsonl":
        from pretrain_data.sources.json_lines import JsonLines

        return JsonLines(spec.what, field, lines, name)
    if spec.kind == "parquet":
        from pretrain_data.sources.parquet import Parquet

        return Parquet(spec.what, field, lines, name)
    if spec.kind == "tfds":
        from pretrain_data.sources.tfds_source import TfdsSource

        # A slice may follow the split's name; a folder with "@" in its path has a slash behind it.
        split = re.fullmatch(r"(.+)@(\w+(\[[^/]*\])?)", spec.what)
        what, chosen = (split[1], split[2]) if split else (spec.what, "train")
        return TfdsSource(what, chosen, field, lines, name, tfds_data_dir)
    if spec.kind == PYTHON_DOCS:
        from pretrain_data.python_docs import PythonDocs

        docs = PythonDocs()
        docs.name = name
        return docs
    if spec.kind == "mediawiki":
        from pretrain_data.sources.mediawiki import MediaWikiDump

        return MediaWikiDump(spec.what, name)
    from pretrain_data.sources.wikiextractor import WikiExtractor

    return WikiExtractor(spec.what, name)


def _refuse_repeated_files(sources: Sequence[FileSource]) -> None:
    """The same text twice would count twice and could leak into validation."""
    seen: dict[str, tuple[FileSource, str]] = {}
    for source in sources:
        for file in source.files:
            resolved = file.path if is_remote(file.path) else os.path.realpath(file.path)
            if resolved not in seen:
                seen[resolved] = source, file.path
            elif seen[resolved][0] is source:
                raise UserError(f"{file.path!r} is the same file as {seen[resolved][1]!r}; name each file once")
            else:
                raise UserError(f"{file.path!r} is named by more than one --source; name each file once")
