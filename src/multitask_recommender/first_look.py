"""Looks at raw files and guesses what they are: the first description that ``make new-dataset FROM=...`` writes."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from kedro.io import DatasetError

from multitask_recommender.data import dates
from multitask_recommender.raw_tables import FAULT, FILE, ROW, RawTable

_SAMPLE = 1 << 20
_ROWS = 20_000
_TEXTS = {".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".user", ".item", ".base", ".log"}
_JSON = {".json", ".jsonl", ".ndjson"}
_PACKED = {".gz", ".bz2", ".xz"}
_DELIMITERS = ("::", "\t", ";", ",", "|")
_FORMS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%d %H:%M:%S%z",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m/%d/%Y %I:%M:%S %p",
    "%d-%b-%Y",
    "%a %b %d %H:%M:%S %z %Y",
)
_USER = re.compile(
    r"user|member|reviewer|customer|visitor|reader|listener|viewer|player|buyer|subscriber|student|session|client|account"
    r"|person|^uid$",
    re.I,
)
_ITEM = re.compile(
    r"item|movie|film|book|isbn|asin|product|video|track|song|artist|article|news|business|game|recipe|anime|restaurant"
    r"|course|hotel|venue|podcast|sku|^iid$",
    re.I,
)
_LOG = re.compile(r"rating|review|interaction|event|log|click|purchase|view|play|inter$", re.I)
_TIME = re.compile(r"time|date|(^|_)ts$|_at$|created", re.I)
_RATING = re.compile(r"rating|score|stars?$|overall|grade", re.I)
_EVENT = re.compile(r"event|action|behaviou?r|type|kind", re.I)
_TITLE = re.compile(r"title|name", re.I)
_LEAK = re.compile(r"rating|score|stars?$|review|popular|votes?$|average", re.I)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Column:
    """What the first rows of a file hold in one column.

    Attributes:
        name: Name in the file.
        texts: The values that are not missing: texts, or lists of texts.
        rows: Number of rows read.
    """

    name: str
    texts: pd.Series
    rows: int

    @cached_property
    def is_list(self) -> bool:
        """Whether the values are lists."""
        return len(self.texts) > 0 and not isinstance(self.texts.iloc[0], str)

    @cached_property
    def distinct(self) -> int:
        """Number of different values."""
        return int(self.texts.map(str).nunique())

    @cached_property
    def has_decimal_comma(self) -> bool:
        """Whether the values are numbers with a comma."""
        return not self.is_list and len(self.texts) > 0 and bool(self.texts.str.fullmatch(r"[+-]?\d+,\d+").all())

    @cached_property
    def numbers(self) -> pd.Series | None:
        """The values as numbers, or None where they are none."""
        if self.is_list or not len(self.texts):
            return None
        words = self.texts.str.lower().replace({"true": "1", "false": "0"})
        if self.has_decimal_comma:
            words = words.str.replace(",", ".")
        return words.astype(float) if words.map(lambda text: _NUMBER.fullmatch(text) is not None).all() else None

    @cached_property
    def is_flag(self) -> bool:
        """Whether all values are 0 or 1 and both occur."""
        return self.numbers is not None and set(self.numbers) == {0.0, 1.0}

    @cached_property
    def form(self) -> str | None:
        """The first known form of dates that all values have, or None."""
        if self.is_list or self.numbers is not None or not len(self.texts):
            return None
        text = ibis.memtable({"text": self.texts.head(200).tolist()}).text
        fitting = (
            form for form in _FORMS if dates.seconds(text, [form]).count().execute() == min(len(self.texts), 200)
        )
        return next(fitting, None)

    @cached_property
    def separator(self) -> str | None:
        """What divides several values in one text, or None."""
        if self.is_list or self.numbers is not None or self.form is not None:
            return None
        if self.texts.str.fullmatch(r"\[.*\]").all():
            return ","
        for separator in ("|", ";", ","):
            parts = self.texts.str.split(separator)
            several = parts.map(len) > 1
            names = {part.strip() for own in parts for part in own}
            if several.mean() >= 0.2 and len(names) < max(self.distinct, 5) and max(map(len, names)) <= 40:
                return separator
        return None


@dataclass(frozen=True)
class LookedAt:
    """A raw file, how to read it, and what its first rows hold.

    Attributes:
        path: Where the file or its archive lies.
        member: Name inside the archive, or None.
        options: The options of ``RawTable`` that read it, by name; each with the reason for it.
        columns: Its columns by name.
        whole: Whether all of its rows were looked at.
    """

    path: Path
    member: str | None
    options: dict[str, tuple[Any, str]]
    columns: dict[str, Column]
    whole: bool

    @property
    def stem(self) -> str:
        """Name of the file without its endings."""
        return Path(self.member or self.path.name).name.split(".")[0]

    def best(self, role: re.Pattern[str], without: re.Pattern[str] | None = None) -> str | None:
        """Name of the column that is most likely the identifier of users or items, or None."""

        def likely(name: str) -> int:
            bare = re.sub(r":.*", "", name)
            if not role.search(bare) or (without and without.search(bare)) or self.columns[name].is_list:
                return 0
            identifier = re.search(r"id$|isbn|asin|sku", bare, re.I) is not None
            return 1 + 2 * identifier + (re.fullmatch(r"(user|item)_?id", bare, re.I) is not None)

        return max((name for name in self.columns if likely(name)), key=likely, default=None)


def look_at(source: Path) -> tuple[list[LookedAt], list[str]]:
    """Look at every file under a folder (or at one file or archive).

    Returns:
        The files that can be read as tables, and a line about each that cannot.

    Raises:
        FileNotFoundError: If there is no such folder or file.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; nothing was written.")
    found, passed_over = [], []
    for path in sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]:
        for member, stream in _streams(path):
            name = Path(member or path.name)
            try:
                found.append(_look(path, member, name, stream))
            except (DatasetError, ValueError, OSError, pa.ArrowException) as error:
                why = str(error.__cause__ or error).splitlines()[0]
                passed_over.append(f"{path}{f' > {member}' if member else ''}: {why}")
    return found, passed_over


