"""kinetics400 and ssv2: published clips, from the user's own copy.

Fetching copies nothing: it decodes every clip once, on all cores, and writes down a listing with hashes. What cannot
be used is listed with its reason and left out, as long as it is no more than `max_bad_frac` of all clips. Sharding
stores the files' bytes as they are and refuses a file that has changed since. The published validation part is the
test split; val is taken from train, by count. Checking takes hours: a fetch that was killed or refused goes on from the
clips that were found whole.
"""

import contextlib
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pipeline.data.catalog import SPLITS, Encoded, Sample
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import read_listed, refuse_too_many
from pipeline.data.options import VideoFolderOptions
from pipeline.data.published import choose_splits
from pipeline.data.video import BadClip, ClipInfo, check_clip
from pipeline.data.video_layouts import Candidate, Layout, read_kinetics, read_ssv2
from pipeline.errors import UserError, problem
from pipeline.files import write_json_atomic
from pipeline.provenance import usable_cores

LISTING = "listing.json"
CHECKED = "checked.jsonl"  # only while the fetch is not finished
LAYOUTS = {"kinetics400": read_kinetics, "ssv2": read_ssv2}


class Checked(NamedTuple):
    """A clip that was decoded to its end."""

    clip: Candidate
    sha256: str
    info: ClipInfo


Stamp = tuple[str, int, int]  # path, size in bytes and time of the last change in ns: the same file as before


class Memory:
    """The clips that were found whole, in a file of JSON lines; what was bad is looked at again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Stamp, tuple[str, ClipInfo]] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # the line that was being written when the process was killed
                name, size, changed, sha256, num_frames, (height, width) = json.loads(line)
                self._known[name, size, changed] = sha256, ClipInfo(num_frames, (height, width))

    def find(self, clip: Candidate, stamp: Stamp) -> Checked | None:
        """The clip as it was found, if its file has not changed since."""
        return Checked(clip, *self._known[stamp]) if stamp in self._known else None

    def add(self, stamp: Stamp, found: Checked) -> None:
        """Write a line, at once and as a whole: threads may do so side by side."""
        line = json.dumps([*stamp, found.sha256, *found.info])
        with self._path.open("ab", buffering=0) as file:
            file.write(f"\n{line}".encode())  # the end of a line may be missing


def fetch(options: VideoFolderOptions, raw_dir: Path) -> None:
    """Check every clip and write listing.json.

    Raises:
        UserError: if the folder is no copy of the data set, or more of its clips are bad than `max_bad_frac` allows.
    """
    root = Path(options.path).expanduser()
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    layout = LAYOUTS[options.name](root)
    checked, dropped = check_clips(root, layout, Memory(raw_dir / CHECKED))
    refuse_too_many(options.max_bad_frac, len(checked) + len(dropped), dropped, "clips")
    splits = choose_splits([c.clip.part != "train" for c in checked], options)
    clips = [
        {"file": c.clip.file, "label": layout.class_names.index(c.clip.class_name), "split": split,
         "sha256": c.sha256, **c.info._asdict()}
        for c, split in zip(checked, splits, strict=True)
    ]  # fmt: skip
    for split in SPLITS:
        if split not in splits:
            raise UserError(problem("dataset.path", str(root), f"no clip for the split {split}", "add clips"))
    write_json_atomic(raw_dir / LISTING, {"class_names": layout.class_names, "clips": clips, "dropped": dropped})
    (raw_dir / CHECKED).unlink(missing_ok=True)


def load_class_names(options: VideoFolderOptions, raw_dir: Path) -> list[str]:
    """As published; ssv2's templates without their brackets."""
    return _listing(raw_dir)["class_names"]


def load_dropped(options: VideoFolderOptions, raw_dir: Path) -> list[Dropped]:
    """The clips that cannot be used, each with its reason."""
    return [Dropped(*pair) for pair in _listing(raw_dir)["dropped"]]


def load_samples(options: VideoFolderOptions, raw_dir: Path, split: str) -> LazySamples:
    """The clips of a split, as the bytes they came in; raises UserError on a clip that has changed."""
    root = Path(options.path).expanduser()
    clips = [clip for clip in _listing(raw_dir)["clips"] if clip["split"] == split]

    def make(index: int) -> Sample:
        clip = clips[index]
        path = root / clip["file"]
        height, width = clip["size"]
        stored = Encoded(
            read_listed(path, clip["sha256"], "clip"), path.suffix[1:].lower(), (height, width), clip["num_frames"]
        )
        return Sample(f"{split}-{index:06d}", stored, clip["label"], (clip["sha256"],))

    return LazySamples(len(clips), make)


def check_clips(root: Path, layout: Layout, memory: Memory) -> tuple[list[Checked], list[Dropped]]:
    """Decode every clip; what is missing, damaged, or in the data set already is dropped.

    Of two copies the one of the published validation part stays, so that no test clip is trained on.
    """
    clips = dict.fromkeys(layout.clips)  # annotated twice is once
    order = sorted(clips, key=lambda clip: clip.part == "train")  # stable: val first
    with ThreadPoolExecutor(usable_cores()) as pool:  # decoding releases the interpreter
        try:
            found = pool.map(lambda clip: check_file(root, clip, memory), order)
            results = list(tqdm(found, desc="check", total=len(order), unit="clip", disable=None))
        finally:
            pool.shutdown(cancel_futures=True)  # who interrupts it need not wait for the rest
    first: dict[str, str] = {}
    kept: dict[Candidate, Checked] = {}
    dropped = list(layout.missing)
    for result in results:
        if isinstance(result, Dropped):
            dropped.append(result)
        elif result.sha256 in first:
            dropped.append(Dropped(result.clip.file, f"is a copy of another clip: {first[result.sha256]}"))
        else:
            first[result.sha256] = result.clip.file
            kept[result.clip] = result
    return [kept[clip] for clip in clips if clip in kept], sorted(dropped)


def check_file(root: Path, clip: Candidate, memory: Memory) -> Checked | Dropped:
    """One clip, read and decoded, unless it was before."""
    path = root / clip.file
    try:
        stat = path.stat()
        stamp = str(path), stat.st_size, stat.st_mtime_ns
        if known := memory.find(clip, stamp):
            return known
        data = path.read_bytes()
        checked = Checked(clip, hashlib.sha256(data).hexdigest(), check_clip(io.BytesIO(data)))
    except BadClip as error:
        return Dropped(clip.file, str(error))
    except OSError as error:
        return Dropped(clip.file, f"cannot be read ({error.strerror})")
    memory.add(stamp, checked)
    return checked


def _listing(raw_dir: Path) -> dict:
    return json.loads((raw_dir / LISTING).read_text())
