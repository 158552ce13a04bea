"""A reproducible study of multi-task neural recommendation, built as a Kedro project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitask_recommender.frames import study
    from multitask_recommender.use.recommender import load_recommender

__version__ = "0.2.0"
__all__ = ["load_recommender", "study"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first asked for, so that importing the package costs nothing."""
    if name == "load_recommender":
        from multitask_recommender.use.recommender import load_recommender

        return load_recommender
    if name == "study":
        from multitask_recommender.frames import study

        return study
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
