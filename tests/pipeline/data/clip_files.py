"""Small files as people have them: real encoders, a picture that changes from frame to frame."""

from pathlib import Path

import av
import numpy as np

# Suffix -> codec of FFmpeg's.
FORMATS = {"avi": "mpeg4", "mkv": "libx264", "mp4": "libx264", "webm": "libvpx-vp9"}


def ramp(num_frames: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8: slopes whose brightness grows with time."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([2 * x, 3 * y, x + y + 10 * seed], -1)
    return ((base + 9 * np.arange(num_frames)[:, None, None, None]) % 256).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray) -> bytes:
    """Encode (T, H, W, 3) uint8 in the format of the path's suffix, and return the file's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as file:
        stream = file.add_stream(FORMATS[path.suffix[1:]], rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path.read_bytes()
