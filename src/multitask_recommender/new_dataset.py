"""Writes a commented starting point for a new data set: ``python -m multitask_recommender.new_dataset NAME [FROM]``.

With ``FROM``, a folder, file or archive, the files there are looked at and the starting point describes them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from multitask_recommender.first_look import describe, look_at

_GLOBALS = """\
# Where the outputs lie.
folder: data/{name}
"""

_CATALOG = """\
# Where the raw files lie and how they are written. Every option: src/multitask_recommender/raw_tables.py
_file: &file
  type: multitask_recommender.raw_tables.RawTable
  file_format: csv    # or json_lines, parquet
  delimiter: ","      # "\\t" for TSV
  encoding: utf-8     # or latin-1, cp1252, utf-16, ...
  quote: '"'          # '' if values are never quoted
raw_interactions:
  <<: *file
  filepath: data/01_raw/{name}/interactions.csv
# Events that come after the study, for kedro run --pipelines recommend.
raw_new_interactions:
  <<: *file
  filepath: data/01_raw/{name}/new_interactions.csv
# A table that you do not have: delete its entry here and its block in parameters.yml.
raw_users:
  <<: *file
  filepath: data/01_raw/{name}/users.csv
raw_items:
  <<: *file
  filepath: data/01_raw/{name}/items.csv
"""

_PARAMETERS = """\
# Which column is what, and what to predict. Every option: docs/bring_your_own_data.md
dataset:
  name: {name}
  interactions:
    user_id: user_id
    item_id: item_id
    timestamp: timestamp                    # a number that grows with time; delete if there is none
    signals:
      rating: {{column: rating, minimum: 1, maximum: 5}}
  users:
    user_id: user_id
    features:
      age: {{kind: numeric, column: age, minimum: 5, maximum: 100}}
      city: {{kind: category, column: city}}
    activity: consumption_level             # a feature made of the number of interactions; delete if unwanted
  items:
    item_id: item_id
    title: title                            # shown in recommendations; delete if there is none
    features:
      author: {{kind: category, column: author}}
      genres: {{kind: categories, column: genres, separator: "|"}}
  tasks:                                    # at least one; labels are expressions over the signals
    read: {{kind: retrieval}}
    like: {{kind: binary, label: rating >= 4}}
    rating: {{kind: regression, label: rating, relevant: rating >= 4}}
splits:
  strategies: [random, chronological]       # also temporal and cold_items
study: {{core_only: true}}                  # false: also other architectures, encoders, losses, ablations
"""

_FILES = {"globals.yml": _GLOBALS, "catalog.yml": _CATALOG, "parameters.yml": _PARAMETERS}


def write_starting_point(name: str, project: Path, source: Path | None = None) -> list[Path]:
    """Write ``conf/<name>`` and make the folder for its raw files.

    Args:
        name: Name of the data set: letters, digits and underscores.
        project: Folder of the project.
        source: Folder, file or archive to look at for a first description; None for an example.

    Returns:
        The files written.

    Raises:
        ValueError: If the name is not such a name, or nothing below ``source`` can be interactions.
        FileExistsError: If ``conf/<name>`` exists; it is not touched.
        FileNotFoundError: If ``source`` does not exist.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"'{name}' is not a name of letters, digits and underscores: make new-dataset NAME=my_books")
    folder = project / "conf" / name
    if folder.exists():
        raise FileExistsError(f"{folder} exists; nothing was changed. Choose another name, or remove it first.")
    texts = {file: text.format(name=name) for file, text in _FILES.items()}
    if source is not None:
        texts["catalog.yml"], texts["parameters.yml"] = describe(*look_at(source), name, project)
    folder.mkdir(parents=True)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    if source is None:
        (project / "data" / "01_raw" / name).mkdir(parents=True, exist_ok=True)
    return [folder / file for file in texts]


def main() -> None:
    """Write the starting point that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m multitask_recommender.new_dataset",
        description="Write a commented starting point for a data set of your own into conf/NAME.",
        epilog="example: make new-dataset NAME=my_books FROM=path/to/files",
    )
    parser.add_argument("name", metavar="NAME", help="name of the data set: letters, digits and underscores")
    parser.add_argument("source", metavar="FROM", nargs="?", default="", help="folder of your files, to describe them")
    asked = parser.parse_args()
    name, source = asked.name, asked.source
    try:
        written = write_starting_point(name, Path.cwd(), Path(source) if source else None)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    print("\n".join(f"wrote {path}" for path in written))
    files = "Read the comments" if source else f"Put your files into data/01_raw/{name}"
    print(f"{files}, correct the three files above, then: kedro run --env {name} --pipelines data_engineering")


if __name__ == "__main__":
    main()
