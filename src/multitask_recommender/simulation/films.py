"""A small simulated store of films: readers of the same taste watch alike and rate alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

_GENRES = np.array(["Action", "Comedy", "Drama", "Thriller"])
_OCCUPATIONS = np.array(["engineer", "librarian", "student"])


def simulate_study(
    users: int, items: int, rows_per_user: int, relatedness: float, seed: int
) -> dict[str, pd.DataFrame]:
    """Simulate raw tables in the layout of MovieLens-100k with an item graph.

    Who watches what follows popularity and taste, <p_u, q_i>; the rating follows <r_u, q_i> with
    r_u = relatedness p_u + sqrt(1 - relatedness^2) times another vector, biases and noise. Genre and director depend on
    the item's vector, so features carry a signal. Some ages, years and directors are missing.

    Args:
        users: Number of users.
        items: Number of items.
        rows_per_user: Mean number of interactions of a user; at most all items.
        relatedness: From 0 (ratings say nothing about watching) to 1.
        seed: Seed of everything random.

    Returns:
        Tables interactions, users, items, item_links and item_graph; all columns are text.
    """
    random = np.random.default_rng(seed)
    taste, vector = random.normal(size=(users, 4)), random.normal(size=(items, 4))
    rating_taste = relatedness * taste + np.sqrt(1 - relatedness**2) * random.normal(size=(users, 4))
    popularity = random.normal(size=items)
    utility = popularity + taste @ vector.T + random.gumbel(size=(users, items))
    counts = np.clip(random.poisson(rows_per_user, users), 5, items)
    place = np.argsort(np.argsort(-utility, axis=1), axis=1)
    user, item = np.nonzero(place < counts[:, None])
    score = (
        3.4
        + random.normal(0, 0.4, users)[user]
        + random.normal(0, 0.4, items)[item]
        + 0.5 * np.einsum("nk,nk->n", rating_taste[user], vector[item])
        + random.normal(0, 0.5, len(user))
    )
    shuffled = random.permutation(len(user))
    interactions = pd.DataFrame(
        {
            "user_id:token": user[shuffled] + 1,
            "item_id:token": item[shuffled] + 1,
            "rating:float": np.clip(np.rint(score[shuffled]), 1, 5).astype(int),
            "timestamp:float": 880_000_000 + random.integers(0, 10_000_000, len(user)),
        }
    )
    age = random.integers(15, 70, users).astype(str)
    age[::17] = ""
    user_table = pd.DataFrame(
        {
            "user_id:token": np.arange(1, users + 1),
            "age:token": age,
            "gender:token": np.where(taste[:, 0] > 0, "F", "M"),
            "occupation:token": random.choice(_OCCUPATIONS, users),
            "zip_code:token": random.integers(10_000, 99_999, users),
        }
    )
    genre = np.abs(vector).argmax(axis=1)
    year = random.integers(1960, 1999, items).astype(str)
    year[::13] = ""
    second = random.choice(_GENRES, items)
    item_table = pd.DataFrame(
        {
            "item_id:token": np.arange(1, items + 1),
            "movie_title:token_seq": [f"Film {number}" for number in range(1, items + 1)],
            "release_year:token": year,
            "class:token_seq": [f"{a} {b}" for a, b in zip(_GENRES[genre], second, strict=True)],
        }
    )
    links = pd.DataFrame(
        {
            "item_id:token": np.arange(1, items + 1),
            "entity_id:token": [f"f.{n}" for n in range(1, items + 1)],
        }
    )
    relations = {
        "film.film.directed_by": genre * 2 + (vector[:, 0] > 0),
        "film.film.written_by": random.integers(0, 12, items),
        "film.film.production_companies": genre,
        "film.film.language": random.integers(0, 2, items),
    }
    edges = [
        (f"f.{number + 1}", relation, f"{relation.rsplit('.', 1)[1]}.{value}")
        for relation, values in relations.items()
        for number, value in enumerate(values)
        if number % 11
    ]
    graph = pd.DataFrame(edges, columns=["head_id:token", "relation_id:token", "tail_id:token"])
    tables = {
        "interactions": interactions,
        "users": user_table,
        "items": item_table,
        "item_links": links,
        "item_graph": graph,
    }
    return {name: table.astype(str) for name, table in tables.items()}
