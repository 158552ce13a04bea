"""A reproducible study of multi-task neural recommendation, built as a Kedro project."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["study"]


def __getattr__(name: str) -> Any:
    """Import what needs Kedro and PyTorch when it is asked for."""
    if name == "study":
        from multitask_recommender.frames import study

        return study
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
