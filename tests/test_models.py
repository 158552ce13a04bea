"""Properties of losses, modules, training and every variant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TASKS, everyone, make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.architectures.shared_bottom import SharedBottom, SharedBottomSettings
from multitask_recommender.models.baselines.matrix_factorisation import BiasedFactors, MatrixFactorisationSettings
from multitask_recommender.models.document.document_system import DocumentSystemModule, DocumentSystemSettings
from multitask_recommender.models.per_task import PerTask
from multitask_recommender.models.towers import multi_task
from multitask_recommender.models.towers.fold_in import minimise
from multitask_recommender.models.towers.multi_task import MultiTaskModule
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.towers.two_tower import LabelScales, as_rows
from multitask_recommender.models.training import losses
from multitask_recommender.models.training.loop import TrainableModule, TrainingSettings, UserRows, new_generator, train
from multitask_recommender.models.training.sparse_products import (
    DesignMatrix,
    Pairs,
    gram,
    pair_scores,
    weighted_grams,
    weighted_sums,
)
from multitask_recommender.models.variants import VARIANTS, Variant, with_values
from multitask_recommender.testing import example_study

QUICK: dict[str, dict[str, Any]] = {
    name: {"training": {"epochs": 3, "batches": 2}, "dimension": 4}
    for name, variant in VARIANTS.items()
    if "training" in variant.settings.model_fields
}


def quick(variant: Variant) -> Settings:
    default = variant.settings().model_dump()
    for key, value in QUICK.get(variant.name, {}).items():
        default[key] = {**default[key], **value} if isinstance(value, dict) else value
    return variant.settings.model_validate(default)


def test_whole_data_loss_equals_the_sum_over_all_pairs() -> None:
    generator = new_generator(1)
    user, item = torch.randn(6, 3, generator=generator), torch.randn(9, 3, generator=generator)
    target = (torch.rand(6, 9, generator=generator) < 0.3).float()
    scores = pair_scores(user, item, Pairs.of(*target.nonzero().T, 6))
    expected = ((1 + 4 * target) * (target - user @ item.T) ** 2).sum()
    assert losses.whole_data_squared_loss(user, item.T @ item, scores, 4.0).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


# A user without pairs in the middle and at the end, an item without any at the end, and a pair that stands twice.
@pytest.mark.parametrize(
    ("row_user", "row_item"),
    [([0, 0, 2, 4, 4], [7, 1, 7, 3, 3]), ([], []), ([0, 0, 3] * 25, [1, 8, 0] * 25)],
    ids=["some pairs", "none", "more pairs than cells"],
)
def test_products_at_pairs_equal_dense_ones(row_user: list[int], row_item: list[int]) -> None:
    users, items = 6, 9
    generator = new_generator(1)
    row_user = sorted(row_user)
    pairs = Pairs.of(torch.tensor(row_user, dtype=torch.int64), torch.tensor(row_item, dtype=torch.int64), users)
    user, item = (
        torch.randn(number, 3, generator=generator, dtype=torch.float64).requires_grad_() for number in (users, items)
    )
    weight = torch.rand(len(row_user), generator=generator, dtype=torch.float64)
    assert torch.allclose(pair_scores(user, item, pairs), (user @ item.T)[row_user, row_item])
    dense = torch.zeros(users, items, dtype=torch.float64)
    dense.index_put_((torch.tensor(row_user).long(), torch.tensor(row_item).long()), weight, accumulate=True)
    assert torch.allclose(weighted_sums(pairs, weight, item), dense @ item)
    grams = torch.einsum("ui,ic,id->ucd", dense, item, item)
    assert torch.allclose(weighted_grams(pairs, weight, item), grams)
    assert torch.allclose(gram(item), item.T @ item)
    assert torch.autograd.gradcheck(gram, (item,))
    assert torch.autograd.gradcheck(lambda u, i: pair_scores(u, i, pairs), (user, item))
    assert torch.autograd.gradcheck(lambda table: weighted_sums(pairs, weight, table), (item,))


def test_losses_skip_rows_that_are_not_asked() -> None:
    label, score = torch.tensor([1.0, math.nan, 0.0]), torch.tensor([0.3, 9.0, -0.2])
    assert [part.item() for part in losses.squared_error(label, score)] == pytest.approx([0.7**2 + 0.2**2, 2])
    expected = math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-0.2))
    assert [part.item() for part in losses.cross_entropy(label, score)] == pytest.approx([expected, 2], rel=1e-6)
    assert [part.item() for part in losses.squared_error(label[1:2], score[1:2])] == [0, 0]


# A large share of the items is taken from the whole product, a small one is cut out.
@pytest.mark.parametrize("items", [15, 60])
def test_feature_table_equals_the_dense_product(items: int) -> None:
    side = make_side(20, items)
    features = DesignMatrix(side.item_features)
    table = FeatureTable(side.item_features.shape[1], 3, new_generator(1))
    dense = torch.from_numpy(side.item_features.toarray()) @ table.vectors
    assert torch.allclose(table(features), dense)
    some = torch.tensor([4, 4, 0])
    assert torch.allclose(table(features, some), dense[some])
    table(features, some).square().sum().backward()
    gradient = table.vectors.grad.clone()
    table.vectors.grad = None
    dense = torch.from_numpy(side.item_features.toarray()) @ table.vectors
    dense[some].square().sum().backward()
    assert torch.allclose(gradient, table.vectors.grad)


@pytest.mark.parametrize("kind", ["shared_bottom", "document"])
def test_gradients_are_right(kind: str, rows: Interactions, side: SideInformation) -> None:
    """The gradient of the whole loss equals finite differences in float64 along random directions."""
    scales = LabelScales.of(TASKS, rows.labels)
    module: Any
    if kind == "shared_bottom":
        settings = SharedBottomSettings(dimension=3, penalise="task_vectors")
        towers = (
            SharedBottom(settings).tower(TASKS, new_generator(5)),
            SharedBottom(settings).tower(TASKS, new_generator(6)),
        )
        module = MultiTaskModule(side, settings, scales, towers, new_generator(1))
    else:
        document = DocumentSystemSettings(dimension=3, hidden=4, item_identity=True)
        module = DocumentSystemModule(side, document, scales, joint=True, generator=new_generator(1))
    flat = as_rows(everyone(rows, side), None)
    module.start(flat)
    module.describe(flat)
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=new_generator(2)))

    def loss() -> torch.Tensor:
        # The same seed hides the same rows of the histories every time.
        batch = flat.batch(torch.arange(0, 40), new_generator(7))
        return torch.stack(list(module.losses(batch).values())).sum()

    loss().backward()
    direction = [torch.randn(p.shape, generator=new_generator(3)) for p in parameters]
    slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, direction, strict=True) if p.grad is not None)
    step = 1e-3
    values = []
    for sign in (1, -1):
        for parameter, own in zip(parameters, direction, strict=True):
            parameter.data.add_(sign * step * own)
        values.append(loss().item())
        for parameter, own in zip(parameters, direction, strict=True):
            parameter.data.sub_(sign * step * own)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2)


def test_diverging_training_names_model_task_and_epoch(rows: Interactions, side: SideInformation) -> None:
    training = TrainingSettings(optimiser="sgd", learning_rate=1e6, epochs=5, batches=2)
    model = VARIANTS["two_stage"].make(DocumentSystemSettings(training=training), TASKS)
    with pytest.raises(TrainingError, match=r"'(watch|like|rating|penalty)'.*'TwoStageSystem'.*epoch \d of 5"):
        model.fit(rows, side, seed=1)


def test_training_reaches_a_closed_form() -> None:
    """Full-batch gradient descent on a quadratic ends in its minimum."""
    module = TrainableModule()
    module.w = torch.nn.Parameter(torch.zeros(3))
    target = torch.tensor([1.0, -2.0, 0.5])
    rows = UserRows(make_interactions(5, 6, 2, seed=1), 5)
    settings = TrainingSettings(optimiser="sgd", learning_rate=0.1, epochs=300, batches=1)
    curve = train(
        "quadratic", module, lambda _: {"q": (module.w - target).square().sum()}, rows, settings, new_generator(1)
    )
    assert torch.allclose(module.w, target, atol=1e-4)
    assert curve.epochs[0]["q"] == pytest.approx(5.25)


@pytest.mark.parametrize("name", ["single_task", "shared_bottom", "svd_plus_plus", "mmoe", "aitm", "ple"])
def test_folding_in_ends_where_the_objective_is_flat(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of folding in go down, and the gradient of what they minimise vanishes."""
    rows, side = example_study()
    found: list[tuple[float, float, float]] = []

    def watched(objective: Any, curvature: torch.Tensor, steps: int) -> torch.Tensor:
        values = []
        for number in (0, 1, steps, 60):
            with torch.enable_grad():
                point = minimise(objective, curvature, number).requires_grad_()
                (gradient,) = torch.autograd.grad(objective(point), point)
            values.append((objective(point).item(), gradient.norm().item()))
        start, one, several, many = values
        assert one[0] < start[0]
        close = 1e-5 * abs(one[0])
        assert many[0] <= several[0] + close <= one[0] + 2 * close
        assert many[1] < 0.02 * start[1]
        found.append((start[1], several[1], many[1]))
        return minimise(objective, curvature, steps)

    variant = VARIANTS[name]
    model = variant.make(quick(variant), side.tasks)
    model.fit(rows, side, seed=5)
    in_steps = model.score(everyone(rows, side))
    monkeypatch.setattr(multi_task, "minimise", watched)
    monkeypatch.setattr(MultiTaskModule, "has_closed_fold_in", property(lambda module: False))
    # Where the losses are quadratic or logistic the closed form takes the same steps.
    for task, score in model.score(everyone(rows, side)).items():
        assert np.allclose(score, in_steps[task], atol=2e-3 * max(1.0, np.abs(score).max())), task
    assert found


