"""The pipelines of the study."""
