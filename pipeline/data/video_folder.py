"""kinetics400 and ssv2: published clips, from the user's own copy.

Fetching copies nothing: it decodes every clip once, on all cores or nodes, and writes down a listing with hashes. What
cannot be used is listed with its reason and left out, as long as it is no more than `max_bad_frac` of all clips.
Sharding stores the files' bytes as they are and refuses a file that has changed since. The published validation part is
the test split; val is taken from train, by count. Checking takes hours: a fetch that was killed or refused goes on from
the clips that were found whole.
"""

import functools
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from pipeline.data.catalog import SPLITS, Encoded, Sample
from pipeline.data.checking import CHECKED, Found, How, check_all
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import read_listed, refuse_too_many
from pipeline.data.options import VideoFolderOptions
from pipeline.data.published import choose_splits
from pipeline.data.video import BadClip, ClipInfo, check_clip
from pipeline.data.video_layouts import Candidate, Layout, read_kinetics, read_ssv2
from pipeline.errors import UserError, problem
from pipeline.files import write_json_atomic
from pipeline.placement import Placement

LISTING = "listing.json"
CLIPS = How("clip", group_size=32, little=64)
LAYOUTS = {"kinetics400": read_kinetics, "ssv2": read_ssv2}


class Checked(NamedTuple):
    """A clip that was decoded to its end."""

    clip: Candidate
    sha256: str
    info: ClipInfo


def fetch(options: VideoFolderOptions, raw_dir: Path, placement: Placement | None = None) -> None:
    """Check every clip and write listing.json.

    Raises:
        UserError: if the folder is no copy of the data set, or more of its clips are bad than `max_bad_frac` allows.
    """
    root = Path(options.path).expanduser()
    if not root.is_dir():
        raise UserError(problem("dataset.path", str(root), "no such directory"))
    layout = LAYOUTS[options.name](root)
    checked, dropped = check_clips(root, layout, raw_dir / CHECKED, placement)
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
    shutil.rmtree(raw_dir / CHECKED, ignore_errors=True)


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


def check_clips(
    root: Path, layout: Layout, memory: Path, placement: Placement | None
) -> tuple[list[Checked], list[Dropped]]:
    """Decode every clip; what is missing, damaged, or in the data set already is dropped.

    Of two copies the one of the published validation part stays, so that no test clip is trained on.
    """
    clips = dict.fromkeys(layout.clips)  # annotated twice is once
    order = sorted(clips, key=lambda clip: clip.part == "train")  # stable: val first
    check, files_of = functools.partial(check_file, root), functools.partial(find_files, root)
    results = check_all(check, order, files_of, CLIPS, memory, placement)
    first: dict[str, str] = {}
    kept: dict[Candidate, Checked] = {}
    dropped = list(layout.missing)
    for clip, (sha256, *others) in zip(order, results, strict=True):
        if not sha256:
            dropped.append(Dropped(clip.file, *others))
        elif sha256 in first:
            dropped.append(Dropped(clip.file, f"is a copy of another clip: {first[sha256]}"))
        else:
            first[sha256] = clip.file
            num_frames, (height, width) = others
            kept[clip] = Checked(clip, sha256, ClipInfo(num_frames, (height, width)))
    return [kept[clip] for clip in clips if clip in kept], sorted(dropped)


def check_file(root: Path, clip: Candidate) -> Found:
    """(sha256, number of frames, (H, W)) of a clip that was decoded to its end, or ("", why it is bad)."""
    try:
        data = (root / clip.file).read_bytes()
        return hashlib.sha256(data).hexdigest(), *check_clip(io.BytesIO(data))
    except BadClip as error:
        return "", str(error)
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"


def find_files(root: Path, clip: Candidate) -> list[Path]:
    """The file of a clip."""
    return [root / clip.file]


def _listing(raw_dir: Path) -> dict:
    return json.loads((raw_dir / LISTING).read_text())