@pytest.mark.parametrize("penalise", ["identity", "task_vectors"])
@pytest.mark.parametrize("kind", ["watch", "rating"])
def test_folding_in_for_squared_losses_is_one_ridge_regression(kind: str, penalise: str) -> None:
    """Without an encoder the solution equals that of the dense normal equations."""
    rows, side = example_study()
    rows, side = rows.with_tasks([kind]), side.with_tasks([kind])
    settings = SharedBottomSettings(
        dimension=3,
        user_embedding="none",
        user_features=False,
        penalise=penalise,  # type: ignore[arg-type]
        retrieval_penalty=2.0,
        penalty=0.3,
        bias_penalty=0.2,
        history_dropout=0.0,
        training=TrainingSettings(epochs=3, batches=2),
    )
    model = SharedBottom(settings)
    model.fit(rows, side, seed=1)
    module = model._module
    assert isinstance(module, MultiTaskModule)
    items = model.item_vectors[kind].numpy().astype(np.float64)
    own, other = (side_.tower.head_maps()[kind].numpy() for side_ in (module.users, module.items))
    through = np.eye(4)
    through[:3, :3] = own @ other.T
    seen = items[:, :4] @ through.T  # What the identity vector and the bias meet.
    offset = items[:, 4] + module.constant.item()
    weight = module.weights[kind]
    penalised = np.zeros((4, 4))
    penalised[:3, :3] = np.eye(3) if penalise == "identity" else own @ own.T
    vectors = model.user_vectors(everyone(rows, side))[kind].numpy()
    for user in range(5):
        history = rows.item[rows.user == user]
        bias = np.diag([0, 0, 0, 1.0])
        if kind == "watch":
            target, w = np.zeros(side.items), np.zeros(side.items)
            w[np.unique(rows.item)] = 1.0
            target[history], w[history] = 1.0, 1.0 + settings.positive_weight
            ridge = weight * (2.0 * penalised + 0.1 * 2.0 * bias)
        else:
            label = rows.labels["rating"][rows.user == user]
            target, w = np.zeros(side.items), np.zeros(side.items)
            spread = rows.labels["rating"].astype(np.float64)
            target[history], w[history] = (label - spread.mean()) / spread.std(), 1.0
            ridge = weight * len(history) * (0.3 * penalised + 0.2 * bias)
        gram = weight * (seen.T * w) @ seen + ridge
        solution = np.linalg.solve(gram, weight * (seen.T * w) @ (target - offset))
        assert np.allclose(items[:, :5] @ vectors[user][:5] + 0, seen @ solution + offset, atol=2e-4)


