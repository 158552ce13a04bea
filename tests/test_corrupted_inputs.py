"""Corrupted tables, YAML files and parameters: handled, or refused with a message that names the place; never a crash.

A kind of corruption is a function that draws the corrupted input; hypothesis draws the same cases in every run. Here
everything is read and checked in this process; what a whole run says of it: ``test_whole_study.py``.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io import DatasetError
from pydantic import ValidationError

from conftest import ROOT
from multitask_recommender.configuration import StudyConfigLoader
from multitask_recommender.data import numbering
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.errors import StudyError, find_study_error
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipelines.data_engineering import nodes
from multitask_recommender.pipelines.user_embedding.parameters import UserEmbeddingParameters
from multitask_recommender.pipelines.when_multitask_helps.parameters import SweepSettings
from multitask_recommender.raw_tables import RawTable
from multitask_recommender.simulation.bookstore import BookstoreSettings

TINY = ROOT / "tests" / "data" / "tiny_study"
TABLES = ["interactions", "users", "items", "item_links", "item_graph"]
CONTENT = {name: (TINY / f"{name}.tsv").read_bytes() for name in TABLES}
PARAMETERS = {
    key: value
    for path in sorted((ROOT / "conf" / "base").glob("parameters*.yml"))
    for key, value in yaml.safe_load(path.read_text()).items()
}
DATASET = DatasetSettings.model_validate(PARAMETERS["dataset"])
SPLITS = SplitSettings.model_validate({**PARAMETERS["splits"], "folds": 2})
Draw = Callable[[st.SearchStrategy[Any]], Any]


def cases(number: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# Tables: what stands in the bytes.


def _cut(data: bytes, draw: Draw) -> bytes:
    return data[: draw(st.integers(0, len(data) - 1))]


def _flip(data: bytes, draw: Draw) -> bytes:
    changed = bytearray(data)
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=20)):
        changed[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def _insert(what: st.SearchStrategy[bytes]) -> Callable[[bytes, Draw], bytes]:
    def corrupt(data: bytes, draw: Draw) -> bytes:
        place = draw(st.integers(0, len(data)))
        return data[:place] + draw(what) + data[place:]

    return corrupt


def _lines(change: Callable[[list[bytes], Draw], list[bytes]]) -> Callable[[bytes, Draw], bytes]:
    return lambda data, draw: b"\n".join(change(data.split(b"\n"), draw))


def _line(lines: list[bytes], draw: Draw) -> int:
    return draw(st.integers(0, len(lines) - 2))


def _more_values(lines: list[bytes], draw: Draw) -> list[bytes]:
    at = _line(lines, draw)
    return [*lines[:at], lines[at] + b"\tmore" * draw(st.integers(1, 3)), *lines[at + 1 :]]


def _fewer_values(lines: list[bytes], draw: Draw) -> list[bytes]:
    at = _line(lines, draw)
    return [*lines[:at], lines[at].rsplit(b"\t", 1)[0], *lines[at + 1 :]]


def _heading(change: Callable[[list[bytes], int], list[bytes]]) -> Callable[[bytes, Draw], bytes]:
    def corrupt(lines: list[bytes], draw: Draw) -> list[bytes]:
        names = lines[0].split(b"\t")
        return [b"\t".join(change(names, draw(st.integers(0, len(names) - 1)))), *lines[1:]]

    return _lines(corrupt)


BYTES: dict[str, Callable[[bytes, Draw], bytes]] = {
    "cut off": _cut,
    "flipped bits": _flip,
    "empty": lambda data, draw: b"",
    "blank lines alone": lambda data, draw: b"\n" * draw(st.integers(1, 5)),
    "heading alone": lambda data, draw: data.split(b"\n")[0] + draw(st.sampled_from([b"", b"\n"])),
    "no heading": lambda data, draw: data.split(b"\n", 1)[1],
    "a null byte": _insert(st.just(b"\0")),
    "not UTF-8": _insert(st.sampled_from([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xfe\xff"])),
    "UTF-16": lambda data, draw: data.decode().encode(draw(st.sampled_from(["utf-16", "utf-16-le", "utf-16-be"]))),
    "stray quotes": _insert(st.sampled_from([b'"', b"'", b'""', b'"\t'])),
    "control characters": _insert(st.sampled_from([b"\x01", b"\x1f", b"\x7f", "\u2028".encode(), b"\x0c"])),
    "carriage returns": lambda data, draw: data.replace(b"\n", draw(st.sampled_from([b"\r", b"\r\n", b"\n\r"]))),
    "another delimiter": lambda data, draw: data.replace(b"\t", draw(st.sampled_from([b",", b";", b"|", b" ", b"::"]))),
    "rows with more values": _lines(_more_values),
    "rows with fewer values": _lines(_fewer_values),
    "a row twice": _lines(lambda lines, draw: [*lines[:-1], lines[max(_line(lines, draw), 1)], b""]),
    "a column without name": _heading(lambda names, at: [*names[:at], b"", *names[at + 1 :]]),
    "a column twice": _heading(lambda names, at: [*names[:at], names[at - 1], *names[at + 1 :]]),
    "a column missing": _heading(lambda names, at: [*names[:at], b"other", *names[at + 1 :]]),
    "a name of the project's own": _heading(lambda names, at: [*names[:at], b"(row)", *names[at + 1 :]]),
    "a long line": _insert(st.just(b"x" * 300_000)),
    "HTML": lambda data, draw: b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
    "a pointer to the file": lambda data, draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "packed": lambda data, draw: draw(st.sampled_from([gzip.compress, bz2.compress, lzma.compress]))(data),
}


def raw(folder: Path, content: bytes, name: str = "table.tsv", **options: Any) -> RawTable:
    path = folder / name
    path.write_bytes(content)
    return RawTable(filepath=str(path), **({"delimiter": "\t", "quote": ""} | options))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ibis.Table]:
    folder = tmp_path_factory.mktemp("sound")
    return {name: raw(folder, CONTENT[name], f"{name}.tsv").load() for name in TABLES}


class Checked(Exception):  # noqa: N818
    """All tables have passed their checks."""


def prepare(tables: dict[str, ibis.Table], dataset: DatasetSettings = DATASET) -> None:
    """Check the tables as ``kedro run`` does before it writes the first file, up to the numbers of users and items."""

    def stop(*_: Any) -> None:
        raise Checked

    with pytest.MonkeyPatch.context() as patch, suppress(Checked):
        patch.setattr(numbering, "number_tables", stop)
        nodes.validate_tables(
            nodes.standardise_interactions(tables["interactions"], dataset),
            nodes.standardise_users(tables["users"], dataset),
            nodes.standardise_items(tables["items"], tables["item_links"], tables["item_graph"], dataset),
            dataset,
            SPLITS,
        )


def refusal(do: Callable[[], object], *places: str) -> str | None:
    """Do it; return what it is refused with, which names one of the places, or None. All else fails the test."""
    raised: Exception | None = None
    try:
        do()
    except (StudyError, ValidationError, DatasetError) as error:
        raised = error
    if raised is None:
        return None
    found = raised if isinstance(raised, ValidationError) else find_study_error(raised)
    assert found is not None, f"no message of the project: {raised!r}"
    said = str(found)
    assert any(place in said for place in places), said
    assert isinstance(found, ValidationError) or "what to do" in said, said
    return said


@pytest.mark.parametrize("kind", BYTES)
def test_corrupted_files_of_tables(kind: str, tmp_path: Path, sound: dict[str, ibis.Table]) -> None:
    @cases(5)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(TABLES))
        dataset = raw(tmp_path, BYTES[kind](CONTENT[name], data.draw), f"{name}.tsv")
        loaded: list[ibis.Table] = []
        if refusal(lambda: loaded.append(dataset.load()), f"{name}.tsv") is None:
            assert loaded[0].count().execute() >= 0

    check()


VALUES = {
    "no number": ["good", "1,5", "0x1F", "1_000", "--1", "1e", "५", "½"],
    "not finite": ["inf", "-inf", "Infinity", "nan", "NaN", "1e400", "-1e999", "9" * 400],
    "out of range": ["0", "6", "-1", "1e300", "5.0000001"],
    "missing": ["", " ", "\u00a0", "\u200b"],
    "unknown": ["nobody", "1.0", "01", "1e0", "'; DROP TABLE users; --", "${oc.env:HOME}", "🙂" * 50],
    "very long": ["x" * 100_000],
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("column", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"])
def test_corrupted_values_of_interactions(kind: str, column: str, tmp_path: Path, sound: dict[str, ibis.Table]) -> None:
    @cases(1)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        table = pd.read_csv(io.BytesIO(CONTENT["interactions"]), sep="\t", dtype=str)
        rows = data.draw(st.sampled_from([[3], [0, 5], list(range(0, len(table), 2))]))
        table.loc[rows, column] = data.draw(st.sampled_from(VALUES[kind]))
        dataset = raw(tmp_path, table.to_csv(sep="\t", index=False).encode(), "interactions.tsv")
        said = refusal(lambda: prepare({**sound, "interactions": dataset.load()}), "raw_interactions")
        if kind in ("not finite", "no number") or (kind == "missing" and column != "rating:float"):
            assert said is not None
            assert column in said

    check()


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("users", "user_id:token"),
        ("users", "age:token"),
        ("items", "item_id:token"),
        ("items", "release_year:token"),
        ("items", "class:token_seq"),
        ("item_links", "entity_id:token"),
        ("item_graph", "relation_id:token"),
    ],
)
def test_corrupted_values_of_other_tables(name: str, column: str, tmp_path: Path, sound: dict[str, ibis.Table]) -> None:
    @cases(2)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        table = pd.read_csv(io.BytesIO(CONTENT[name]), sep="\t", dtype=str)
        value = data.draw(st.sampled_from([value for values in VALUES.values() for value in values]))
        table.loc[data.draw(st.sampled_from([[3], [0, 5]])), column] = value
        dataset = raw(tmp_path, table.to_csv(sep="\t", index=False).encode(), f"{name}.tsv")
        # Users or items that have lost their identifier are missed by the interactions.
        refusal(lambda: prepare({**sound, name: dataset.load()}), f"raw_{name}", "raw_interactions")

    check()


# Files in other formats, archives, and what is no file at all.


def _json(data: bytes) -> list[dict[str, str]]:
    return pd.read_csv(io.BytesIO(data), sep="\t", dtype=str).fillna("").head(20).to_dict("records")


NO_NUMBERS = ["NaN", "Infinity", "1e999", "-", "01"]
JSON: dict[str, Callable[[Draw], str]] = {
    "nested lists": lambda draw: '{"a": ' + "[" * (n := draw(st.sampled_from([101, 5_000, 10**6]))) + "]" * n + "}\n",
    "nested objects": lambda draw: '{"a": ' * (n := draw(st.sampled_from([101, 5_000, 10**5]))) + "1" + "}" * n,
    "open brackets": lambda draw: draw(st.sampled_from("[{")) * draw(st.sampled_from([1, 50, 10**6])),
    "scalars": lambda draw: "\n".join(draw(st.lists(st.sampled_from(["1", "null", '"x"', "true"]), min_size=1))),
    "empty objects": lambda draw: "{}\n" * draw(st.integers(1, 5)),
    "an empty key": lambda draw: '{"": 1, "a": 2}\n',
    "half a character": lambda draw: '{"a": "\\ud800"}\n',
    "numbers that are none": lambda draw: f'{{"a": {draw(st.sampled_from(NO_NUMBERS))}}}\n',
    "no JSON": lambda draw: draw(st.sampled_from(["{a: 1}", "{'a': 1}", '{"a": 1,}', "<a/>", '{"a"', '{"a": 1} x'])),
    "keys in two cases": lambda draw: '{"a": 1, "A": 2}\n',
}


@pytest.mark.parametrize("kind", JSON)
def test_corrupted_json(kind: str, tmp_path: Path) -> None:
    @cases(5)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        before = draw_lines(data.draw(st.integers(0, 2)))
        content = before + JSON[kind](data.draw)
        refusal(raw(tmp_path, content.encode(), "t.jsonl", file_format="json_lines").load, "t.jsonl")

    def draw_lines(number: int) -> str:
        return "".join(json.dumps(row) + "\n" for row in _json(CONTENT["users"])[:number])

    check()


def test_nested_json_is_refused_by_its_line(tmp_path: Path) -> None:
    deep = '{"a": "[[[\\\\"}\n{"a": "\\"[["}\n{"a": ' + "[" * 100 + "]" * 100 + "}\n"
    said = refusal(raw(tmp_path, deep.encode(), "t.jsonl", file_format="json_lines").load, "t.jsonl")
    assert said is not None
    assert "Line 3" in said
    texts = '{"a": "' + "[" * 500 + '"}\n' + '{"a": [[1]]}\n' * 200
    assert refusal(raw(tmp_path, texts.encode(), "u.jsonl", file_format="json_lines").load) is None


def test_corrupted_parquet(tmp_path: Path) -> None:
    path = tmp_path / "whole.parquet"
    pd.read_csv(io.BytesIO(CONTENT["users"]), sep="\t", dtype=str).to_parquet(path)
    whole = path.read_bytes()

    @cases(25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        change = data.draw(st.sampled_from([_cut, _flip, _insert(st.binary(min_size=1, max_size=30))]))
        refusal(raw(tmp_path, change(whole, data.draw), "t.parquet", file_format="parquet").load, "t.parquet")

    check()


def zipped(content: bytes, **entry: Any) -> bytes:
    info = zipfile.ZipInfo("t.tsv")
    info.compress_type = zipfile.ZIP_DEFLATED
    for name, value in entry.items():
        setattr(info, name, value)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, content)
    return file.getvalue()


def tarred(content: bytes, mode: str, **entry: Any) -> bytes:
    info = tarfile.TarInfo("t.tsv")
    info.size = len(content)
    for name, value in entry.items():
        setattr(info, name, value)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


ARCHIVES = {
    "t.zip": zipped(CONTENT["users"]),
    "t.tar": tarred(CONTENT["users"], "w"),
    "t.tar.gz": tarred(CONTENT["users"], "w:gz"),
    "t.tsv.gz": gzip.compress(CONTENT["users"]),
    "t.tsv.bz2": bz2.compress(CONTENT["users"]),
    "t.tsv.xz": lzma.compress(CONTENT["users"]),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_corrupted_archives(name: str, tmp_path: Path) -> None:
    assert refusal(raw(tmp_path, ARCHIVES[name], name).load) is None

    @cases(8)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        change = data.draw(st.sampled_from([_cut, _flip, _insert(st.binary(min_size=1, max_size=30))]))
        refusal(raw(tmp_path, change(ARCHIVES[name], data.draw), name).load, name)

    check()


BOMB = b"1\t2\n" * (20 * 2**20)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.zip", lambda: zipped(BOMB)),
        ("t.tar.gz", lambda: tarred(BOMB, "w:gz")),
        ("t.tsv.gz", lambda: gzip.compress(BOMB)),
    ],
)
def test_packed_files_have_limits(name: str, content: Callable[[], bytes], tmp_path: Path) -> None:
    said = refusal(raw(tmp_path, content(), name).load, name)
    assert said is not None
    assert "largest_ratio" in said
    small = raw(tmp_path, ARCHIVES[name], name, largest_unpacked_gb=1e-7)
    said = refusal(small.load, name)
    assert said is not None
    assert "largest_unpacked_gb" in said


@pytest.mark.parametrize("told", [None, OSError()])
@pytest.mark.parametrize("name", ["t.tar.gz", "t.tsv.gz"])
def test_a_packed_file_of_unknown_size_has_a_limit(
    name: str, told: OSError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(*_: Any) -> None:
        if told is not None:
            raise told

    monkeypatch.setattr(LocalFileSystem, "size", size)
    said = refusal(raw(tmp_path, ARCHIVES[name], name, largest_unpacked_gb=1e-7).load, name)
    assert said is not None
    assert "largest_unpacked_gb" in said
    assert refusal(raw(tmp_path, ARCHIVES[name], name).load, name) is None


def test_links_in_archives_are_not_followed(tmp_path: Path) -> None:
    link = zipped(b"/etc/passwd", external_attr=0o120777 << 16)
    said = refusal(raw(tmp_path, link, "t.zip").load, "t.zip")
    assert said is not None
    assert "0 members" in said
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        content = tarred(b"", "w", type=kind, linkname="/etc/passwd")
        assert refusal(raw(tmp_path, content, "t.tar", member="t.tsv").load, "t.tar") is not None


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tsv")
    for place in (tmp_path / "pipe.tsv", Path("/dev/zero"), Path("/dev/null")):
        said = refusal(RawTable(filepath=str(place)).load, str(place))
        assert said is not None
        assert "regular file" in said
    said = refusal(RawTable(filepath=str(tmp_path)).load, str(tmp_path))
    assert said is not None
    assert "folder" in said


OPTIONS: dict[str, list[Any]] = {
    "delimiter": ["", "\n", "\0", None, 5, "abcde", '"'],
    "quote": ["ab", "\n", None, True],
    "escape": ["xx", "\0"],
    "encoding": ["nope", "rot13", "hex", "idna", "undefined", "utf-16", "", None],
    "columns": [[], "ab", 5, ["a", "a"], [None], [True]],
    "skip_lines": [-1, 10**12, "x", True, 1.5],
    "rename": [{"z": "y"}, "x", {"user_id:token": ""}, {"user_id:token": "(row)"}],
    "missing_values": [[None], [True]],
    "unescape_html": ["maybe", 2],
    "unreadable": ["x", None],
    "file_format": ["x", "parquet", "json_lines", None],
    "member": ["x"],
    "files": [{"x": "nothere"}],
    "largest_unpacked_gb": [0, -1, float("nan"), float("inf"), "much"],
    "largest_ratio": [0, float("inf")],
    "connection": [{"backend": "nothing"}],
    "delimter": [","],
}


@pytest.mark.parametrize(("option", "value"), [(name, value) for name, values in OPTIONS.items() for value in values])
def test_bad_options_of_tables(option: str, value: Any, tmp_path: Path) -> None:
    try:
        table = raw(tmp_path, CONTENT["users"], "t.tsv", **{option: value})
    except (ValueError, TypeError) as error:
        said: str | None = str(error)  # Kedro adds the name of the table to it.
    else:
        said = refusal(table.load, "t.tsv", option)
    assert said is not None
    assert option in said or "t.tsv" in said


# YAML.


def _with(line: str) -> Callable[[str, Draw], bytes]:
    def corrupt(text: str, draw: Draw) -> bytes:
        lines = text.splitlines()
        at = draw(st.integers(1, len(lines)))
        return "\n".join([*lines[:at], line, *lines[at:]]).encode()

    return corrupt


YAML: dict[str, Callable[[str, Draw], bytes]] = {
    "a tab": _with("\tstudy: {seed: 1}"),
    "a key twice": lambda text, draw: (text + "\nstudy: {repeats: 1}\nstudy: {repeats: 2}\n").encode(),
    "a nested key twice": lambda text, draw: b"study:\n  seed: 1\n  repeats: 1\n  seed: 2\n",
    "a list at the top": lambda text, draw: b"- study\n- splits\n",
    "a value at the top": lambda text, draw: draw(st.sampled_from([b"hello\n", b"5\n", b"'study: 1'\n"])),
    "not UTF-8": lambda text, draw: text.encode() + b"\n# caf\xe9\n",
    "UTF-16": lambda text, draw: text.encode("utf-16"),
    "a null byte": lambda text, draw: text.encode() + b"\0",
    "an environment variable": lambda text, draw: b"dataset: {name: '${oc.env:HOME}'}\n",
    "an empty environment variable": lambda text, draw: b"dataset: {name: '${oc.env:}'}\n",
    "an unknown reference": lambda text, draw: b"dataset: {name: '${nothing.here}'}\n",
    "an unknown resolver": lambda text, draw: b"dataset: {name: '${nothing:here}'}\n",
    "an unknown global": lambda text, draw: b"dataset: {name: '${globals:nothing}'}\n",
    "half a reference": lambda text, draw: draw(
        st.sampled_from([b"dataset: {name: '${'}\n", b"dataset: {name: '${a'}\n"])
    ),
    "a reference to itself": lambda text, draw: b"dataset: {name: '${dataset.name}'}\n",
    "an unknown alias": _with("study: *nowhere"),
    "a tag of Python": lambda text, draw: b"study: !!python/object/apply:os.system ['true']\n",
    "an open bracket": _with("study: {seed: [1"),
    "an open quote": _with("study: {seed: 'x}"),
    "deep nesting": lambda text, draw: b"study: " + b"[" * (n := draw(st.sampled_from([60, 5000]))) + b"]" * n,
    "aliases of aliases": lambda text, draw: (
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, draw(st.integers(5, 9))))
    ).encode(),
    "a mapping as key": lambda text, draw: b"? {a: b}\n: c\n",
    "cut off": lambda text, draw: text.encode()[: draw(st.integers(0, len(text) - 1))],
    "no file but a folder": lambda text, draw: b"",
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("name", ["parameters", "catalog", "globals"])
def test_corrupted_yaml(kind: str, name: str, tmp_path: Path) -> None:
    texts = {
        "parameters": "study:\n  seed: 1\n  repeats: 1\ndataset:\n  name: tiny\n",
        "catalog": "raw_users:\n  type: MemoryDataset\nraw_items:\n  type: MemoryDataset\n",
        "globals": "folder: data\nother:\n  x: 1\n",
    }
    for env in ("base", "local"):
        (tmp_path / env).mkdir()
        for own, text in texts.items():
            (tmp_path / env / f"{own}.yml").write_text(text)
    path = tmp_path / "local" / f"{name}.yml"
    if kind == "no file but a folder":
        path.unlink()
        path.mkdir()

    @cases(3)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        if path.is_file():
            path.write_bytes(YAML[kind](texts[name], data.draw))

        def load() -> None:
            loader = StudyConfigLoader(str(tmp_path), base_env="base", default_run_env="local", env="local")
            for own in texts:
                dict(loader[own])

        said = refusal(load, path.name, name)
        if kind not in ("cut off", "aliases of aliases", "a null byte"):
            # In a catalog or among globals, what looks like parameters may be a name like any other.
            assert said is not None or (name != "parameters" and "reference" in kind) or name == "globals"

    check()


# Parameters: every value of the project's own YAML files, replaced by something else.

GROUPS: dict[str, tuple[type, Any]] = {
    "dataset": (DatasetSettings, PARAMETERS["dataset"]),
    "splits": (SplitSettings, PARAMETERS["splits"]),
    "study": (StudySettings, PARAMETERS["study"]),
    "evaluation": (EvaluationSettings, PARAMETERS["evaluation"]),
    "cross_validation": (CrossValidationSettings, PARAMETERS["cross_validation"]),
    "user_embedding": (UserEmbeddingParameters, PARAMETERS["user_embedding"]),
    "sweep": (SweepSettings, PARAMETERS["sweep"]),
    "simulation": (
        BookstoreSettings,
        yaml.safe_load((ROOT / "conf/bookstore/parameters.yml").read_text())["simulation"],
    ),
    **{
        f"models.{variant.block}": (variant.parameters, PARAMETERS["models"][variant.block])
        for variant in VARIANTS.values()
        if PARAMETERS["models"].get(variant.block)
    },
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(leaf for name, part in value.items() for leaf in leaves(part, (*path, name)))]
    if isinstance(value, list):
        return [path, *(leaf for place, part in enumerate(value) for leaf in leaves(part, (*path, place)))]
    return [path]


REPLACEMENTS: dict[str, list[Any]] = {
    "not a number": [float("nan")],
    "infinite": [float("inf"), float("-inf")],
    "huge": [10**30, 1e300, 10**400],
    "negative": [-1, -1e-9, -(10**30)],
    "zero": [0, 0.0],
    "yes and no": [True, False],
    "nothing": [None],
    "a text": ["", "x", "x" * 5000, "1e400", "\ud800", "${x}", "a\nb"],
    "a list": [[], [[]], [None], ["x"] * 1000],
    "a mapping": [{}, {"unknown": 1}, {1: 2}],
    "a name more": ["(more)"],
    "a name missing": ["(less)"],
    "a value twice": ["(twice)"],
}


def replace(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    tree = copy.deepcopy(tree)
    place = tree
    for name in path[:-1]:
        place = place[name]
    if value == "(less)":
        del place[path[-1]]
    elif value == "(more)" and isinstance(place, dict):
        place["unknown_name"] = 1
    elif value in ("(twice)", "(more)") and isinstance(place, list):
        place.append(copy.deepcopy(place[0]))
    else:
        place[path[-1]] = value
    return tree


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_corrupted_parameters(kind: str) -> None:
    @cases(30)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(sorted(GROUPS)))
        of, tree = GROUPS[group]
        path = data.draw(st.sampled_from([path for path in leaves(tree) if path]))
        value = data.draw(st.sampled_from(REPLACEMENTS[kind]))
        changed = replace(tree, path, value)
        names = [str(name) for name in path if isinstance(name, str)]
        said = refusal(lambda: of.model_validate(changed), *names, "unknown_name", "validation error")  # type: ignore[attr-defined]
        numbers_only = isinstance(value, float | int) and not isinstance(value, bool) and kind in ("infinite", "huge")
        if kind == "not a number" or (numbers_only and path[-1] not in ("minimum", "maximum")):
            assert said is not None, (group, path, value)

    check()


EXPRESSIONS = st.one_of(
    st.integers(1, 6000).map(lambda n: "rating > " + "9" * n),
    st.integers(1, 5000).map(lambda n: " or ".join(["rating > 1"] * n)),
    st.integers(1, 3000).map(lambda n: "not " * n + "(rating > 1)"),
    st.integers(1, 2000).map(lambda n: "(" * n + "rating" + ")" * n),
    st.integers(1, 2000).map(lambda n: "-" * n + "rating"),
    st.integers(1, 900).map(lambda n: "+".join(["rating"] * n)),
    st.text(st.sampled_from("rating><=!+-*/() 0123456789.e'\"`&|,[]{}~^%@:;\\\n\t#é🙂\0"), max_size=60),
    st.text(max_size=30),
)


def test_corrupted_label_expressions() -> None:
    table = ibis.memtable({"rating": [1.0, 4.0], "row": [0, 1], "user": [0, 1], "item": [0, 0]})
    from multitask_recommender.data.label_expressions import parse_label_expression

    @cases(60)
    @given(EXPRESSIONS)
    def check(text: str) -> None:
        def evaluate() -> None:
            expression = parse_label_expression(text, table, "dataset.tasks.like.label")
            table.select(value=expression.number()).execute()

        said = refusal(evaluate, "dataset.tasks.like.label")
        assert said is None or len(said) < 1200

    check()


def test_corrupted_patterns() -> None:
    @cases(40)
    @given(
        st.one_of(
            st.text(st.sampled_from("()[]{}?*+|\\^$.:<>=!PdwsbZ12,-xé\0"), max_size=25),
            st.sampled_from(["(?=x)(y)", "(?<!x)(y)", "(\\1)", "(?>a)", "(a++)", "(?P<n>x)", "(x", "x", "(a{1001})"]),
            st.integers(1, 1500).map(lambda n: "(" * n + ")" * n),
        )
    )
    def check(pattern: str) -> None:
        feature = {"kind": "category", "column": "c", "pattern": pattern}
        described = replace(PARAMETERS["dataset"], ("items", "features", "release_year"), feature)
        if refusal(lambda: DatasetSettings.model_validate(described), "pattern") is None:
            texts = ibis.memtable({"c": ["x1", "", None]})
            texts.select(found=texts.c.re_extract(pattern, 1)).execute()

    check()


def test_at_least_sixty_kinds_of_corruption() -> None:
    kinds = [BYTES, VALUES, JSON, ARCHIVES, OPTIONS, YAML, REPLACEMENTS]
    assert sum(map(len, kinds)) >= 60
