"""Files that were made to harm who reads them: name -> bytes. Nothing of it is large; what it unpacks to would be."""

import gzip
import io
import struct
import tarfile
import zlib

from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, idat: bytes, extra: bytes = b"", colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def encoded(kind: str, size: tuple[int, int] = (16, 16), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG of 16 x 16 pixels whose header says something else."""
    data = bytearray(encoded("jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_of_size(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 8)]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + body


def text_bomb() -> bytes:
    info = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300 << 20), 9))
    return png(4, 4, zlib.compress(bytes(4 * 13)), info)


def profile_bomb() -> bytes:
    info = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300 << 20), 9))
    return png(4, 4, zlib.compress(bytes(2)), info)


def bad_pictures() -> dict[str, bytes]:
    """Every one is to be refused."""
    whole = encoded("jpeg", (64, 64))
    lies = struct.pack("<I", 0x7FFFFFF0)
    bmp = bytearray(encoded("bmp"))
    bmp[18:26] = lies + lies
    return {
        "empty.jpg": b"",
        "text.jpg": b"<html><script>alert(1)</script></html>",
        "shell.png": b"#!/bin/sh\ntouch /tmp/owned\n",
        "pickle.jpg": b"cposix\nsystem\n(S'touch owned'\ntR.",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file closefile\n",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "document.pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch>>>>endobj",
        "icon.ico": encoded("ico"),
        "other.icns": encoded("icns", (32, 32)),
        "square.png": png(30_000, 30_000, zlib.compress(bytes(1000))),
        "line.png": png(2_000_000_000, 1, zlib.compress(bytes(1000))),
        "nothing.png": png(0, 0, zlib.compress(b"")),
        "cut.png": png(4000, 4000, zlib.compress(bytes(1000))),
        "wrong-crc.png": png(8, 8, zlib.compress(bytes(8 * 25))).replace(b"IHDR", b"IHDX"),
        "text-bomb.png": text_bomb(),
        "profile-bomb.png": profile_bomb(),
        "huge.jpg": jpeg_of_size(65_500, 65_500),
        "cut.jpg": whole[: len(whole) // 2],
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
        "huge.bmp": bytes(bmp),
        "huge.tif": tiff_of_size(60_000, 60_000),
        "cut.tif": tiff_of_size(3000, 3000),
        "huge.ppm": b"P6 99999 99999 255\n",
        "cut.ppm": b"P6 5000 5000 255\nabc",
        "numbers.ppm": b"P6 " + b"9" * 5000 + b" 1 255\n",
        "cut.webp": encoded("webp")[:-20],
    }  # fmt: skip


def header(name: bytes, size: bytes, kind: bytes = b"0", link: bytes = b"") -> bytes:
    """A header of a tar with a right checksum, whatever else it says."""
    block = name.ljust(100, b"\0")[:100] + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"0" * 11 + b"\0"
    block += b" " * 8 + kind + link.ljust(100, b"\0") + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    total = sum(block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def bad_tars() -> dict[str, bytes]:
    """Every one has at least one thing that is to be told."""
    end, data = bytes(1024), b"x".ljust(512, b"\0")
    huge_size = b"\x80" + (1 << 80).to_bytes(11, "big")
    return {
        "link.tar": header(b"a.png", b"0", b"2", b"/etc/passwd") + end,
        "hard-link.tar": header(b"a.png", b"0", b"1", b"../../../etc/passwd") + end,
        "device.tar": header(b"a.png", b"0", b"3") + end,
        "pipe.tar": header(b"a.png", b"0", b"6") + end,
        "larger-than-the-file.tar": header(b"a.png", b"77777777777") + data + end,
        "larger-than-all.tar": header(b"a.png", huge_size) + data + end,
        "negative.tar": header(b"a.png", b"\xff" * 12) + data + end,
        "no-number.tar": header(b"a.png", b"9z") + data + end,
        "name-bomb.tar": header(b"x", b"77777777777", b"L") + data + end,
        "pax-bomb.tar": header(b"x", b"77777777777", b"x") + data + end,
        "sparse.tar": header(b"a.png", b"1", b"S") + data + end,
        "text.tar": b"#!/bin/sh\n".ljust(2048, b"#"),
        "cut.tar": header(b"a.png", b"2000") + data,
        "endless.tar": header(b"a.png", b"1") + data,
        "behind.tar": end + header(b"a.png", b"1") + data + end,
        "packed.tar": gzip.compress(bytes(50 << 20)),
    }


def climbing_tar(members: dict[str, bytes]) -> bytes:
    """A tar of samples whose names try to leave the folder, and speak to the terminal."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


CLIMBING = (
    *("../../up", "/abs/olute", "a/../../b", "\x1b[31mred\x1b[0m", "new\nline", "pipe:touch owned", "~/home", "%s%n"),
)
