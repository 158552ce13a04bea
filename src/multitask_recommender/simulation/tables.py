"""The simulated bookstore as raw tables: text columns, as a shop would export them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from multitask_recommender.simulation.bookstore import EDUCATION, GENRES, REGIONS, Bookstore, Ints

_COLUMNS = ("user_id", "book_id", "timestamp", "read", "rating", "purchase")


def _identifiers(letter: str, numbers: Ints | range) -> pa.Array:
    """Identifiers in whose alphabetical order the rows of the ground truth stand, such as ``u0000017``."""
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 7, "0")
    return pc.binary_join_element_wise(letter, text, "")


def _text(numbers: np.ndarray) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


@dataclass(frozen=True)
class InteractionTables:
    """The interactions of a bookstore as a sequence of tables, made anew at every iteration.

    Attributes:
        store: The bookstore.
    """

    store: Bookstore

    @property
    def schema(self) -> pa.Schema:
        """The columns of every table; the number of the visit is one where there may be several."""
        visit = ("visit",) if self.store.settings.most_visits > 1 else ()
        return pa.schema([(name, pa.string()) for name in (*_COLUMNS, *visit)])

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield tables with the columns of ``schema``, about ``chunk_rows`` rows at a time."""
        settings = self.store.settings
        users = _identifiers("u", range(settings.users))
        books = _identifiers("b", range(settings.books))
        for chunk in self.store.chunks():
            # A label that is missing is an empty cell.
            labels = {task: _text(np.nan_to_num(label, nan=-1).astype(np.int8)) for task, label in chunk.labels.items()}
            present = {task: pa.array(~np.isnan(label)) for task, label in chunk.labels.items()}
            columns = {
                "user_id": users.take(pa.array(chunk.user)),
                "book_id": books.take(pa.array(chunk.book)),
                "timestamp": _text(chunk.timestamp),
                "visit": _text(chunk.visit),
                **{task: pc.if_else(present[task], labels[task], None) for task in labels},
            }
            yield pa.table({name: columns[name] for name in self.schema.names}, schema=self.schema)


def user_table(store: Bookstore) -> pd.DataFrame:
    """Return the readers: user_id, age (null where missing), education, consumption_level, region; all text."""
    features = store.user_features
    age = pd.Series(features["age"]).astype("str")
    return pd.DataFrame(
        {
            "user_id": _identifiers("u", range(store.settings.users)).to_pandas(),
            "age": age.where(features["age"] >= 0, None),
            "education": EDUCATION[features["education"]],
            "consumption_level": features["consumption_level"].astype(str),
            "region": REGIONS[features["region"]],
        }
    )


def book_table(store: Bookstore) -> pd.DataFrame:
    """Return the books: book_id, title, author, publisher, translator, publication_date, pages, words, genre; all text.

    ``translator`` is null where a book is no translation; ``publication_date`` is year-month-day.
    """
    features = store.book_features
    identifiers = _identifiers("b", range(store.settings.books)).to_pandas()
    names = {
        name: (f"{name.capitalize()} " + pd.Series(features[name]).astype("str"))
        for name in ("author", "publisher", "translator")
    }
    date = np.datetime64("1950-01-01") + features["publication_date"].astype("timedelta64[D]")
    return pd.DataFrame(
        {
            "book_id": identifiers,
            "title": "Book " + identifiers.str.slice(1).str.lstrip("0").replace("", "0"),
            "author": names["author"],
            "publisher": names["publisher"],
            "translator": names["translator"].where(features["translator"] >= 0, None),
            "publication_date": np.datetime_as_string(date),
            "pages": features["pages"].astype(str),
            "words": features["words"].astype(str),
            "genre": GENRES[features["genre"]],
        }
    )
