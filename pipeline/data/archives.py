"""Where the members of a tar lie, found without unpacking it.

Nothing of a tar is trusted: names are never used as paths, links and devices are never followed, whatever a header says
of sizes stays inside the file, and what is damaged is told instead of ending the list early.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # bytes: of a header, and what data is padded to
MAX_NAME_BYTES = 1 << 16  # what a header may say of the next one's name
CHUNK = 1 << 20
FILES, LONG_NAME, PAX, PASSED_OVER = b"07\0", b"L", b"x", b"g5K"  # kinds of members; K: the target of a link


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its data, bytes from the file's beginning
    size: int


class Damage(NamedTuple):
    """What is wrong at one place of a tar."""

    offset: int
    reason: str


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes


def walk_tar(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Member | Damage]:
    """The files in the tar that is the bytes from `start` to `stop` of `file`, in order, and all that is damaged.

    A header is read for each, their data is not. Behind a damaged header the list goes on at the next whole one.
    """
    end = file.seek(0, 2) if stop is None else stop
    position, long_name = start, None
    while position + BLOCK <= end:
        block = _read(file, position, BLOCK)
        if not any(block):
            yield from _check_rest(file, position, end)
            return
        header = parse_header(block)
        if header is None:
            what = "is compressed: unpack it" if block[:2] == b"\x1f\x8b" else "has a damaged header"
            yield Damage(position, what)
            position, long_name = _find_header(file, position + BLOCK, end), None
            continue
        data, position = position + BLOCK, position + BLOCK + -(-header.size // BLOCK) * BLOCK
        if data + header.size > end:
            yield Damage(data, f"is cut off inside {shown(long_name or header.name)}")
            return
        if header.kind in (LONG_NAME, PAX):
            long_name = _read_name(file, data, header)
        elif header.kind in FILES:
            yield Member(long_name or header.name, data, header.size)
            long_name = None
        else:
            if header.kind not in PASSED_OVER:
                yield Damage(data - BLOCK, f"has a link or device: {shown(long_name or header.name)}")
            long_name = None if header.kind == b"5" else long_name
    yield Damage(position, "has no end: members may be missing")


def parse_header(block: bytes) -> _Header | None:
    """The header of a member; None if its checksum is wrong or a number is none."""
    try:
        if _number(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    return _Header(name, size, block[156:157])


def shown(name: str) -> str:
    """A name of a member as a message may have it: short, and without anything that a terminal obeys."""
    printable = "".join(char if char.isprintable() else "?" for char in name)
    return printable if len(printable) <= 100 else f"{printable[:97]}..."


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for files of 8 GiB and more
        if field[0] != 0x80:
            raise ValueError("negative")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not digits.isdigit():
        raise ValueError("not octal")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _read_name(file: BinaryIO, offset: int, header: _Header) -> str | None:
    """What a header in front of a member says of its name; of its size a pax header may say nothing here."""
    if header.size > MAX_NAME_BYTES:
        return None
    data = _read(file, offset, header.size)
    if header.kind == LONG_NAME:
        return _text(data)
    for line in data.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "replace")
    return None


def _find_header(file: BinaryIO, position: int, end: int) -> int:
    """Where the next whole header begins, else the mark of the end, else the end."""
    while position + BLOCK <= end:
        chunk = _read(file, position, min(CHUNK, end - position))
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[start : start + BLOCK]
            if block[257:262] == b"ustar" and parse_header(block):
                return position + start
        position += len(chunk) // BLOCK * BLOCK
    mark = end - 2 * BLOCK
    return mark if mark >= 0 and not any(_read(file, mark, 2 * BLOCK)) else end


def _check_rest(file: BinaryIO, position: int, end: int) -> Iterator[Damage]:
    """Behind the end there are zeros only, else tars were joined and readers would stop at the first."""
    for offset in range(position, end, CHUNK):
        if any(_read(file, offset, min(CHUNK, end - offset))):
            yield Damage(offset, "goes on behind its end")
            return
