"""Where the members of a tar lie, found without unpacking it.

Nothing of a tar is trusted: names are never used as paths, links and devices are never followed, whatever a header says
of sizes stays inside the file, and what is damaged is told instead of ending the list early.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # bytes: of a header, and what data is padded to
MAX_NAME_BYTES = 1 << 16  # what a header may say of the next one's name
CHUNK = 1 << 20
# Kinds of members; 5 is a folder, K the target of a link.
FILES, LONG_NAME, PAX, PASSED_OVER = b"07\0", b"L", b"x", b"g5K"
NO_DATA = b"123456"  # links, devices, folders: whatever size they have, nothing of them is stored, as tarfile reads


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its data, bytes from the file's beginning
    size: int


class Damage(NamedTuple):
    """What is wrong at one place of a tar."""

    offset: int
    reason: str
    rest_lost: bool = False  # nobody can say how many members lay from here on


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
            if block[:2] == b"\x1f\x8b":
                yield Damage(position, "is compressed: unpack it", rest_lost=True)
                return
            found = _find_header(file, position + BLOCK, end)
            lost = found is None and not _is_last(file, position, block, end)
            yield Damage(position, "has a damaged header", rest_lost=lost)
            if found is None:
                return
            position, long_name = found, None
            continue
        data, position = position + BLOCK, position + BLOCK + -(-header.size // BLOCK) * BLOCK
        if data + header.size > end:
            yield Damage(data, f"is cut off inside {shown(long_name or header.name)}", rest_lost=True)
            return
        if header.kind in (LONG_NAME, PAX):
            long_name = _read_name(file, data, header)
        elif header.kind in FILES:
            yield Member(long_name or header.name, data, header.size)
            long_name = None
        else:
            if header.kind not in PASSED_OVER:
                yield Damage(data - BLOCK, f"has a link or device: {shown(long_name or header.name)}")
            long_name = long_name if header.kind in b"gK" else None
    yield Damage(position, "has no end: members may be missing", rest_lost=True)


def parse_header(block: bytes) -> _Header | None:
    """The header of a member; None if its checksum is wrong or a number is none."""
    try:
        if _number(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    name, kind = _text(block[:100]), block[156:157]
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"  # as tars of before POSIX have folders
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    return _Header(name, 0 if kind in NO_DATA else size, kind)


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


def _find_header(file: BinaryIO, position: int, end: int) -> int | None:
    """Where the next whole header begins."""
    while position + BLOCK <= end:
        chunk = _read(file, position, min(CHUNK, end - position))
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[start : start + BLOCK]
            if block[257:262] == b"ustar" and parse_header(block):
                return position + start
        position += len(chunk) // BLOCK * BLOCK
    return None


def _is_last(file: BinaryIO, position: int, block: bytes, end: int) -> bool:
    """Whether the mark of the end lies where the size in a damaged header has it: one member is lost, no more."""
    try:
        behind = position + BLOCK + -(-_number(block[124:136]) // BLOCK) * BLOCK
    except ValueError:
        return False
    return behind + 2 * BLOCK <= end and not any(_check_rest(file, behind, end))


def _check_rest(file: BinaryIO, position: int, end: int) -> Iterator[Damage]:
    """Behind the end there are zeros only, else tars were joined and readers would stop at the first."""
    for offset in range(position, end, CHUNK):
        if any(_read(file, offset, min(CHUNK, end - offset))):
            yield Damage(offset, "goes on behind its end", rest_lost=True)
            return
