"""Tables that are made piece by piece and are too large to be kept in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pyarrow as pa


class Spool:
    """A table that is written to a nameless temporary file while it grows, and can be read from its beginning.

    The file vanishes with the process, however that ends.

    Args:
        schema: Columns of the table.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._open = True

    def add(self, table: pa.Table) -> None:
        """Append rows; columns are brought into the order and the types of the schema."""
        self._writer.write_table(table.select(self.schema.names).cast(self.schema))

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the rows in pieces. Nothing can be added afterwards."""
        if self._open:
            self._writer.close()
            self._open = False
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            yield pa.Table.from_batches([batch], self.schema)
