"""Columns that every raw table has beside its own."""

ROW = "(row)"
"""Place of the row in the raw files, from 0."""
FILE = "(file)"
"""Name of the row's file; null for a table of one file."""
FAULT = "(fault)"
"""Why the row cannot be read; null for a row that can."""
