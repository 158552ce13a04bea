"""Prints the chain that made an output of a run, down to the raw tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.runs.records import OutputRecord, Records

_SHOWN = 12


def find_record(records: Records, name: str) -> OutputRecord:
    """Return the record of an output by its name in the catalog, or by the name of its file.

    Raises:
        RequestError: If nothing of that name was recorded.
    """
    every = list(records.all())
    for record in every:
        if name == record.dataset:
            return record
        if record.file is not None and Path(name).resolve() == (records.folder / record.file).resolve():
            return record
    known = [record.dataset for record in every if "." not in record.dataset]
    raise RequestError(
        f"Nothing says what made '{name}'.",
        str(records.folder),
        f"name an output of a run, such as {', '.join(known)}" if known else "make a run: kedro run",
    )


def chain(records: Records, name: str, model: str | None = None) -> Iterator[str]:
    """Yield the lines that say what made an output, and what made its inputs, down to the raw tables.

    Args:
        records: The records of a folder.
        name: The output, see :func:`find_record`.
        model: Of the models' outputs, follow those of this model alone; None: of all.

    Raises:
        RequestError: If nothing of that name was recorded.
    """
    told: set[str] = set()

    def tell(record: OutputRecord, depth: int) -> Iterator[str]:
        made = record.made_from
        indent = "  " * depth
        if record.file is None:
            yield f"{indent}{record.dataset}  in memory"
        else:
            changed = "" if record.holds(records.folder / record.file) else "  (changed or gone since)"
            yield f"{indent}{record.dataset}  {record.file}  sha256 {record.sha256[:_SHOWN]}{changed}"
        if record.dataset in told:
            yield f"{indent}  as above"
            return
        told.add(record.dataset)
        if not made:
            yield f"{indent}  read in run {record.run}"
            return
        yield f"{indent}  made by {made['node']} in run {record.run}, code {made['code'][:_SHOWN]}"
        for parameter, value in made["parameters"].items():
            text = json.dumps(value)
            yield f"{indent}  {parameter} {text if len(text) <= 100 else text[:97] + '...'}"
        for own, key in made["inputs"].items():
            owner, _, kind = own.rpartition(".")
            if model is not None and owner not in ("", "user_embedding", model) and kind != "models":
                continue
            found = records.read(own)
            if found is None:
                yield f"{indent}  {own}  key {key[:_SHOWN]}"
            else:
                yield from tell(found, depth + 1)

    yield from tell(find_record(records, name), 0)


def main(arguments: list[str] | None = None) -> int:
    """Print the chain of an output; see the module."""
    parser = argparse.ArgumentParser(prog="provenance", description=__doc__)
    parser.add_argument("output", help="name in the catalog, such as metrics, or a file")
    parser.add_argument("--model", help="of the models, follow this one alone")
    parser.add_argument("--folder", type=Path, default=Path("data"), help="folder of the outputs (default: data)")
    asked = parser.parse_args(arguments)
    try:
        for line in chain(Records(asked.folder), asked.output, asked.model):
            print(line)
    except RequestError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
