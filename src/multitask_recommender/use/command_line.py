"""The command line of a fitted model: recommend, similar, explain, predict, export."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask_recommender.foundation.errors import RequestError, StudyError

if TYPE_CHECKING:
    import pandas as pd

    from multitask_recommender.use.recommender import LoadedRecommender

VERBS = ("recommend", "similar", "explain", "predict", "export")

_EXAMPLES = {
    "recommend": """\
  multitask-recommender recommend --user 42
  multitask-recommender recommend --history 50:5,181:4,1:2 --context age=25,gender=F --task watch -n 5
  multitask-recommender recommend --users 42,43,44 --json
  multitask-recommender recommend --user 42 --history 313:5 --exclude 50 --model ease""",
    "similar": """\
  multitask-recommender similar 50
  multitask-recommender similar 50 --model ease --task like""",
    "explain": """\
  multitask-recommender explain 172 --user 42
  multitask-recommender explain 172 --history 50:5,181:4 --task rating""",
    "predict": """\
  multitask-recommender predict 50 181 --user 42
  multitask-recommender predict 50 181 --history 1:5,2:3
  multitask-recommender predict --pairs pairs.csv --json        (columns user_id and item_id)""",
    "export": """\
  multitask-recommender export vectors/ --model shared_bottom
  multitask-recommender export vectors/ --model shared_bottom --index --onnx""",
}
_HELP = {
    "recommend": "the best items for a user of the training, or for anybody with a history",
    "similar": "the items most like one",
    "explain": "what the features and the items of the history added to the score of an item",
    "predict": "what is predicted of pairs of users and items, per task",
    "export": "vectors of users and items for an index, and the way to them as ONNX",
}


def overview() -> str:
    """Return what the verbs are for."""
    lines = [f"  {verb:<12}{_HELP[verb]}" for verb in VERBS]
    return "\n".join(
        ["multitask-recommender VERB asks a fitted model; multitask-recommender VERB --help says how:", *lines]
    )


def main(arguments: Sequence[str]) -> int:
    """Answer one request.

    Args:
        arguments: The verb and its options.

    Returns:
        The exit code: 0, or 1 after an error, of which standard error says what is wrong.
    """
    asked = _parser().parse_args(arguments)
    try:
        print(_answer(asked))
        sys.stdout.flush()
    except StudyError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough; nothing more can be said, not even at the end of the process.
        sys.stdout = None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="multitask-recommender", description="Ask a fitted model.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    own = {
        name: verbs.add_parser(
            name,
            help=_HELP[name],
            description=f"Show {_HELP[name]}." if name != "export" else f"Write {_HELP[name]}.",
            epilog=f"examples:\n{_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name in VERBS
    }
    for name, verb in own.items():
        verb.add_argument("--data", default="data", help="folder of the outputs of a run (default: data)")
        verb.add_argument("--model", help="name of the model (default: wide_shared_bottom, or another that was run)")
        if name != "export":
            verb.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
        if name in ("recommend", "similar", "explain"):
            verb.add_argument("--task", help="name of the task (default: the first one)")
        if name in ("recommend", "similar"):
            verb.add_argument("-n", type=int, default=10, help="length of the list (default: 10)")
        if name in ("recommend", "explain", "predict"):
            verb.add_argument("--user", help="identifier of the user, as in the raw data")
            verb.add_argument(
                "--history",
                help="events, the earliest first: ITEM, ITEM:VALUE of the one signal, or ITEM:NAME=VALUE, divided by "
                "commas; or @FILE.csv with the columns item_id and signals",
            )
            verb.add_argument("--context", help="features of the user: NAME=VALUE, divided by commas")
            verb.add_argument("--ignore-unknown", action="store_true", help="leave out events on unknown items")
    own["recommend"].add_argument("--users", help="identifiers of many users, divided by commas")
    own["recommend"].add_argument(
        "--index-above", type=int, help="items above which lists are approximate (needs the extra 'ann')"
    )
    own["recommend"].add_argument("--candidates", help="items to choose from, divided by commas (default: all)")
    own["recommend"].add_argument("--exclude", default="", help="items to leave out, divided by commas")
    own["recommend"].add_argument("--include-known", action="store_true", help="also items of the history")
    own["similar"].add_argument("item", help="identifier of the item")
    own["explain"].add_argument("item", help="identifier of the item")
    own["predict"].add_argument("items", nargs="*", help="identifiers of items, for --user or --history")
    own["predict"].add_argument("--pairs", help="CSV file with the columns user_id and item_id")
    own["export"].add_argument("folder", help="folder to write to")
    own["export"].add_argument("--index", action="store_true", help="also an index per task (needs the extra 'ann')")
    own["export"].add_argument("--onnx", action="store_true", help="also user_vectors.onnx (needs the extra 'onnx')")
    return parser


def _answer(asked: argparse.Namespace) -> str:
    """Return what to print."""
    from multitask_recommender.use.recommender import UNKNOWN_ITEMS, load_recommender

    recommender = load_recommender(asked.data, asked.model, getattr(asked, "index_above", None))
    if asked.verb == "export":
        written = recommender.export(asked.folder)
        if asked.index:
            written += recommender.export_indexes(asked.folder)
        if asked.onnx:
            written.append(recommender.export_onnx(Path(asked.folder) / "user_vectors.onnx"))
        return "\n".join(f"wrote {path}" for path in written)
    table = _table(recommender, asked)
    ignored = table.attrs.get(UNKNOWN_ITEMS, 0)
    if ignored:
        print(f"{ignored} events on unknown items were left out", file=sys.stderr)
    if asked.json:
        return "\n".join(
            json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False)
            for row in table.to_dict("records")
        )
    table = table.assign(**{str(name): table[name].fillna("") for name in table if table[name].dtype == object})
    return table.to_string(index=False, na_rep="", float_format=lambda number: f"{number + 0.0:.4f}")


def _table(recommender: LoadedRecommender, asked: argparse.Namespace) -> pd.DataFrame:
    if asked.verb == "similar":
        return recommender.similar_items(asked.item, asked.task, asked.n)
    who: dict[str, Any] = {
        "user_id": asked.user,
        "history": None if asked.history is None else _history(asked.history),
        "context": None if asked.context is None else _context(asked.context),
        "unknown_items": "ignore" if asked.ignore_unknown else "refuse",
    }
    if asked.verb == "explain":
        return recommender.explain(asked.item, **who, task=asked.task)
    if asked.verb == "predict":
        if bool(asked.items) == (asked.pairs is not None):
            raise RequestError("Nothing is to be predicted, or two things.", "predict", "name items, or --pairs FILE.")
        return recommender.predict(_csv(asked.pairs) if asked.pairs is not None else asked.items, **who)
    return recommender.recommend(
        **who,
        user_ids=None if asked.users is None else _names(asked.users),
        task=asked.task,
        n=asked.n,
        candidates=None if asked.candidates is None else _names(asked.candidates),
        exclude=_names(asked.exclude),
        include_known=asked.include_known,
    )


def _plain(value: Any) -> Any:
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and number != number else number


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _history(text: str) -> Any:
    """Read ``ITEM:VALUE,ITEM:NAME=VALUE:NAME=VALUE,ITEM``; an identifier may hold colons itself."""
    if text.startswith("@"):
        return _csv(text[1:])
    events: list[Any] = []
    for event in _names(text):
        item, signals = event, {}
        while "=" in item.rpartition(":")[2] and ":" in item:
            item, _, pair = item.rpartition(":")
            name, _, value = pair.partition("=")
            signals[name] = value
        before, _, value = item.rpartition(":")
        if signals:
            events.append({"item_id": item, **signals})
        elif before and _is_number(value):
            events.append((before, float(value)))
        else:
            events.append(item)
    return events


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _context(text: str) -> dict[str, str]:
    result = {}
    for pair in _names(text):
        name, equals, value = pair.partition("=")
        if not equals:
            raise RequestError(f"'{pair}' is not NAME=VALUE.", "--context", "write it like age=25,gender=F.")
        result[name.strip()] = value.strip()
    return result


def _csv(path: str) -> pd.DataFrame:
    """Read a CSV file in which identifiers stay as they are."""
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise RequestError(f"The file cannot be read: {error}.", path, "name a CSV file with a heading.") from error
