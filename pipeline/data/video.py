"""Encoded clips <-> frames, through PyAV (FFmpeg's decoders); the only file that knows it.

Generated clips are animated PNGs: lossless, two thirds of FFV1's size and faster to read, and the same frames give
the same bytes. Clips of the user's are decoded from the bytes that they came in.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np

EXTENSION = "apng"  # of what `encode_clip` writes
FRAMES_PER_S = 8  # players show generated clips at this rate; nothing here depends on it
# Nothing of the encoder's, the muxer's or the day's goes into the file.
BITEXACT = {"flags": "+bitexact"}, {"fflags": "+bitexact"}
# The files that are opened as clips. All that FFmpeg knows would include playlists, which name other files and URLs.
FORMATS = "apng,png_pipe,avi,matroska,webm,mov,mp4,mjpeg"
# The decoders that clips may need, as FFmpeg calls them: those of its hundreds that data sets of clips come in.
DECODERS = "apng,png,mjpeg,rawvideo,ffv1,prores,dvvideo,h263,h264,hevc,vp8,vp9,av1,libdav1d"
DECODERS += ",mpeg1video,mpeg2video,mpeg4,msmpeg4"
MAX_PIXELS = 2**25  # of a frame: 8 x 4 thousand
# A clip whose frames fill less of the time that its file announces has lost its end.
WHOLE_FRAC = 0.9


class BadClip(ValueError):
    """A clip that cannot be used; the message is the reason, to be said behind the clip's name."""


class ClipInfo(NamedTuple):
    """What decoding a whole clip shows."""

    num_frames: int
    size: tuple[int, int]  # (H, W) of every frame as it is shown


def encode_clip(frames: np.ndarray) -> bytes:
    """(T, H, W) grey or (T, H, W, 3) colours, uint8 -> a lossless clip; the same frames give the same bytes."""
    stream_options, file_options = BITEXACT
    pixels = "gray" if frames.ndim == 3 else "rgb24"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=EXTENSION, options=file_options) as file:
        stream: Any = file.add_stream(EXTENSION, rate=FRAMES_PER_S, options=stream_options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=pixels)))
        file.mux(stream.encode())
    return buffer.getvalue()


def decode_clip(data: bytes, wanted: Sequence[int], grey: bool) -> np.ndarray:
    """The frames `wanted` of a clip, in that order; it is decoded from its start to the last of them.

    Args:
        wanted: Indices of frames, not necessarily increasing or different.

    Returns:
        (len(wanted), H, W) if `grey`, else (len(wanted), H, W, 3), uint8, read-only.

    Raises:
        BadClip: if it cannot be decoded, or has not that many frames.
    """
    last, pixels = max(wanted), "gray" if grey else "rgb24"
    needed, found = set(wanted), {}
    with _opened(io.BytesIO(data)) as (_, stream):
        for index, frame in enumerate(_frames(stream)):
            if index in needed:
                found[index] = _upright(frame.to_ndarray(format=pixels), frame.rotation)
            if index == last:
                break
    if last not in found:
        raise BadClip(f"has no frame {last}")
    clip = np.stack([found[index] for index in wanted])
    clip.flags.writeable = False
    return clip


def check_clip(source: BinaryIO) -> ClipInfo:
    """Decode all of a clip, without keeping it. Damage that the decoder hides without a word is not seen.

    Raises:
        BadClip: it is empty, no video, of a codec that is unknown or not read, cut short, damaged, or its frames
            differ in size.
    """
    if not source.read(1):
        raise BadClip("is empty")
    source.seek(0)
    sizes: dict[tuple[int, int], None] = {}
    times: list[float] = []
    with _opened(source) as (file, stream):
        for frame in _frames(stream):
            if frame.is_corrupt:
                raise BadClip(f"is damaged at frame {len(times)}")
            sizes[_shown_size(frame)] = None
            times.append(frame.time or 0.0)
        announced = _announced_s(file, stream)
    if not times:
        raise BadClip("has no frame")
    if len(sizes) > 1:
        pair = " and ".join(f"{width} x {height}" for height, width in list(sizes)[:2])
        raise BadClip(f"has frames of different sizes, {pair}")
    found = (times[-1] - times[0]) * len(times) / max(1, len(times) - 1)  # the last frame is shown as long as others
    if len(times) > 1 and found < WHOLE_FRAC * announced:
        raise BadClip(f"is cut short: frames for {found:.1f} s of {announced:.1f} s")
    return ClipInfo(len(times), next(iter(sizes)))


@contextlib.contextmanager
def _opened(source: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """A file and its first video stream, with FFmpeg's complaints as BadClip."""
    try:
        # Titles are in any encoding.
        options = {"format_whitelist": FORMATS, "codec_whitelist": DECODERS}  # a file is probed while it is opened
        with av.open(source, metadata_errors="ignore", options=options) as file:
            if not file.streams.video:
                raise BadClip("has no video stream")
            stream = file.streams.video[0]
            if stream.codec_context is None:
                raise BadClip("has an unknown codec")
            decoder = stream.codec_context.codec
            if decoder.name not in DECODERS.split(","):
                raise BadClip(f"has a codec that is not read ({decoder.canonical_name})")
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            stream.codec_context.thread_count = 1  # the loader's workers and the checks are the parallel ones
            yield file, stream
    except BadClip:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise BadClip(f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from None


def _frames(stream: Any) -> Iterator[Any]:
    for packet in stream.container.demux(stream):
        if packet.is_corrupt:
            raise BadClip("is cut short")
        yield from packet.decode()


def _shown_size(frame: Any) -> tuple[int, int]:
    """(H, W) once it is upright."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def _announced_s(file: Any, stream: Any) -> float:
    """The length that the file's header says the video has, in seconds; 0 where it says nothing."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    alone = len(file.streams) == 1  # else it may be the length of the sound
    return file.duration / av.time_base if alone and file.duration else 0.0


def _upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """As it is shown: telephones store frames lying and say by how much they must be turned."""
    return np.rot90(pixels, round(rotation / 90)) if rotation else pixels
