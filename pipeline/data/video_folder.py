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
from pathlib import Path
from typing import NamedTuple

from pipeline.data.catalog import Encoded, Sample
from pipeline.data.checking import CHECKED, Found, How, check_all
from pipeline.data.index import Dropped
from pipeline.data.lazy import LazySamples
from pipeline.data.listed import refuse_too_many
from pipeline.data.listing import finish_listing, load_class_names, load_dropped, load_listing
from pipeline.data.options import VideoFolderOptions
from pipeline.data.places import read_place, read_same
from pipeline.data.published import choose_splits
from pipeline.data.video import BadClip, ClipInfo, check_clip
from pipeline.data.video_layouts import Candidate, Layout, read_kinetics, read_ssv2
from pipeline.errors import UserError, problem
from pipeline.placement import Placement

__all__ = ["fetch", "load_class_names", "load_dropped", "load_samples"]

MAX_BYTES = 1 << 31  # of one clip's file
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
    listing = {"class_names": layout.class_names, "clips": clips, "dropped": dropped}
    finish_listing(root, raw_dir, listing, set(splits), "clip")


def load_samples(options: VideoFolderOptions, raw_dir: Path, split: str) -> LazySamples:
    """The clips of a split, as the bytes they came in; raises UserError on a clip that has changed."""
    root = Path(options.path).expanduser()
    clips = [clip for clip in load_listing(raw_dir)["clips"] if clip["split"] == split]

    def make(index: int) -> Sample:
        clip = clips[index]
        height, width = clip["size"]
        data = read_same(root, [clip["file"]], clip["sha256"], "clip", MAX_BYTES)
        stored = Encoded(data, Path(clip["file"]).suffix[1:].lower(), (height, width), clip["num_frames"])
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
        data = read_place(root, [clip.file], MAX_BYTES)
        return hashlib.sha256(data).hexdigest(), *check_clip(io.BytesIO(data))
    except BadClip as error:
        return "", str(error)
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"


def find_files(root: Path, clip: Candidate) -> list[Path]:
    """The file of a clip."""
    return [root / clip.file]
