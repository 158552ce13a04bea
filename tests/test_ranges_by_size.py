"""Ranges follow the size of the data by the rule that stands in the YAML file."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from conftest import ROOT
from multitask_recommender.data.description import SplitSettings
from multitask_recommender.data.interactions import Interactions
from multitask_recommender.models.variants import REFERENCE_SIZE, VARIANTS, DataSize, VariantParameters


def _block(**values: object) -> VariantParameters:
    parameters = VARIANTS["wide_shared_bottom"].parameters.model_validate(values)
    assert isinstance(parameters, VariantParameters)
    return parameters


def test_the_size_is_that_of_the_training_rows() -> None:
    rows = Interactions(np.array([0, 0, 1, 2]), np.array([5, 7, 5, 7]), {}, {})
    assert DataSize.of(rows) == (4, 2.0)


def test_values_are_those_of_the_file_at_the_reference_size() -> None:
    block = _block(search={"dimension": [64, 96]}, by_size={"dimension": {"rows": 0.5}})
    same = block.for_size(REFERENCE_SIZE)
    assert same.settings == block.settings
    assert same.search == block.search


def test_fixed_and_searched_values_follow() -> None:
    block = _block(
        settings={"dimension": 64, "wide": {"penalty": 400.0}},
        search={"dimension": [4, 64, 96], "penalty": [0.1, 0.2]},
        by_size={
            "dimension": {"rows": 0.5, "most": 300},
            "wide.penalty": {"rows_per_item": 0.7},
            "wide.feature_weight": {"rows_per_item": 0.7},
        },
    )
    large = block.for_size(DataSize(40 * REFERENCE_SIZE.rows, 10 * REFERENCE_SIZE.rows_per_item))
    plain = large.settings.model_dump()
    assert plain["dimension"] == 304  # 300 in eights
    assert plain["wide"]["penalty"] == 2000.0  # 400 * 10^0.7 = 2004.7, to three digits
    assert large.search == {"dimension": [24, 304], "penalty": [0.1, 0.2]}  # 64 and 96 both end at the largest value
    small = block.for_size(DataSize(800, 2))
    assert small.search is not None
    assert small.search["dimension"] == [1, 6, 10]


def test_what_is_larger_in_the_file_than_the_largest_value_stays() -> None:
    block = _block(settings={"dimension": 512}, by_size={"dimension": {"rows": 0.5, "most": 320}})
    assert block.for_size(DataSize(10**7, 48)).settings.model_dump()["dimension"] == 512


def test_a_part_that_is_left_out_has_no_size() -> None:
    block = _block(settings={"wide": None}, by_size={"wide.penalty": {"rows_per_item": 0.7}})
    assert block.for_size(DataSize(10**6, 480)).settings.model_dump()["wide"] is None


@pytest.mark.parametrize(
    ("name", "part"), [("wide_shared_bottom", "revisit"), ("wide_shared_bottom", "wide"), ("aitm", "revisit")]
)
def test_a_part_that_is_left_out_stays_so_ahead_in_time(name: str, part: str) -> None:
    block = yaml.safe_load((ROOT / "conf/base/parameters_recommender.yml").read_text())["models"][name]
    parameters = VARIANTS[name].parameters.model_validate({**block, "settings": {**block["settings"], part: None}})
    ahead = parameters.for_split(SplitSettings(strategies=["temporal"], seed=1, folds=2).rule("temporal"))
    assert ahead.settings.model_dump()[part] is None
    for values in ({f"{part}.penalties.weight": 1.0}, {f"{part}s.weight": 1.0}):
        with pytest.raises(ValueError, match="there is no parameter"):
            VARIANTS[name].parameters.model_validate(block).with_values(values)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="'by_size' names an unknown parameter 'dimensoin'"):
        _block(by_size={"dimensoin": {"rows": 0.5}})