def test_folded_in_users_are_near_the_trained_ones() -> None:
    """After a long training the trained identity vectors are near those that their histories give."""
    rows, side = make_interactions(60, 30, 12, seed=3), make_side(60, 30)
    training = TrainingSettings(learning_rate=0.02, epochs=300, batches=2)
    settings = SharedBottomSettings(dimension=3, history_dropout=0.0, retrieval_penalty=2.0, training=training)
    kept: list[MultiTaskModule] = []

    class Watched(SharedBottom):
        def build(self, *arguments: Any) -> Any:
            kept.append(super().build(*arguments))  # type: ignore[arg-type]
            return kept[-1]

    model = Watched(settings)
    model.fit(rows, side, seed=1)
    flat = as_rows(everyone(rows, side), None)
    kept[0].describe(flat)
    with torch.no_grad():
        trained = kept[0].user_vectors(flat.everyone())
    folded = model.user_vectors(everyone(rows, side))
    for task in TASKS:
        one, other = (vectors[task] @ model.item_vectors[task].T for vectors in (trained, folded))
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.98, task


_CONTROLS = {name: variant for name, variant in VARIANTS.items() if variant.kind == "single_task"}


@pytest.mark.parametrize("name", [name for name, variant in _CONTROLS.items() if not variant.equal_inputs])
def test_single_task_controls_learn_from_one_task_alone(name: str, rows: Interactions, side: SideInformation) -> None:
    variant = VARIANTS[name]
    one, other = variant.make(quick(variant), TASKS), variant.make(quick(variant), TASKS)
    one.fit(rows, side, seed=5)
    changed = rows.with_tasks(list(TASKS))
    changed.labels["rating"] = np.roll(rows.labels["rating"], 3)
    other.fit(changed, side, seed=5)
    users = everyone(changed, side)
    assert np.array_equal(one.score(users)["watch"], other.score(users)["watch"])
    assert np.array_equal(one.score(users)["like"], other.score(users)["like"])
    assert not np.array_equal(one.score(users)["rating"], other.score(users)["rating"])