def _streams(path: Path) -> Iterator[tuple[str | None, IO[bytes]]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/") and not name.startswith("__MACOSX/"):
                    with archive.open(name) as member:
                        yield name, member
    elif re.search(r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2|txz)$", path.name):
        with tarfile.open(path) as packed:
            for entry in packed:
                opened = packed.extractfile(entry) if entry.isfile() else None
                if opened is not None and "._" not in entry.name:
                    yield entry.name, opened
    else:
        with fsspec.open(path.as_posix(), "rb", compression="infer") as file:
            yield None, file


def _look(path: Path, member: str | None, name: Path, stream: IO[bytes]) -> LookedAt:
    ending = next((own for own in reversed(name.suffixes) if own not in _PACKED), "").lower()
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample"
        options: dict[str, tuple[Any, str]]
        if ending == ".parquet":
            file = pq.ParquetFile(io.BytesIO(stream.read()))
            batch = next(file.iter_batches(_ROWS), None)
            if batch is None:
                raise ValueError("the file has no rows")
            pq.write_table(pa.Table.from_batches([batch]), sample)
            options, whole = {"file_format": ("parquet", "by its ending")}, file.metadata.num_rows <= _ROWS
        elif ending in _TEXTS | _JSON:
            text, encoding, whole = _sample_text(stream)
            options = {} if encoding[0] == "utf-8" else {"encoding": encoding}
            begin = text.lstrip()[:1]
            if begin in ("{", "["):
                options["file_format"] = ("json_lines", "an object a line" if begin == "{" else "an array of objects")
                if begin == "[" and not whole:
                    text = json.dumps(_first_objects(text))
            else:
                options |= _layout(text, re.sub(r"\W+", "_", name.name.split(".")[0]))
            sample.write_text(text, encoding=encoding[0])
        else:
            raise ValueError(f"files that end in '{ending}' are not looked at")
        table = RawTable(filepath=str(sample), **{key: value for key, (value, _) in options.items()}, unreadable="drop")
        frame = table.load().limit(_ROWS).execute()
    if len(frame) == 0:
        raise ValueError("the file has no rows")
    if frame[FAULT].notna().any():
        options["unreadable"] = ("drop", f"{frame[FAULT].notna().sum()} of the first rows do not fit the heading")
    frame = frame[frame[FAULT].isna()].drop(columns=[ROW, FILE, FAULT])
    columns = {str(key): Column(str(key), _present(own), len(frame)) for key, own in frame.items()}
    return LookedAt(path, member, options, columns, whole and len(frame) < _ROWS)


def _present(values: pd.Series) -> pd.Series:
    values = values.dropna()
    texts = values.map(lambda value: isinstance(value, str))
    return values[~texts | (values.map(str).str.strip() != "")].map(lambda v: v.strip() if isinstance(v, str) else v)


def _sample_text(stream: IO[bytes]) -> tuple[str, tuple[str, str], bool]:
    data = stream.read(_SAMPLE)
    whole = len(data) < _SAMPLE
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = ("utf-16", "it begins with the mark of UTF-16")
    else:
        try:
            # A character may be cut at the end of the sample.
            (data if whole else data[:-4]).decode("utf-8")
            encoding = ("utf-8", "")
        except UnicodeDecodeError as error:
            encoding = ("utf-8", "") if not whole and error.start > len(data) - 8 else ("cp1252", "it is no UTF-8")
    text = data.decode(encoding[0], errors="ignore" if not whole else "replace").removeprefix("\ufeff")
    return (text if whole else text[: text.rfind("\n") + 1]), encoding, whole


def _first_objects(text: str) -> list[Any]:
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    found: list[Any] = []
    while True:
        place = len(text) - len(text[place:].lstrip(" \t\r\n,"))
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            return found
        found.append(value)


def _layout(text: str, stem: str) -> dict[str, tuple[Any, str]]:
    """Delimiter, quote and heading of a text; ``stem`` begins the names of columns that have none."""
    options: dict[str, tuple[Any, str]] = {}
    lines = [line for line in text.splitlines()[:200] if line.strip()]
    if re.fullmatch(r'"?sep=."?', lines[0].strip(), re.I):
        lines = lines[1:]
    body = "\n".join(lines)

    def rows(delimiter: str) -> list[list[str]]:
        if len(delimiter) > 1:
            return [line.split(delimiter) for line in lines]
        return list(csv.reader(io.StringIO(body), delimiter=delimiter))

    def fit(delimiter: str) -> tuple[float, int]:
        width, count = Counter(map(len, rows(delimiter))).most_common(1)[0]
        return (count / len(lines) if width > 1 else 0.0), width

    delimiter = max(_DELIMITERS, key=fit)
    if fit(delimiter)[0] == 0.0:
        raise ValueError("no delimiter divides its lines into columns")
    table = rows(delimiter)
    if delimiter != ",":
        options["delimiter"] = (delimiter, "it divides the first lines into equally many values")
    mark = re.escape(delimiter)
    if '"' in text and not re.search(rf'(^|{mark})"[^"]*', body, re.M):
        options["quote"] = ("", "quotes stand inside values, and none encloses one")
    elif re.search(r'\\"', body):
        options["escape"] = ("\\", "a backslash stands before quotes")
    if any(_NUMBER.fullmatch(value.strip()) for value in table[0]):
        names = [f"{stem}_{place}" for place in range(1, len(table[0]) + 1)]
        options["columns"] = (names, "the first line holds numbers, so it is no heading: give the columns their names")
    else:
        names = [value.strip() for value in table[0]]
        seen: set[str] = set()
        changed = {}
        for name in names:
            if name.casefold() in seen:
                changed[name] = f"{name}_2"
            seen.add(name.casefold())
        if changed:
            options["rename"] = (changed, "these names differ from others in case alone")
    return options


def describe(found: list[LookedAt], passed_over: list[str], name: str, project: Path) -> tuple[str, str]:
    """Write a first catalog and a first description of looked-at files.

    Args:
        found: The files.
        passed_over: A line about each file that cannot be read as a table.
        name: Name of the data set.
        project: Folder of the project; paths below it are written from there.

    Returns:
        The texts of ``catalog.yml`` and ``parameters.yml``.

    Raises:
        ValueError: If no file has a column of users and one of items.
    """
    logs = [(own, pair) for own in found if (pair := _pair(own)) is not None]
    if not logs:
        looked = [f"  {own.path.name}: {', '.join(own.columns)}" for own in found]
        raise ValueError(
            "no file was found that has a column of users and one of items; nothing was written.\n"
            + "\n".join([*looked, *(f"  {line}" for line in passed_over)])
            + "\n  what to do: leave FROM out, and name the columns in parameters.yml as in the example it writes."
        )
    main, (user, item) = max(logs, key=lambda log: (max(own.rows for own in log[0].columns.values()), log[0].stem))
    options = _reading(main)
    parts = [
        own
        for own, pair in logs
        if pair == (user, item)
        and own.path.parent == main.path.parent
        and _reading(own) == options
        and (own.member is None) == (main.member is None)
    ]
    parts = parts if len(parts) > 1 and (main.member is None or len({own.path for own in parts}) == 1) else [main]
    users = _side(found, parts, user, _USER, _ITEM)
    items = _side(found, parts, item, _ITEM, _USER)
    other = [own for own in found if own not in parts and own not in [side[0] for side in (users, items) if side]]
    catalog = [
        "# Where the raw files lie and how they are written, guessed from their first rows: correct what is wrong.",
        "# Every option: docs/bring_your_own_data.md",
        *_entry("raw_interactions", parts, project),
        *(_entry("raw_users", [users[0]], project) if users else ["# No table of users was found."]),
        *(_entry("raw_items", [items[0]], project) if items else ["# No table of items was found."]),
        *(f"# Not used: {_place(own, project)} ({', '.join(own.columns)})" for own in other),
        *(f"# Not read: {line}" for line in passed_over),
    ]
    interactions, tasks, timed, labels = _interactions(parts, user, item)
    parameters = [
        "# Which column is what, and what to predict, guessed from the first rows of the files: correct what is wrong.",
        "# Every option: docs/bring_your_own_data.md",
        "dataset:",
        f"  name: {_yaml(name)}",
        *interactions,
        *(_side_block("users", *users, labels) if users else []),
        *(_side_block("items", *items, labels) if items else []),
        "  tasks:                                    # what to predict; labels are expressions over the signals",
        *tasks,
        "splits:",
        f"  strategies: [{'random, chronological' if timed else 'random'}]"
        + ("       # also temporal and cold_items" if timed else "       # also cold_items; the others need a time"),
        "study: {core_only: true}                  # false: also other architectures, encoders, losses, ablations",
    ]
    return "\n".join(catalog) + "\n", "\n".join(parameters) + "\n"


def _pair(own: LookedAt) -> tuple[str, str] | None:
    """The columns of users and items, if the file has both."""
    user, item = own.best(_USER), own.best(_ITEM, _USER)
    names = list(own.columns)
    if "columns" in own.options and len(names) >= 3:
        # Without a heading: by the name of the file, or since users and items both come again.
        again = [own.columns[name].distinct < own.columns[name].rows for name in names[:2]]
        if _LOG.search(own.stem) or all(again):
            return names[0], names[1]
    # A table of users or items has one row each.
    if user is None or item is None or user == item:
        return None
    return (
        None
        if own.columns[item].distinct == own.columns[item].rows > 50 and not _LOG.search(own.stem)
        else (user, item)
    )


def _side(
    found: list[LookedAt], parts: list[LookedAt], key: str, role: re.Pattern[str], not_role: re.Pattern[str]
) -> tuple[LookedAt, str] | None:
    """The table of users or items and its identifier: one row each, with the values of the interactions."""
    known = set(parts[0].columns[key].texts.map(str))
    best: tuple[float, LookedAt, str] | None = None
    for own in found:
        if own in parts or _pair(own) is not None:
            continue
        named = role.search(own.stem) is not None and not_role.search(own.stem) is None
        candidates = [key] if key in own.columns else [own.best(role)]
        candidates += [next(iter(own.columns))] if named else []
        for name in candidates:
            if name is None or own.columns[name].is_list or own.columns[name].distinct < 0.9 * own.columns[name].rows:
                continue
            shared = len(known & set(own.columns[name].texts)) / len(known)
            score = shared + (name == key) + named
            if (shared > 0.1 or name == key) and (best is None or score > best[0]):
                best = (score, own, name)
    return None if best is None else (best[1], best[2])


def _yaml(value: Any) -> str:
    """A value as YAML in one line, quoted wherever YAML might read something else."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml(key)}: {_yaml(own)}' for key, own in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and not re.fullmatch(
        r"y|n|yes|no|on|off|true|false|null|nan|inf", value, re.I
    )
    return value if plain else json.dumps(value, ensure_ascii=False)


def _place(own: LookedAt, project: Path) -> str:
    path = own.path.resolve()
    shown = path.relative_to(project.resolve()) if path.is_relative_to(project.resolve()) else path
    return shown.as_posix() + (f" > {own.member}" if own.member else "")


def _reading(own: LookedAt) -> dict[str, Any]:
    return {key: value for key, (value, _) in own.options.items() if key != "unreadable"}


def _line(indent: int, text: str, why: str = "") -> str:
    text = " " * indent + text
    return f"{text.ljust(42)}  # {why}" if why else text


def _entry(table: str, parts: list[LookedAt], project: Path) -> list[str]:
    first = parts[0]
    lines = [f"{table}:", "  type: multitask_recommender.raw_tables.RawTable"]
    place = _place(first, project).split(" > ")[0]
    if len(parts) == 1:
        lines += [_line(2, f"filepath: {_yaml(place)}", f"columns: {', '.join(first.columns)[:150]}")]
        lines += [_line(2, f"member: {_yaml(first.member)}")] if first.member else []
    else:
        lines += [_line(2, f"filepath: {_yaml(place if first.member else Path(place).parent.as_posix())}")]
        files = {own.stem: own.member or own.path.name for own in parts}
        lines += [_line(2, f"files: {_yaml(files)}", "they have the same columns of users and items")]
    options = {key: option for own in reversed(parts) for key, option in own.options.items()}
    return lines + [_line(2, f"{key}: {_yaml(value)}", why) for key, (value, why) in options.items()]


def _safe(name: str, taken: set[str]) -> str:
    """A name of a signal, feature or task that the project's own tables do not use."""
    plain = re.sub(r"\W+", "_", re.sub(r":.*", "", name)).strip("_").lower() or "column"
    if plain in {*_TAKEN, *taken} or plain.startswith("raw_") or plain[0].isdigit():
        plain = f"{plain}_value" if not plain[0].isdigit() else f"n{plain}"
    taken.add(plain)
    return plain


_TAKEN = {
    "self",
    "row",
    "user",
    "item",
    "user_id",
    "item_id",
    "timestamp",
    "event",
    "fault",
    "file",
    "title",
    "split",
    "part",
    "fold",
    "position",
    "and",
    "or",
    "not",
    "true",
    "false",
    "key",
    "occurrence",
    "count",
    "interact",
    "like",
}


def _interactions(parts: list[LookedAt], user: str, item: str) -> tuple[list[str], list[str], bool, set[str]]:
    """The block ``interactions``, the block ``tasks``, whether there is a time, and the columns that hold labels."""
    first = parts[0]
    rest = {name: own for part in reversed(parts) for name, own in part.columns.items() if name not in (user, item)}
    guessed = "columns" in first.options
    lines = [
        "  interactions:",
        _line(4, f"user_id: {_yaml(user)}", "the first column, by its place" if guessed else "by its name"),
        _line(4, f"item_id: {_yaml(item)}", "the second column, by its place" if guessed else "by its name"),
    ]
    for key, name in (("user_id", user), ("item_id", item)):
        if first.columns[name].texts.astype(str).str.fullmatch(r"\d+\.0+").all():
            lines.append(_line(4, f"{key}_integer: true", "identifiers such as 9.0 are read as 9"))
    time = next((name for name, own in rest.items() if _is_time(own, guessed)), None)
    if time is not None:
        own = rest.pop(time)
        lines.append(_line(4, f"timestamp: {_yaml(time)}", "dates" if own.form else "numbers that grow with time"))
        if own.form:
            lines.append(_line(4, f"timestamp_formats: [{json.dumps(own.form)}]", f"such as {own.texts.iloc[0]}"))
    else:
        lines.append("    # No time was found: the rows are taken to be in order of time.")
    taken: set[str] = set()
    tasks = [_line(4, "interact: {kind: retrieval}", "every row is a positive")]
    behaviours = len(parts) > 1 and any(set(part.columns) != set(first.columns) for part in parts)
    behaviours = behaviours or (len(parts) > 1 and time is None)
    events = next((own for name, own in rest.items() if _is_event(own)), None) if len(parts) == 1 else None
    if behaviours or events is not None:
        column = "(file)" if events is None else events.name
        values = [own.stem for own in parts] if events is None else sorted(events.texts.unique())
        kinds = {_safe(value, taken): value for value in values}
        lines.append("    events:")
        why = "every file is a kind of event" if events is None else "a few words that repeat"
        lines += [
            _line(6, f"column: {_yaml(column)}", why),
            _line(6, f"kinds: {_yaml(kinds)}", "name of the signal: value"),
        ]
        if events is not None:
            rest.pop(events.name)
            lines += [_line(6, "others: refuse", "drop: leave out kinds that are not named")]
        names = list(kinds)
        tasks = [
            _line(
                4,
                f"{name}: {{kind: retrieval, label: {name} > 0}}",
                "add after: ... for a step of a funnel" * (not place),
            )
            for place, name in enumerate(names)
        ]
    whole = all(part.whole for part in parts)
    signals = []
    for name, own in rest.items():
        if own.numbers is None or own.distinct < 2 or own.name.lower().endswith("id"):
            signals.append(_line(6, f"# {_yaml(name)} is not used", "no number, or always the same"))
            continue
        signal = _safe(name, taken)
        options: dict[str, Any] = {"column": name}
        rating = _RATING.search(name) is not None or (guessed and own.distinct <= 20)
        if own.is_flag or rating:
            options |= {"minimum": float(own.numbers.min()), "maximum": float(own.numbers.max())}
        why = "the range of all rows" if whole else "the range of the first rows: widen it if others are refused"
        if rating and (own.numbers == 0).mean() > 0.2:
            why += "; where 0 means that no score was given, add missing_values: [0]"
        if len(own.texts) < own.rows:
            options["optional"] = True
        inside = [part.stem for part in parts if name in part.columns]
        if behaviours and len(inside) > 1:
            options["files"] = inside
        signals.append(_line(6, f"{signal}: {_yaml(options)}", why if "minimum" in options else "a number"))
        tasks += _tasks(signal, own, rating)
    if signals:
        used = [line for line in signals if not line.lstrip().startswith("#")]
        lines += ["    signals:" if used else "    # Columns that are no signals:", *signals]
    if any(own.has_decimal_comma for own in rest.values()):
        lines.append(_line(4, 'decimal: ","', "numbers such as 3,5"))
    if not behaviours and events is None and first.columns[user].rows == len(first.columns[user].texts):
        pairs = pd.DataFrame({"user": first.columns[user].texts.map(str), "item": first.columns[item].texts.map(str)})
        repeated = int(pairs.duplicated().sum())
        if repeated:
            why = f"{repeated} of the first rows repeat a pair; or first, maximum, minimum, sum, mean, count"
            lines.append(_line(4, "duplicates: last", why))
    lines.append("    # unknown_users: keep                     # or drop: users who are not in the table of users")
    lines.append("    # unknown_items: keep                     # or drop: items that are not in the table of items")
    return lines, tasks, time is not None, {*rest, *([events.name] if events is not None else [])}


def _is_time(own: Column, guessed: bool) -> bool:
    if own.form is not None:
        return True
    if own.numbers is None or own.distinct < 2:
        return False
    return bool(own.numbers.min() >= 1e8) and (guessed or _TIME.search(own.name) is not None)


def _is_event(own: Column) -> bool:
    return not own.is_list and own.numbers is None and 2 <= own.distinct <= 12 and _EVENT.search(own.name) is not None


def _tasks(signal: str, own: Column, rating: bool) -> list[str]:
    assert own.numbers is not None
    low, high = float(own.numbers.min()), float(own.numbers.max())
    if own.is_flag:
        return [_line(4, f"{signal}: {{kind: binary, label: {signal} > 0}}", "yes or no")]
    if rating:
        like = next(step for step in sorted(set(own.numbers)) if step >= low + 0.7 * (high - low))
        name = "like" if signal in ("rating", "score") else f"like_{signal}"
        why = "the upper end of the range: choose what counts as liked"
        return [
            _line(4, f"{name}: {{kind: binary, label: {signal} >= {like:g}}}", why),
            _line(4, f"{signal}: {{kind: regression, label: {signal}, relevant: {signal} >= {like:g}}}"),
        ]
    middle = float(own.numbers.median())
    over = f"{signal} > {middle:g}" if middle < high else f"{signal} >= {high:g}"
    label = f"log1p({signal})" if low >= 0 else signal
    why = "a number: predict it, or remove the line"
    return [_line(4, f"# {signal}: {{kind: regression, label: {label}, relevant: {over}}}", why)]


def _side_block(side: str, own: LookedAt, key: str, labels: set[str]) -> list[str]:
    """The block ``users`` or ``items``; ``labels`` are columns of the interactions that are to be predicted."""
    name = "user_id" if side == "users" else "item_id"
    lines = [f"  {side}:", _line(4, f"{name}: {_yaml(key)}", "one row each, with identifiers of the interactions")]
    if own.columns[key].texts.astype(str).str.fullmatch(r"\d+\.0+").all():
        lines.append(_line(4, "id_integer: true", "identifiers such as 9.0 are read as 9"))
    rest = [column for column in own.columns.values() if column.name != key]
    taken: set[str] = set()
    if side == "items":
        texts = [column for column in rest if not column.is_list and column.numbers is None and column.form is None]
        title = next((column for column in texts if _TITLE.search(column.name)), None)
        if title is not None:
            lines.append(_line(4, f"title: {_yaml(title.name)}", "shown in recommendations"))
    flags = [column.name for column in rest if column.is_flag and column.name not in labels]
    features = []
    if len(flags) >= 3:
        rest = [column for column in rest if column.name not in flags]
        options = {"kind": "categories", "columns": flags}
        features.append(_line(6, f"{_safe('flags', taken)}: {_yaml(options)}", "columns of 0 and 1"))
    for column in rest:
        options, why = _feature(column, side)
        text = (
            f"{_safe(column.name, taken)}: {_yaml({'kind': options['kind'], 'column': column.name, **options})}"
            if options
            else ""
        )
        if options and column.name not in labels and not (side == "items" and _LEAK.search(column.name)):
            features.append(_line(6, text, why))
        elif options:
            features.append(_line(6, f"# {text}", "may hold what is to be predicted: use it if it does not"))
        else:
            features.append(_line(6, f"# {_yaml(column.name)} is not used", why))
    if any(not line.lstrip().startswith("#") for line in features):
        lines += ["    features:", *features]
    else:
        lines += features
    if any(column.has_decimal_comma for column in rest):
        lines.append(_line(4, 'decimal: ","', "numbers such as 3,5"))
    if own.columns[key].distinct < len(own.columns[key].texts):
        lines.append(_line(4, "duplicates: last", "identifiers that repeat; or first"))
    if side == "users":
        lines.append(_line(4, "activity: consumption_level", "made of the number of interactions; delete if unwanted"))
    return lines


def _feature(column: Column, side: str) -> tuple[dict[str, Any], str]:
    """Options of the feature that a column can be, without the column; none if it can be none; and why."""
    if column.distinct < 2:
        return {}, "it holds one value or none"
    if column.is_list:
        return {"kind": "categories"}, "lists of values"
    if column.numbers is not None:
        if column.distinct > 12:
            return {"kind": "numeric"}, "numbers"
        return {"kind": "category"}, f"{column.distinct} different numbers"
    if column.form is not None:
        return {"kind": "date", "formats": [column.form]}, f"dates such as {column.texts.iloc[0]}"
    if column.texts.str.contains("://").mean() > 0.5:
        return {}, "addresses"
    if column.separator is not None:
        return {
            "kind": "categories",
            "separator": column.separator,
        }, f"several values, such as {column.texts.iloc[0]!r}"[:80]
    if column.distinct <= 0.5 * len(column.texts) or column.distinct <= 12:
        return {"kind": "category"}, f"{column.distinct} different texts"
    if column.texts.str.count(" ").mean() >= 1:
        return {"kind": "text", "hash_columns": 512}, "words"
    return {}, "nearly every value is another one"
