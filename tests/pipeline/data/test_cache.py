"""The cache of shards: bounded, shared by processes, and never left with half a file."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.cache import ShardCache, _remove_unused
from pipeline.data.index import load_manifest
from tests.pipeline.data.sources import num_cached


@pytest.fixture
def shards_of(tiny_shards):
    """The train shards, and how each is downloaded."""
    shards = load_manifest(tiny_shards).split("train").shards

    def fill(shard, path):
        path.write_bytes((tiny_shards / shard.file).read_bytes())

    return shards, fill


def test_a_copy_that_was_replaced_meanwhile_is_not_removed(shards_of, tmp_path):
    (first, *_), fill = shards_of
    cache = ShardCache(tmp_path / "c", 10**6)
    one, two = (cache.open(first, partial(fill, first)) for _ in range(2))
    cache.remove(first, one)
    assert num_cached(tmp_path / "c") == 0
    os.close(cache.open(first, partial(fill, first)))
    cache.remove(first, two)  # of the first file, which is not there any more
    assert num_cached(tmp_path / "c") == 1


def test_the_least_recently_opened_goes_first_and_none_that_is_open(shards_of, tmp_path):
    (first, second, third, fourth, *_), fill = shards_of
    limit = first.num_bytes + second.num_bytes + third.num_bytes
    cache = ShardCache(tmp_path / "c", limit)
    files = [cache.open(shard, partial(fill, shard)) for shard in (first, second, third)]
    assert cache.open(fourth, partial(fill, fourth)) is None  # all three are open
    for file in files:
        os.close(file)
    os.close(cache.open(first, partial(fill, first)))  # the second is now the oldest
    assert cache.open(fourth, partial(fill, fourth)) is not None
    names = {path.stem for path in (tmp_path / "c").glob("*.tar")}
    assert names == {shard.sha256 for shard in (first, third, fourth)}
    assert os.pread(cache.open(first, partial(fill, first)), 10**6, 0)[:5] == b"train"


def test_shards_of_the_same_data_set_do_not_push_each_other_out(shards_of, tmp_path):
    (first, second, *_), fill = shards_of
    cache = ShardCache(tmp_path / "c", first.num_bytes, {first.sha256, second.sha256})
    os.close(cache.open(first, partial(fill, first)))
    assert cache.open(second, partial(fill, second)) is None
    other = ShardCache(tmp_path / "c", second.num_bytes, {second.sha256})
    assert other.open(second, partial(fill, second)) is not None
    assert num_cached(tmp_path / "c") == 1


def test_what_a_killed_download_left_is_removed(shards_of, tmp_path):
    (first, second, *_), fill = shards_of
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / f"{first.sha256}.part").write_bytes(bytes(first.num_bytes))
    cache = ShardCache(tmp_path / "c", second.num_bytes, {first.sha256, second.sha256})
    assert cache.open(second, partial(fill, second)) is not None
    assert [path.suffix for path in (tmp_path / "c").iterdir() if path.suffix != ".lock"] == [".tar"]


def test_what_vanishes_while_room_is_made_is_passed_over(shards_of, tmp_path):
    """Another process's download that has just failed; a link to nothing stands for it."""
    (first, *_), fill = shards_of
    (tmp_path / "c").mkdir()
    (tmp_path / "c/gone.part").symlink_to("nothing")
    assert ShardCache(tmp_path / "c", first.num_bytes).open(first, partial(fill, first)) is not None
    assert not _remove_unused(tmp_path / "c/gone.part")


def use_cache(folder: Path, shards: list, directory: Path, seed: int) -> int:
    """Open shards in a random order in a cache that has room for two; how often it was in vain."""
    cache, rng = ShardCache(folder, 2 * max(shard.num_bytes for shard in shards)), np.random.default_rng(seed)
    missed = 0
    for i in rng.integers(0, len(shards), 60):
        file = cache.open(shards[i], lambda path, i=i: path.write_bytes((directory / shards[i].file).read_bytes()))
        missed += file is None
        if file is not None:
            os.close(file)
    return missed


def test_many_processes_may_share_a_cache_that_is_too_small(tiny_shards, tmp_path):
    shards = list(load_manifest(tiny_shards).split("train").shards)
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as processes:
        work = [processes.submit(use_cache, tmp_path / "c", shards, tiny_shards, seed) for seed in range(4)]
        assert sum(done.result() for done in work) < 240
    assert sum(path.stat().st_size for path in (tmp_path / "c").iterdir()) <= 2 * max(s.num_bytes for s in shards)


def test_a_failed_download_leaves_nothing(shards_of, tmp_path):
    (first, *_), _ = shards_of

    def fail(path):
        raise OSError("gone")

    cache = ShardCache(tmp_path / "c", 10**6)
    with pytest.raises(OSError, match="gone"):
        cache.open(first, fail)
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".lock", ".lock"]
