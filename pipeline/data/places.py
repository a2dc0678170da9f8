"""Reading one file of the user's where it lies: in a folder, inside a tar, or in a row of a parquet file."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError

# A file: [file]. Bytes of one, inside a tar: [file, offset, length]. A picture of a parquet file: [file, row group,
# row]. Files are relative to the data set's folder, with /; all of it is JSON.
Place = Sequence[Any]
PARQUET = ".parquet"
MAX_THRIFT_BYTES = 1 << 26  # of a parquet file's own description
MAX_GROUP_BYTES = 1 << 31  # of the pictures of one row group, unpacked
IMAGE_COLUMN = "image"  # a struct of bytes and path, as the `datasets` library writes pictures


def read_place(root: Path, place: Place, max_bytes: int) -> bytes:
    """The bytes that lie at `place`.

    Raises:
        OSError: if they cannot be read, are more than `max_bytes`, or end too early.
    """
    file, *where = place
    path = root / file
    if file.endswith(PARQUET) and where:
        return _read_row(path, max_bytes, *where)
    offset, length = where or (0, path.stat().st_size)
    if length > max_bytes:
        raise OSError(0, f"{length} bytes, more than {max_bytes} are not read")
    with path.open("rb", buffering=0) as opened:
        data = os.pread(opened.fileno(), length, offset)
        while len(data) < length and (more := os.pread(opened.fileno(), length - len(data), offset + len(data))):
            data += more
    if len(data) < length:
        raise OSError(0, "ends too early")
    return data


def read_same(root: Path, place: Place, sha256: str, what: str, max_bytes: int) -> bytes:
    """As `read_place`; raises UserError if the bytes are not those that were listed.

    Args:
        what: They are, in the singular.
    """
    named = f"{root / place[0]}" + (f" at {place[1]}" if len(place) > 1 else "")
    try:
        data = read_place(root, place, max_bytes)
    except FileNotFoundError:
        raise UserError(f"{named}: {what} is gone since it was listed; run the stage `fetch` again") from None
    except OSError as error:
        raise UserError(f"{named}: {what} cannot be read ({error.strerror}); run the stage `fetch` again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{named}: {what} has changed since it was listed; run the stage `fetch` again")
    return data


def _read_row(path: Path, max_bytes: int, group: int, row: int) -> bytes:
    stat = path.stat()
    found = _read_group(path, group, stat.st_size, stat.st_mtime_ns)[row].as_py()
    if found is None:
        raise OSError(0, "no bytes")
    if len(found) > max_bytes:
        raise OSError(0, f"{len(found)} bytes, more than {max_bytes} are not read")
    return found


@functools.lru_cache(maxsize=2)
def _read_group(path: Path, group: int, *state: int) -> Any:
    """The pictures of one row group: neighbours are read one after the other, the file once."""
    import pyarrow as pa

    try:
        with _open_parquet(path) as file:
            size = file.metadata.row_group(group).total_byte_size
            if size <= MAX_GROUP_BYTES:
                column = file.read_row_group(group, columns=[f"{IMAGE_COLUMN}.bytes"], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise OSError(0, f"damaged parquet: {str(error)[:100]}") from None
    if size > MAX_GROUP_BYTES:
        raise OSError(0, f"row group too large: {size} bytes, more than {MAX_GROUP_BYTES} are not read")
    return column.column(IMAGE_COLUMN).combine_chunks().field("bytes")


class Row(NamedTuple):
    """A picture of a parquet file, before its bytes are read."""

    place: list[Any]
    path: str | None
    label: int


def list_rows(path: Path, file: str) -> list[Row]:
    """The rows of a parquet file, without the pictures' bytes.

    Args:
        file: How places call it.

    Raises:
        UserError: if it is damaged or has other columns.
    """
    import pyarrow as pa

    rows = []
    try:
        with _open_parquet(path) as opened:
            _check_columns(opened.schema_arrow)
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, columns=[f"{IMAGE_COLUMN}.path", "label"], use_threads=False)
                names = _texts(table.column(IMAGE_COLUMN).combine_chunks().field("path"))
                labels = [int(label) for label in table.column("label").to_pylist()]
                pairs = enumerate(zip(names, labels, strict=True))
                rows += [Row([file, group, i], name, label) for i, (name, label) in pairs]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file of image and label ({str(error)[:100]})") from None
    if any(label < 0 for _, _, label in rows):
        raise UserError(f"{path}: has rows without a label; only the test part may")
    return rows


def _open_parquet(path: Path) -> Any:
    """Values that repeat are kept once, as they lie in the file: a small one may else unfold to gigabytes."""
    import pyarrow.parquet as pq

    once = [f"{IMAGE_COLUMN}.bytes", f"{IMAGE_COLUMN}.path"]
    return pq.ParquetFile(path, thrift_string_size_limit=MAX_THRIFT_BYTES, read_dictionary=once)


def _check_columns(schema: Any) -> None:
    """Raise TypeError or KeyError unless there are bytes and a path of an image, and a whole number as its label."""
    import pyarrow as pa

    image, label = schema.field(IMAGE_COLUMN).type, schema.field("label").type
    if not pa.types.is_struct(image) or not pa.types.is_integer(label):
        raise TypeError(f"{IMAGE_COLUMN} is {image}, label is {label}")
    kinds = {"bytes": (pa.binary(), pa.large_binary()), "path": (pa.string(), pa.large_string(), pa.null())}
    for name, allowed in kinds.items():
        kind = image.field(name).type
        if getattr(kind, "value_type", kind) not in allowed:
            raise TypeError(f"{IMAGE_COLUMN}.{name} is {kind}")


def _texts(column: Any) -> list[str | None]:
    """The values of a column that keeps each once."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    values = column.dictionary.to_pylist()
    return [None if i is None else values[i] for i in column.indices.to_pylist()]