@pytest.mark.parametrize("name", [name for name, variant in _CONTROLS.items() if variant.equal_inputs])
def test_controls_with_equal_inputs_read_the_labels_of_all_tasks_and_learn_one(
    name: str, rows: Interactions, side: SideInformation
) -> None:
    variant = VARIANTS[name]
    assert variant.scored_tasks(TASKS) == ["watch", "like"]  # Histories carry ratings in any case.
    changed = rows.with_tasks(list(TASKS))
    changed.labels["rating"] = np.roll(rows.labels["rating"], 3)

    def scores(train: Interactions, **values: object) -> dict[str, np.ndarray]:
        model = variant.make(with_values(quick(variant), values), TASKS)
        model.fit(train, side, seed=5)
        again = variant.make(with_values(quick(variant), values), TASKS)
        again.restore(model.state(), side)
        found = model.score(everyone(train, side))
        for task, score in again.score(everyone(train, side)).items():
            assert np.array_equal(score, found[task])
        return found

    one, other = scores(rows), scores(changed)
    assert not np.array_equal(one["watch"], other["watch"])
    assert not np.array_equal(one["like"], other["like"])
    # Only by the histories: without them, other labels change nothing.
    one, other = (scores(train, user_embedding="none") for train in (rows, changed))
    assert np.array_equal(one["watch"], other["watch"])
    assert np.array_equal(one["like"], other["like"])


