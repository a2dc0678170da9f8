"""Encoded clips: lossless and the same bytes twice where they are ours, every unusable one a reason."""

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.video import DECODERS, BadClip, check_clip, decode_clip, encode_clip
from tests.pipeline.data.clip_files import FORMATS, ramp, write_clip


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)),
    colours=st.booleans(),
    still=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_a_generated_clip_is_lossless_and_the_same_bytes_twice(shape, colours, still, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (*shape, 3) if colours else shape, np.uint8)
    if still:  # encoders leave repeated frames out
        frames[:] = frames[0]
    data = encode_clip(frames)
    assert encode_clip(frames) == data
    assert np.array_equal(decode_clip(data, range(len(frames)), grey=not colours), frames)
    assert check_clip(io.BytesIO(data)) == (shape[0], shape[1:])


def test_any_frames_in_any_order_more_than_once():
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    wanted = [5, 0, 0, 3]
    assert np.array_equal(decode_clip(encode_clip(frames), wanted, grey=True), frames[wanted])


def test_a_frame_that_is_not_there_is_an_error():
    with pytest.raises(BadClip, match="has no frame 3"):
        decode_clip(encode_clip(np.zeros((3, 8, 8), np.uint8)), [0, 3], grey=True)


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_usual_files_are_read(tmp_path, suffix):
    frames = ramp(num_frames=12, height=48, width=64)
    data = write_clip(tmp_path / f"clip.{suffix}", frames)
    assert check_clip(io.BytesIO(data)) == (12, (48, 64))
    seen = decode_clip(data, [0, 7], grey=False)
    assert seen.shape == (2, 48, 64, 3)
    assert np.abs(seen.astype(int) - frames[[0, 7]]).mean() < 12  # lossy, but the frames that were asked for
    assert decode_clip(data, [3], grey=True).shape == (1, 48, 64)


def reason(data: bytes) -> str:
    with pytest.raises(BadClip) as error:
        check_clip(io.BytesIO(data))
    return str(error.value)


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_damaged_files_have_a_reason(tmp_path, suffix):
    data = write_clip(tmp_path / f"clip.{suffix}", ramp(num_frames=30))
    assert reason(b"") == "is empty"
    assert "cannot be decoded" in reason(b"no clip at all" * 9)
    assert "cannot be decoded" in reason(bytes(len(data)))
    for share in (0.3, 0.6):
        assert re.search("is cut short|cannot be decoded|has no frame", reason(data[: int(share * len(data))]))


def test_frames_of_different_sizes_are_told(tmp_path):
    # Two motion-JPEG streams, one behind the other: the format allows every frame its own size.
    parts = []
    for size in (32, 48):
        with av.open(tmp_path / "part.mjpeg", "w") as file:
            stream = file.add_stream("mjpeg", rate=8)
            stream.width = stream.height = size
            stream.pix_fmt = "yuvj420p"
            for _ in range(3):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), "rgb24")))
            file.mux(stream.encode())
        parts.append((tmp_path / "part.mjpeg").read_bytes())
    assert reason(b"".join(parts)) == "has frames of different sizes, 32 x 32 and 48 x 48"


def test_sound_alone_is_no_clip(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(path, "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
    assert reason(path.read_bytes()) == "has no video stream"


def test_an_unknown_codec_is_told(tmp_path):
    data = write_clip(tmp_path / "clip.avi", ramp(num_frames=4))
    assert data.count(b"FMP4") >= 1
    assert reason(data.replace(b"FMP4", b"ZZ99")) == "has an unknown codec"


def test_a_codec_that_no_clips_come_in_is_refused(tmp_path):
    with av.open(tmp_path / "clip.avi", "w") as file:
        stream = file.add_stream("cinepak", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for frame in ramp(num_frames=4, height=48, width=64):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())
    data = (tmp_path / "clip.avi").read_bytes()
    assert reason(data) == "has a codec that is not read (cinepak)"
    with pytest.raises(BadClip, match=r"not read \(cinepak\)"):
        decode_clip(data, [0], grey=False)


def test_every_decoder_that_is_allowed_is_one():
    known = {av.Codec(name, "r").name for name in DECODERS.split(",")}
    assert known == set(DECODERS.split(","))


def test_a_lying_clip_is_set_upright(tmp_path):
    data = bytearray(write_clip(tmp_path / "clip.mp4", ramp(num_frames=4, height=32, width=48)))
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: the transformation lies 40 bytes into the box
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()  # a quarter clockwise
    data[matrix : matrix + 36] = turned
    info = check_clip(io.BytesIO(bytes(data)))
    assert info.size == (48, 32)
    lying = decode_clip((tmp_path / "clip.mp4").read_bytes(), [0], grey=False)[0]
    assert np.array_equal(decode_clip(bytes(data), [0], grey=False)[0], np.rot90(lying, -1))


def test_a_title_in_another_encoding_is_no_reason(tmp_path: Path):
    path = tmp_path / "clip.mkv"
    with av.open(path, "w") as file:
        file.metadata["title"] = "Caf#"
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in ramp(num_frames=4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    data = path.read_bytes().replace(b"Caf#", b"Caf\xe9")
    path.write_bytes(data)
    with pytest.raises(UnicodeDecodeError):
        av.open(path)
    assert check_clip(io.BytesIO(data)) == (4, (48, 64))
    assert decode_clip(data, [3], grey=True).shape == (1, 48, 64)


def test_reading_needs_no_file(tmp_path: Path):
    data = write_clip(tmp_path / "clip.mkv", ramp(num_frames=4))
    (tmp_path / "clip.mkv").unlink()
    assert decode_clip(data, [0, 3], grey=False).shape == (2, 48, 64, 3)
