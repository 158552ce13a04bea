"""What the map of the study shows, level by level: boxes, and the data sets that cross their borders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro_viz.constants import ROOT_MODULAR_PIPELINE_ID
from kedro_viz.data_access.repositories.modular_pipelines import ModularPipelinesRepository
from kedro_viz.models.flowchart.model_utils import GraphNodeType
from kedro_viz.models.flowchart.nodes import ModularPipelineNode
from kedro_viz.utils import _hash, _hash_input_output

from conftest import Project
from multitask_recommender.datasets import Bundle, StreamedOutput
from multitask_recommender.hooks import UnreadParts
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipeline_registry import register_pipelines
from multitask_recommender.pipelines.bundles import bundle

STUDY = ["data_engineering", "user_embedding", "recommender", "evaluation"]


@pytest.fixture(scope="module")
def study() -> Pipeline:
    return register_pipelines()["__default__"]


class Level(NamedTuple):
    """Elements that the viewer shows inside a box: boxes, nodes, data sets."""

    boxes: set[str]
    nodes: set[str]
    datasets: set[str]


@pytest.fixture(scope="module")
def levels(study: Pipeline) -> dict[str, Level]:
    """What stands inside every box, as the viewer finds it."""
    tree = ModularPipelinesRepository()
    tree.populate_tree(study)
    names = {_hash(str(node)): node.name for node in study.nodes}
    names |= {_hash_input_output(name): name for name in study.datasets()}

    def inside(box: ModularPipelineNode) -> Level:
        kinds = (GraphNodeType.MODULAR_PIPELINE, GraphNodeType.TASK, GraphNodeType.DATA)
        return Level(*({names.get(own.id, own.id) for own in box.children if own.type == kind} for kind in kinds))

    return {name: inside(box) for name, box in tree.as_dict().items()}


def crossing(pipeline: Pipeline, boxes: list[str]) -> set[str]:
    """Data sets that one of the boxes makes and another one reads."""
    parts = {box: pipeline.only_nodes_with_namespaces([box]) for box in boxes}
    return {
        name
        for box, own in parts.items()
        for other, theirs in parts.items()
        if box != other
        for name in own.all_outputs() & theirs.inputs()
    }


def test_the_map_opens_with_the_four_pipelines(levels: dict[str, Level], study: Pipeline) -> None:
    top = levels[ROOT_MODULAR_PIPELINE_ID]
    assert set(STUDY) <= top.boxes
    assert len(top.boxes) <= 8
    assert top.nodes == set()
    assert len(crossing(study, STUDY)) <= 10
    # Beside what crosses borders there are the raw tables, and few results that nothing reads.
    others = {name for name in top.datasets if not name.startswith("raw_")} - crossing(study, STUDY)
    assert len(others) <= 3


def test_the_recommender_opens_into_families_and_these_into_models(levels: dict[str, Level]) -> None:
    families = {f"recommender.{variant.family}" for variant in VARIANTS.values()}
    inside = levels["recommender"]
    assert inside.boxes == families
    assert len(families) <= 8
    for family in families:
        own = {variant.namespace for variant in VARIANTS.values() if variant.namespace.startswith(f"{family}.")}
        assert levels[family].boxes == own
        assert own
    boxes = {"baseline": "baselines", "single_task": "single_task", "multi_task": "multi_task", "ablation": "ablations"}
    for name, variant in VARIANTS.items():
        assert variant.namespace == f"recommender.{boxes[variant.kind]}.{name}"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_opens_into_its_steps_and_hands_over_one_bundle(study: Pipeline, name: str) -> None:
    variant = VARIANTS[name]
    own = study.only_nodes_with_namespaces([variant.namespace])
    choose = "tune" if variant.based_on is None else "derive"
    steps = [choose, "fit", "predict", *(["recommend"] if variant.recommends else []), "hand_over"]
    assert {node.short_name for node in own.nodes} == set(steps)
    read_elsewhere = own.all_outputs() & (study - own).inputs()
    assert own.outputs() | read_elsewhere <= {f"{name}.outputs", f"{name}.chosen_settings"}
    if not any(name in (other.based_on, other.own_control) for other in VARIANTS.values()) and name != "shared_bottom":
        assert read_elsewhere == {f"{name}.outputs"}


def test_a_box_is_entered_once(study: Pipeline) -> None:
    """A box can be run by itself: no path leaves it and comes back."""
    for box in {prefix for node in study.nodes for prefix in node.namespace_prefixes}:
        own = study.only_nodes_with_namespaces([box])
        after = study.from_nodes(*(node.name for node in own.nodes)) - own
        assert not after.all_outputs() & own.inputs(), box


def test_every_step_is_described(study: Pipeline) -> None:
    def described(node: Node) -> str:
        preview = node.preview()
        assert preview is not None
        return str(preview.content)

    assert [node.name for node in study.nodes if described(node) in ("", node.name)] == []


def test_every_element_has_a_layer(finished_project: Project, study: Pipeline) -> None:
    bootstrap_project(finished_project.folder)
    with KedroSession.create(project_path=finished_project.folder, env="test") as session:
        catalog = session.load_context().catalog
        for name in sorted(study.datasets()):
            if not name.startswith("params:"):
                metadata = getattr(catalog.get(name), "metadata", None) or {}
                assert metadata.get("kedro-viz", {}).get("layer"), name


def test_bundles_of_a_run_lead_to_every_output(finished_project: Project) -> None:
    bootstrap_project(finished_project.folder)
    with KedroSession.create(project_path=finished_project.folder, env="test") as session:
        catalog = session.load_context().catalog
        outputs = catalog.load("model_outputs")
        assert set(outputs) == set(VARIANTS)
        for part in ("predictions", "recommendations", "cv_results", "fit_costs"):
            direct, bundled = catalog.load(f"shared_bottom.{part}"), outputs["shared_bottom"][part]
            assert direct.equals(bundled) if isinstance(direct, pd.DataFrame) else direct == bundled
        assert catalog.load("training_data")["users"].count().execute() == 100
        assert catalog.load("results")["accuracy_figure"].png.startswith(b"\x89PNG")


def csv(path: Path) -> dict[str, object]:
    return {"type": "multitask_recommender.datasets.CsvTable", "filepath": path.as_posix()}


def test_a_bundle_reads_its_parts_when_asked(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"a\n{name}\n")
    bundle = Bundle(
        (tmp_path / "new" / "both.json").as_posix(),
        parts={name: csv(tmp_path / f"{name}.csv") for name in ("one", "two", "three")},
    )
    bundle.save({"one": None, "two": None})
    assert json.loads((tmp_path / "new" / "both.json").read_text()) == ["one", "two"]
    (tmp_path / "one.csv").unlink()  # Nobody asks for it.
    loaded = bundle.load()
    assert list(loaded) == ["one", "two"]
    assert "three" not in loaded
    assert loaded["two"]["a"].tolist() == ["two"]
    with pytest.raises(KeyError):
        loaded["three"]


def test_a_bundle_of_bundles_names_its_parts(tmp_path: Path) -> None:
    parts = {"table": csv(tmp_path / "{model}" / "table.csv")}
    each = {"type": "multitask_recommender.datasets.Bundle", "filepath": f"{tmp_path}/{{model}}.json", "parts": parts}
    for model in ("ease", "mmoe"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "table.csv").write_text(f"a\n{model}\n")
        own = {"table": csv(tmp_path / model / "table.csv")}
        Bundle((tmp_path / f"{model}.json").as_posix(), parts=own).save({"table": None})
    models = Bundle((tmp_path / "models.json").as_posix(), each=each)
    models.save({"ease": {}, "mmoe": {}})
    assert {name: outputs["table"]["a"].tolist() for name, outputs in models.load().items()} == {
        "ease": ["ease"],
        "mmoe": ["mmoe"],
    }


def test_what_is_only_handed_over_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = pa.table({"item": [1, 2, 3]})
    read: list[int] = []
    load = StreamedOutput.load

    def noted(self: StreamedOutput) -> pd.DataFrame:
        found = load(self)
        read.append(len(found))
        return found

    monkeypatch.setattr(StreamedOutput, "load", noted)
    outputs = tmp_path / "outputs.json"
    datasets = {"lists": StreamedOutput(filepath=str(tmp_path / "lists.parquet")), "outputs": Bundle(str(outputs))}
    catalog, hooks = DataCatalog(datasets), _create_hook_manager()
    hooks.register(UnreadParts())
    steps = [
        Node(lambda: lists, None, "lists", name="make"),
        Node(bundle, {"lists": "lists"}, "outputs", name="hand_over"),
        Node(lambda _, own: len(own), ["outputs", "lists"], "count", name="count"),
    ]
    hooks.hook.before_pipeline_run(run_params={}, pipeline=Pipeline(steps), catalog=catalog)
    found = SequentialRunner().run(Pipeline(steps), catalog, hooks)
    assert json.loads(outputs.read_text()) == ["lists"]
    assert read == [0, 3]
    assert found["count"].load() == 3
