"""What shards are made from, and the room in which they wait until all of them are there."""

import contextlib
import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.catalog import DATASETS, Sample
from pipeline.data.hashes import hash_file
from pipeline.data.members import encode_members
from pipeline.data.options import DatasetOptions
from pipeline.errors import UserError
from pipeline.files import explaining_disk
from pipeline.provenance import hash_json, versions

NUM_TRIED = 32  # samples whose size tells how much room all need
TAR_FRAC = 1.05  # headers and padding, and luck in the choice of those


def anchored(options: DatasetOptions) -> DatasetOptions:
    """The options with the user's folder as a path that means the same wherever a worker stands."""
    path = getattr(options, "path", None)
    return options if path is None else options.model_copy(update={"path": str(Path(path).expanduser().absolute())})


def open_samples(options: DatasetOptions, raw_dir: Path, split: str) -> Sequence[Sample]:
    """The samples of a split. Remembered: a worker writes many shards, and opening may take seconds."""
    stat = raw_dir.stat()
    return _open(options.name, options.model_dump_json(), raw_dir, split, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=3)
def _open(name: str, options: str, raw_dir: Path, split: str, *state: int) -> Sequence[Sample]:
    entry = DATASETS[name]
    return entry.samples(entry.options.model_validate_json(options), raw_dir, split)


def identify(options: DatasetOptions, raw_dir: Path, samples_per_shard: int) -> str:
    """What shards are a function of: the options, the raw data, the code and its libraries; 16 hex digits."""
    raw = {path.relative_to(raw_dir).as_posix(): hash_file(path) for path in raw_dir.rglob("*") if path.is_file()}
    code = {path.name: hash_file(path) for path in Path(__file__).parent.glob("*.py")}
    return hash_json([options.model_dump(mode="json"), raw, samples_per_shard, code, versions()])[:16]


@contextlib.contextmanager
def keeping_parts(out_dir: Path, identity: str) -> Iterator[Path]:
    """A folder beside `out_dir` for finished shards: kept if the block fails, for the next one of the same identity.

    What was kept for another identity is deleted.
    """
    finished = out_dir.with_name(f".{out_dir.name}.parts-{identity}")
    for other in out_dir.parent.glob(f".{out_dir.name}.parts-*"):
        if other != finished:
            shutil.rmtree(other, ignore_errors=True)
    with explaining_disk(out_dir.parent):
        finished.mkdir(parents=True, exist_ok=True)
    try:
        yield finished
    except BaseException:
        if not any(finished.glob("*.json")):
            shutil.rmtree(finished, ignore_errors=True)
        raise
    finally:
        _open.cache_clear()
    shutil.rmtree(finished, ignore_errors=True)


def check_space(finished: Path, splits: Sequence[Sequence[Sample]]) -> None:
    """Raise UserError if all samples, by the size of some of them, need more room than the disk has."""
    num_samples = sum(map(len, splits))
    tried = [_measure(samples[i]) for samples in splits for i in _some(len(samples))]
    wanted = TAR_FRAC * num_samples * sum(tried) / max(1, len(tried))
    there = sum(path.stat().st_size for path in finished.glob("*.tar"))
    free = shutil.disk_usage(finished).free
    if wanted > free + there:
        sizes = f"about {wanted / 1e9:.1f} GB of shards, {free / 1e9:.1f} GB free"
        raise UserError(f"{finished.parent}: not enough disk space: {sizes}; free some and run the same again")


def _some(count: int) -> range:
    return range(0, count, -(-count // (NUM_TRIED // 3)) or 1)


def _measure(sample: Sample) -> int:
    """Bytes that a sample takes in a tar: a header and padding for each of its members."""
    return sum(1024 + len(data) for data in encode_members(sample).values())
