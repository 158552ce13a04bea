"""What a command imports: nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAINING = """
import numpy as np
from scipy import sparse
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.variants import VARIANTS
ones = np.ones(6)
rows = Interactions(np.repeat([0, 1], 3), np.arange(6) % 4, {"watch": ones.astype("float32")}, {"watch": ones > 0})
nothing = [sparse.csr_matrix((count, 0), dtype="float32") for count in (2, 4)]
side = SideInformation({"watch": Task(kind="retrieval")}, 2, 4, *nothing)
for optimiser in ("adam", "sgd"):
    settings = VARIANTS["shared_bottom"].read_settings({"training": {"optimiser": optimiser, "epochs": 1}})
    VARIANTS["shared_bottom"].make(settings, side.tasks).fit(rows, side, 0)
"""


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import multitask_recommender", ["numpy", "torch", "pandas", "kedro"]),
        ("import multitask_recommender.use.command_line", ["numpy", "torch", "pandas", "kedro"]),
        ("from multitask_recommender import load_recommender", ["kedro", "ibis", "matplotlib", "scipy.stats", "faiss"]),
        # The compiler of PyTorch takes as long to import as PyTorch itself, in every process that trains.
        (TRAINING, ["torch._dynamo", "torchjd", "faiss", "matplotlib"]),
    ],
    ids=["package", "command line", "recommender", "training"],
)
def test_what_is_not_needed_is_not_imported(code: str, unwanted: list[str]) -> None:
    asked = f"{code}\nimport sys\nprint([name for name in {unwanted} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
