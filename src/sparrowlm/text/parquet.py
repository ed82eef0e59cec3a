"""Parquet: one document a row, from the column that holds the text.

pyarrow runs in a process of its own. Loaded into one that has PyTorch it crashes on Windows, and
the process that reads text is often the one that trains on it. The child writes a line of JSON for
each batch of rows; it ends with the pipe, so also when its parent is killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sparrowlm.errors import DataError, EnvironmentFault
from sparrowlm.text.extras import need
from sparrowlm.text.reading import OnRead
from sparrowlm.text.rows import Row, as_row, clean, no_key

ROWS, BYTES = 1 << 10, 1 << 22  # of a batch, at most
BUFFER = 1 << 20  # bytes of a column that are read at once


def read_parquet(path: Path, text_key: str, on_read: OnRead = None) -> Iterator[Row]:
    """Of a Parquet file, one row for each of its rows; a row's line is its number from 1.

    Raises:
        DataError: it cannot be read, is no Parquet file, or pyarrow is not installed.
        EnvironmentFault: the process that reads was killed.
    """
    for number, (text, reason) in enumerate(_asked(path, text_key, on_read), 1):
        yield as_row(str(path), number, text, reason)


def read_parquet_rows(path: Path, on_read: OnRead = None) -> Iterator[tuple[int, bytes, str]]:
    """(number, JSON, fault) of every row, with all of its columns.

    Raises:
        DataError, EnvironmentFault: as `read_parquet`.
    """
    for number, (text, reason) in enumerate(_asked(path, "", on_read), 1):
        yield number, text.encode(), reason


def _asked(path: Path, text_key: str, on_read: OnRead) -> Iterator[tuple[str, str]]:
    """What a child reads for us; without a text key, whole rows as JSON."""
    need("pyarrow", "parquet", str(path), load=False)
    # -P: a signal.py or a pyarrow in the working directory is not what is meant.
    command = [sys.executable, "-P", "-m", "sparrowlm.text.parquet", str(path), text_key]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None, "asked for above"
            yield from _rows(path, child.stdout, on_read)
        finally:
            child.kill()  # where the rows were not read to their end


def _rows(path: Path, answers: IO[bytes], on_read: OnRead) -> Iterator[tuple[str, str]]:
    """What the child tells, row by row."""
    told = {}
    for line in answers:
        told = json.loads(line)
        yield from map(tuple, told.get("rows", ()))
        if on_read is not None:
            on_read(told.get("bytes", 0))
    if "fault" in told:
        raise DataError(told["fault"], where=str(path), fix="fetch the file again")
    if "end" not in told:
        raise EnvironmentFault(
            "the process that reads it has ended too soon",
            where=str(path),
            why="most often the memory was full",
        )


def serve() -> int:
    """Be the child: answer for the file and the column in the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if hasattr(signal, "SIGPIPE"):  # end without a word where nobody reads; Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    path, text_key = Path(sys.argv[1]), sys.argv[2]
    for told in answers(path, text_key):
        sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
    sys.stdout.flush()
    return 0


def answers(path: Path, text_key: str) -> Iterator[dict[str, Any]]:
    """Batches of rows as [text, reason], with the bytes of the file that they stand for; then an
    end or a fault. Belongs into a process without PyTorch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without pre-buffering and with a buffer, a column is read page by page.
        with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            total, rows = path.stat().st_size, max(1, file.metadata.num_rows)
            for batch in _batches(file, text_key):
                yield {"rows": batch, "bytes": total * len(batch) // rows}
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as fault:
        # The last three are of a cell that Python has no form for, such as a year above 9999.
        yield {"fault": f"cannot be read: {fault}"}
    else:
        yield {"end": True}


def _batches(file: Any, text_key: str) -> Iterator[list[tuple[str, str]]]:
    """The rows of a `pyarrow.parquet.ParquetFile`, a batch at a time."""
    import pyarrow as pa

    if not text_key:
        for batch in file.iter_batches(_batch_rows(file)):
            yield [_whole(row) for row in _times_as_text(batch).to_pylist()]
        return
    schema = file.schema_arrow
    fault = no_key("column", text_key, schema.names)
    if text_key in schema.names:
        kind = schema.field(text_key).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        fault = "" if any(is_kind(value) for is_kind in texts) else f"{text_key!r} is {kind}"
        fault = f"{fault}, not a string" if fault else ""
    if fault:
        for start in range(0, file.metadata.num_rows, ROWS):
            yield [("", fault)] * min(ROWS, file.metadata.num_rows - start)
        return
    for batch in file.iter_batches(_batch_rows(file), columns=[text_key]):
        # As bytes: a string that is not UTF-8 would fail together with the rows around it.
        column = batch.column(0).cast(pa.large_string()).cast(pa.large_binary())
        yield [_text(value, text_key) for value in column.to_pylist()]


def _times_as_text(batch: Any) -> Any:
    """The batch with its columns of times as text: Python has no time to the nanosecond."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_temporal(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).cast(pa.string()))
    return batch


def _batch_rows(file: Any) -> int:
    """How many rows go into a batch, so that it stays small where rows are large."""
    meta = file.metadata
    size = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
    return max(1, min(ROWS, BYTES * max(1, meta.num_rows) // max(1, size)))


def _whole(row: dict[str, Any]) -> tuple[str, str]:
    """A row as JSON, without what is null: a struct has every key in every row."""
    try:
        return json.dumps(_without_nulls(row), default=_plain), ""
    except (TypeError, ValueError, RecursionError) as fault:
        return "", f"not JSON: {fault}"


def _plain(value: object) -> Any:
    """What JSON has no form for, such as a time or a Decimal; most often of a column that nobody
    asks for. Of bytes only how many, in an object: they are not to be taken for text."""
    return {"bytes": len(value)} if isinstance(value, bytes) else str(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _text(value: bytes | None, text_key: str) -> tuple[str, str]:
    """The text of a cell, or the reason why it has none."""
    if value is None:
        return "", f"{text_key!r} is null, not a string"
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as fault:
        return "", f"{text_key!r} is not UTF-8 at its byte {fault.start + 1}"
    return clean(text), ""


if __name__ == "__main__":
    raise SystemExit(serve())
