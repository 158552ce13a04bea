"""The command line says the same as Python, and errors in one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import Project
from multitask_recommender.use.command_line import VERBS, _history, main
from multitask_recommender.use.recommender import LoadedRecommender


def lines(capsys: pytest.CaptureFixture[str], project: Project, *arguments: str) -> list[dict[str, object]]:
    assert main([*arguments, "--data", str(project.outputs), "--model", "shared_bottom", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_verbs_say_what_python_says(
    finished_project: Project, shared_bottom: LoadedRecommender, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("user_id,item_id\n42,1\n7,2\n")
    history, context = [("1", 5), {"item_id": "2", "rating": 2}, "10"], {"age": "30", "gender": "F"}
    newcomer = ("--history", "1:5,2:rating=2,10", "--context", "age=30,gender=F")
    told = {"history": history, "context": context}
    for arguments, expected in (
        (("recommend", "--user", "42", "-n", "3"), shared_bottom.recommend("42", n=3)),
        (("recommend", *newcomer, "--task", "like"), shared_bottom.recommend(**told, task="like")),
        (("recommend", "--users", "42, 7"), shared_bottom.recommend(user_ids=["42", "7"])),
        (
            ("recommend", "--user", "42", "--candidates", "1,2,3", "--exclude", "2", "--include-known"),
            shared_bottom.recommend("42", candidates="123", exclude="2", include_known=True),
        ),
        (("similar", "1", "-n", "4"), shared_bottom.similar_items("1", n=4)),
        (("explain", "5", *newcomer), shared_bottom.explain("5", **told)),
        (("predict", "5", "6", "--user", "42"), shared_bottom.predict(["5", "6"], user_id="42")),
        (("predict", "--pairs", str(pairs)), shared_bottom.predict(pd.read_csv(pairs, dtype=str))),
    ):
        found = pd.DataFrame(lines(capsys, finished_project, *arguments))
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-4)


def test_a_table_for_people(finished_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--user", "42", "--data", str(finished_project.outputs), "-n", "2"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["rank", "item_id", "title", "score"]
    assert len(rows) == 2


def test_a_history_from_a_file(finished_project: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "rated.csv").write_text("item_id,rating\n1,5\n2,\n")
    from_file = lines(capsys, finished_project, "recommend", "--history", f"@{tmp_path / 'rated.csv'}")
    assert from_file == lines(capsys, finished_project, "recommend", "--history", "1:5,2")


def test_forms_of_a_history() -> None:
    assert _history("50:5,a:b:2.5,c:d,9:rating=4:seconds=3") == [
        ("50", 5.0),
        ("a:b", 2.5),
        "c:d",
        {"item_id": "9", "seconds": "3", "rating": "4"},
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recommend", "--user", "nobody"], "no user 'nobody'"),
        (["recommend"], "Nobody is named"),
        (["recommend", "--user", "42", "--task", "buy"], "no task 'buy'"),
        (["recommend", "--user", "42", "--model", "ease"], "was not run"),
        (["recommend", "--history", "1:9"], "out of range"),
        (["recommend", "--history", "none"], "unknown item"),
        (["recommend", "--history", "@none.csv"], "cannot be read"),
        (["recommend", "--context", "age"], "NAME=VALUE"),
        (["similar", "none"], "no item 'none'"),
        (["explain", "none", "--user", "42"], "no item 'none'"),
        (["predict", "--user", "42"], "Nothing is to be predicted"),
        (["recommend", "--user", "42", "--data", "nowhere"], "no such folder"),
    ],
)
def test_errors_are_one_message(
    finished_project: Project, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    data = [] if "--data" in arguments else ["--data", str(finished_project.outputs)]
    assert main([*arguments, *data]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("Error: ")
    assert "Traceback" not in captured.err
    assert "what to do: " in captured.err


def test_ignored_items_are_counted(finished_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", "--history", "1:5,none", "--ignore-unknown", "--data", str(finished_project.outputs)]
    assert main(arguments) == 0
    assert "1 events on unknown items were left out" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"multitask-recommender {verb}" in capsys.readouterr().out


def test_export(finished_project: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["export", str(tmp_path / "out"), "--data", str(finished_project.outputs), "--model", "shared_bottom"]
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["items.parquet", "users.parquet"]


def test_the_module_answers_without_kedro_and_still_runs_kedro(finished_project: Project) -> None:
    program = (
        "import sys\n"
        "from multitask_recommender.__main__ import main\n"
        "try:\n    main()\nfinally:\n"
        "    print([name for name in ('kedro', 'ibis') if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "recommend", "--user", "nobody", "--data", str(finished_project.outputs)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "[]"
    result = subprocess.run(
        [sys.executable, "-m", "multitask_recommender", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "--pipelines" in result.stdout
    # What is asked of a fitted model comes first.
    assert all(f"\n  {verb} " in result.stdout[: result.stdout.index("--pipelines")] for verb in VERBS)
