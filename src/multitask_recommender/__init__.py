"""A reproducible study of multi-task neural recommendation, built as a Kedro project."""

__version__ = "0.1.0"