def test_the_control_with_equal_inputs_reads_what_the_joint_model_reads(
    rows: Interactions, side: SideInformation
) -> None:
    settings = SharedBottomSettings(dimension=4, training=TrainingSettings(epochs=1, batches=2))
    joint = SharedBottom(settings)
    joint.fit(rows, side, seed=1)
    control = VARIANTS["single_task_equal_inputs"].make(settings, TASKS)
    control.fit(rows, side, seed=1)
    assert isinstance(control, PerTask)
    for part in control.parts.values():
        told = []
        for model in (joint, part):
            flat = as_rows(everyone(rows, side), None)
            model.fitted_module.describe(flat)  # type: ignore[attr-defined]
            told.append(flat.residuals)
        assert torch.equal(*told)


def test_single_task_control_has_the_size_of_the_multi_task_path(rows: Interactions, side: SideInformation) -> None:
    """Per task, the control's parameters are within 5 % of what the shared-bottom model uses for that task."""
    settings = SharedBottomSettings(dimension=64, training=TrainingSettings(epochs=1, batches=2))
    multi = SharedBottom(settings)
    multi.fit(rows, side, seed=1)
    heads = 2 * 64 * 64
    # Shared parts, one pair of heads, one set of biases.
    per_task_biases = side.users + side.items + side.item_features.shape[1] + 1
    path = multi.parameter_count() - 2 * (heads + per_task_biases)
    for task in ("like", "rating"):
        single = SharedBottom(settings)
        single.fit(rows.with_tasks([task]), side.with_tasks([task]), seed=1)
        assert single.parameter_count() == pytest.approx(path, rel=0.05)


def test_matrix_factorisation_penalises_every_row_alike(rows: Interactions, side: SideInformation) -> None:
    settings = MatrixFactorisationSettings(dimension=3, penalty=0.3, bias_penalty=0.07)
    rated = rows.with_tasks(["rating"])
    user, item = np.random.default_rng(1).normal(size=(2, 60)).astype(np.float32)
    module = BiasedFactors((user[: side.users], item[: side.items]), settings, "rating", new_generator(1))
    batch = UserRows(rated, side.users).batch(torch.arange(side.users), new_generator(1))
    with torch.no_grad():
        found = module.losses(batch)
    error, penalty = [], []
    for u, i, label in zip(rated.user, rated.item, rated.labels["rating"], strict=True):
        p, q, b, c = (x.detach() for x in (module.user[u], module.item[i], module.user_bias[u], module.item_bias[i]))
        error.append((label - (b + c + p @ q)) ** 2)
        penalty.append(0.3 * (p @ p + q @ q) + 0.07 * (b**2 + c**2))
    assert found["rating"].item() == pytest.approx(float(sum(error)) / len(rated), rel=1e-5)
    assert found["(penalty)"].item() == pytest.approx(float(sum(penalty)) / len(rated), rel=1e-5)


def test_means_are_means(rows: Interactions, side: SideInformation) -> None:
    rating = rows.labels["rating"]
    for name, key in (("user_mean", rows.user), ("item_mean", rows.item)):
        model = VARIANTS[name].make(quick(VARIANTS[name]), TASKS)
        model.fit(rows, side, seed=1)
        score = model.score(everyone(rows, side))["rating"][3]
        place = 3 if name == "user_mean" else int(rows.item[0])
        expected = rating[key == place].mean()
        assert score[int(rows.item[0])] == pytest.approx(expected, rel=1e-6)


def test_item_knn_equals_the_dense_formula(rows: Interactions, side: SideInformation) -> None:
    variant = VARIANTS["item_knn"]
    settings = variant.settings.model_validate({"neighbours": 5, "shrinkage": 2.0, "normalisation": 0.3})
    model = variant.make(settings, TASKS)
    model.fit(rows, side, seed=1)
    history = np.zeros((side.users, side.items))
    history[rows.user, rows.item] = 1
    n = np.maximum(history.sum(0), 1)
    similarity = history.T @ history / (n[:, None] ** 0.7 * n[None, :] ** 0.3 + 2.0)
    np.fill_diagonal(similarity, 0)
    threshold = np.sort(similarity, axis=1)[:, -5][:, None]
    similarity[similarity < threshold] = 0
    assert np.allclose(model.score(everyone(rows, side))["watch"], history @ similarity.T, atol=1e-5)
