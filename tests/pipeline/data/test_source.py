"""Shards elsewhere: the same bytes in the same order from the disk, the cache and ranges; every refusal a sentence."""

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data import source_remote
from pipeline.data.cache import ShardCache, _remove_unused
from pipeline.data.dataset import ShardDataset
from pipeline.data.drops import CUT_OFF, UNREADABLE, Drops, find_drops
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import ShardError, load_manifest
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.options import PublishedShardsOptions
from pipeline.data.shards import write_shards
from pipeline.data.source import open_source, write_source
from pipeline.data.transforms import Transform
from pipeline.data.verify import verify_shards
from pipeline.errors import UserError
from tests.pipeline.data.batches import assert_one_order, assert_same


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> Path:
    """An empty cache, a trusted server, and no waiting for a network that is none."""
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1")
    monkeypatch.setenv("DART_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source_remote, "WAITS_S", (0.0, 0.0))
    source_remote._SIZES.clear()  # servers come and go on the same port
    return tmp_path / "cache"


def elsewhere(tiny_shards: Path, folder: Path, url: str) -> Path:
    """Manifest and index here, the tars at `url`."""
    folder.mkdir()
    for name in ("manifest.json", "index.json"):
        shutil.copy(tiny_shards / name, folder / name)
    write_source(folder, url)
    return folder


@pytest.fixture
def served(tiny_shards, tmp_path, server) -> Path:
    """The tars on the server."""
    server.files = {path.name: path.read_bytes() for path in tiny_shards.glob("*.tar")}
    return elsewhere(tiny_shards, tmp_path / "served", server.url)


def read_train(directory, **options):
    options = {"global_batch_size": 6, "seed": 3, "epoch": 2, "augment": "flip_crop", **options}
    return list(train_loader(directory, **options))


def num_cached(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


@pytest.mark.parametrize("limit_gb", ["0", "1", "0.000025"])  # ranges, all in the cache, three shards or four
def test_ranges_and_cache_change_no_byte(served, tiny_shards, environment, monkeypatch, limit_gb):
    monkeypatch.setenv("DART_SHARD_CACHE_GB", limit_gb)
    expected = read_train(tiny_shards)
    assert_same(read_train(served), expected)
    assert_one_order(partial(read_train, served), expected)
    assert_same(list(eval_loader(served, "test", 4)), list(eval_loader(tiny_shards, "test", 4)))
    if limit_gb == "0.000025":
        assert 0 < num_cached(environment) < 9
        assert sum(path.stat().st_size for path in environment.iterdir()) <= 25_000
    else:
        assert num_cached(environment) == (0 if limit_gb == "0" else 9)


def test_a_mounted_folder_by_its_url(tiny_shards, tmp_path):
    mounted = elsewhere(tiny_shards, tmp_path / "mounted", tiny_shards.as_uri())
    assert_same(read_train(mounted), read_train(tiny_shards))


def test_each_shard_is_downloaded_once_and_later_runs_ask_for_nothing(served, server):
    read_train(served)
    asked = len(server.ranges)
    assert asked == 6  # shards of 4 samples: one piece each
    read_train(served, epoch=3)
    read_train(served, loader_workers=2)
    assert len(server.ranges) == asked


def sum_of_pixels(directory: Path) -> float:
    dataset = ShardDataset(directory, "train", Transform())
    return sum(float(dataset[i][0].sum()) for i in range(len(dataset)))


def test_processes_of_a_node_share_one_download(served, server, tiny_shards):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as processes:
        found = list(processes.map(sum_of_pixels, [served] * 4))
    assert found == [sum_of_pixels(tiny_shards)] * 4
    assert len(server.ranges) == 6


def test_a_source_can_be_sent_to_another_process(served):
    dataset = ShardDataset(served, "train", Transform())
    image = dataset[5][0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[5][0], image)


def test_a_server_that_is_busy_or_hangs_up_is_asked_again(served, server, tiny_shards, monkeypatch):
    monkeypatch.setenv("DART_SHARD_CACHE_GB", "0")
    expected = read_train(tiny_shards)
    server.busy = 2
    server.hang_up_after = 100
    assert_same(read_train(served), expected)


def test_a_busy_server_is_one_sentence_in_the_end(served, server):
    dataset = ShardDataset(served, "train", Transform())
    server.busy = 100
    with pytest.raises(UserError, match=r"folder/train-000000\.tar: cannot be read: the server answers 503"):
        dataset[0]


def test_a_missing_shard_is_named_before_anything_is_read(served, server):
    del server.files["train-000002.tar"]
    with pytest.raises(ShardError, match=r"http://127\.0\.0\.1:\d+/folder/train-000002\.tar: shard is missing"):
        verify_shards(served)
    server.files["train-000002.tar"] = b"short"
    with pytest.raises(ShardError, match=r"train-000002\.tar: shard is truncated or overwritten: 5 bytes"):
        verify_shards(served)


@pytest.mark.parametrize("limit_gb", ["0", "1"])
def test_altered_bytes_are_never_cached_nor_given_to_a_model(served, server, environment, monkeypatch, limit_gb):
    monkeypatch.setenv("DART_SHARD_CACHE_GB", limit_gb)
    data = bytearray(server.files["train-000001.tar"])
    data[515] ^= 1  # in the box of its first sample
    server.files["train-000001.tar"] = bytes(data)
    verify_shards(served)  # of the same length
    dataset = ShardDataset(served, "train", Transform())
    assert dataset[5][2] == 5
    with pytest.raises(ShardError, match=r"train-000001\.tar: sample train-000004: its bytes are not those"):
        dataset[4]
    assert num_cached(environment) == 0
    assert find_drops(served, 0.1).indices("train") == (4,)


def rot(folder: Path) -> None:
    """A flipped bit in the first sample of every cached shard."""
    for path in folder.glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[515] ^= 1
        path.write_bytes(data)


def test_a_cached_shard_that_rots_is_given_up_and_downloaded_anew(served, server, tiny_shards, environment):
    expected = read_train(tiny_shards, global_batch_size=23)
    read_train(served, global_batch_size=23)
    rot(environment)
    assert_same(read_train(served, global_batch_size=23), expected)
    assert num_cached(environment) == 0
    read_train(served, global_batch_size=23)
    assert num_cached(environment) == 6
    rot(environment)
    assert find_drops(served, 0.2, ["train"]) == Drops()


def test_a_copy_that_was_replaced_meanwhile_is_not_removed(shards_of, tmp_path):
    (first, *_), fill = shards_of
    cache = ShardCache(tmp_path / "c", 10**6)
    one, two = (cache.open(first, partial(fill, first)) for _ in range(2))
    cache.remove(first, one)
    assert num_cached(tmp_path / "c") == 0
    os.close(cache.open(first, partial(fill, first)))
    cache.remove(first, two)  # of the first file, which is not there any more
    assert num_cached(tmp_path / "c") == 1


def test_a_cut_shard_costs_the_samples_that_are_cut_off(served, server):
    name = "train-000001.tar"
    server.files[name] = server.files[name][:5000]
    cut = find_drops(served, 0.9, ["train"])
    assert set(cut.indices("train")) < {4, 5, 6, 7}
    assert {drop.reason for drop in cut.drops} == {CUT_OFF}
    server.files[name] = b""
    assert find_drops(served, 0.9, ["train"]).indices("train") == (4, 5, 6, 7)


def test_a_disk_that_cannot_be_read_costs_its_samples(tiny_shards, tmp_path):
    """The memory of this process stands for it: it can be opened, and its first bytes give an I/O error."""
    shards = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    (shards / "train-000001.tar").unlink()
    (shards / "train-000001.tar").symlink_to("/proc/self/mem")
    found = find_drops(shards, 0.9, ["train"])
    assert [(drop.sample, drop.reason) for drop in found.drops] == [(i, UNREADABLE) for i in (4, 5, 6, 7)]
    shard = load_manifest(shards).split("train").shards[1]
    with pytest.raises(ShardError, match=r"train-000001\.tar: shard cannot be read: Input/output error"):
        open_source(shards).sha256(shard)


@pytest.mark.parametrize("tells_length", [True, False])
def test_an_answer_is_never_longer_than_what_was_asked_for(served, server, tells_length):
    dataset = ShardDataset(served, "train", Transform())
    server.sends_all, server.tells_length = True, tells_length
    server.files["train-000000.tar"] = bytes(2**23)
    with pytest.raises(UserError, match=r"sends more than the \d+ bytes that were asked for; copy the shards"):
        dataset[0]
    server.sends_all, server.files["manifest.json"] = False, bytes(1000)
    with pytest.raises(UserError, match=r"manifest\.json: has more than 99 bytes"):
        source_remote.read_file(server.url, "manifest.json", 99)


def test_a_cache_that_is_no_folder_means_ranges(served, tiny_shards, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DART_SHARD_CACHE", str(tmp_path / "file/cache"))
    assert_same(read_train(served), read_train(tiny_shards))


def test_a_server_without_ranges_is_one_sentence(served, server):
    server.knows_range = False
    with pytest.raises(UserError, match="the server does not know ranges, it sends whole files"):
        read_train(served)


def test_a_redirect_to_a_host_inside_is_refused(served, server, monkeypatch):
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1,elsewhere.lab")
    server.redirects["train-000000.tar"] = "http://169.254.169.254/latest/meta-data"
    dataset = ShardDataset(served, "train", Transform(), verify="samples")
    with pytest.raises(UserError, match=r"url = 'http://169\.254\.169\.254/latest/meta-data'"):
        dataset[0]
    server.redirects["train-000000.tar"] = "https://10.0.0.1/train-000000.tar"
    with pytest.raises(UserError, match=r"its host is not a public one \(10\.0\.0\.1\)"):
        dataset[0]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://bucket/folder", "needs the library s3fs; install s3fs on every node"),
        ("gs://bucket/folder", "needs the library gcsfs"),
        ("http://example.com/folder", "not an address that data is read from"),
        ("https://93.184.216.34/folder?token=abc", "has a query or fragment, which no folder has; leave credentials"),
        ("s3://bucket/folder#abc", "has a query or fragment"),
        ("simplecache::https://example.com/x", "not an address that data is read from"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused_at_once(tiny_shards, tmp_path, url, sentence):
    with pytest.raises(UserError, match=sentence):
        verify_shards(elsewhere(tiny_shards, tmp_path / "refused", url))


def published(tiny_shards, server):
    """The whole folder on the server, and the data set's options."""
    server.files = {path.name: path.read_bytes() for path in tiny_shards.iterdir()}
    sha256 = load_manifest(tiny_shards).sha256
    return PublishedShardsOptions(name="published-shards", url=server.url, manifest_sha256=sha256)


def test_published_shards_are_used_where_they_are(tiny_shards, tmp_path, server):
    options = published(tiny_shards, server)
    fetch_dataset(options, tmp_path / "raw")
    manifest = write_shards(options, tmp_path / "raw", tmp_path / "shards", samples_per_shard=7)
    assert manifest == load_manifest(tiny_shards)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "index.json",
        "manifest.json",
        "source.json",
    ]
    assert_same(read_train(tmp_path / "shards"), read_train(tiny_shards))


def test_another_manifest_or_index_than_the_published_one_is_refused(tiny_shards, tmp_path, server):
    options = published(tiny_shards, server)
    server.files["index.json"] += b" "
    with pytest.raises(ShardError, match=r"index\.json: not the index that manifest\.json was written with"):
        fetch_dataset(options, tmp_path / "raw")
    server.files["manifest.json"] += b" "
    with pytest.raises(UserError, match=r"dataset\.manifest_sha256 = '\w{64}': the manifest in http.* has \w{64}"):
        fetch_dataset(options, tmp_path / "raw")
    del server.files["manifest.json"]
    with pytest.raises(UserError, match=r"folder/manifest\.json: no such file"):
        fetch_dataset(options, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def write_description(server, change) -> PublishedShardsOptions:
    """Manifest and index on the server as `change` leaves them, which names them as they are."""
    manifest, index = (json.loads(server.files[name]) for name in ("manifest.json", "index.json"))
    change(manifest, index)
    server.files["index.json"] = json.dumps(index).encode()
    manifest["index_sha256"] = hashlib.sha256(server.files["index.json"]).hexdigest()
    server.files["manifest.json"] = data = json.dumps(manifest).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    return PublishedShardsOptions(name="published-shards", url=server.url, manifest_sha256=sha256)


def set_span(index, span) -> None:
    index["shards"]["val-000000.tar"][2][1]["png"] = span


DESCRIPTIONS = {
    "no split": (lambda m, i: m["splits"].pop("val"), "splits: "),
    "a split more": (lambda m, i: m["splits"].update(more=m["splits"]["val"]), "splits"),
    "no number": (lambda m, i: m["splits"]["val"].update(num_samples="x"), r"splits\.val\.num_samples"),
    "fewer samples": (lambda m, i: m["splits"]["val"].update(num_samples=4), "the counts of val contradict"),
    "a name that climbs": (lambda m, i: m["splits"]["val"]["shards"][0].update(file=".."), "String should match"),
    "a sum that is none": (lambda m, i: m["splits"]["val"]["shards"][0].update(sha256=".."), "String should match"),
    "no such shard": (lambda m, i: i["shards"].pop("val-000000.tar"), r"index\.json: damaged"),
    "a sample too few": (lambda m, i: i["shards"]["val-000000.tar"].pop(), "other numbers of samples of val"),
    "no sums": (lambda m, i: i.pop("crc32"), r"index\.json: damaged"),
    "a sum too few": (lambda m, i: i["crc32"]["val-000000.tar"].pop(), "other numbers of samples of val"),
    "a list for names": (lambda m, i: i.update(shards=[]), r"index\.json: damaged"),
    "behind the end": (lambda m, i: set_span(i, [1024, 10**13]), "a sample of val lies outside its shard"),
    "behind all numbers": (lambda m, i: set_span(i, [1024, 10**30]), r"index\.json: damaged"),
    "before the start": (lambda m, i: set_span(i, [-1024, 10]), "a sample of val"),
    "nothing": (lambda m, i: set_span(i, None), r"index\.json: damaged"),
    "a key that is none": (lambda m, i: i["shards"]["val-000000.tar"][0].__setitem__(0, 7), "a key of val is no name"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_cannot_be_ours_is_refused_before_anything_is_done_by_it(
    name, tiny_shards, tmp_path, server
):
    change, sentence = DESCRIPTIONS[name]
    published(tiny_shards, server)
    with pytest.raises(UserError, match=sentence):
        fetch_dataset(write_description(server, change), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_limit_that_is_no_number_is_named(served, monkeypatch):
    monkeypatch.setenv("DART_SHARD_CACHE_GB", "lots")
    with pytest.raises(UserError, match="DART_SHARD_CACHE_GB = 'lots': must be a number of gigabytes"):
        open_source(served)


def test_a_damaged_source_file_is_named(served):
    (served / "source.json").write_text("{}")
    with pytest.raises(ShardError, match=r"source\.json: damaged"):
        open_source(served)


@pytest.fixture
def shards_of(tiny_shards):
    """The train shards, and how each is downloaded."""
    shards = load_manifest(tiny_shards).split("train").shards

    def fill(shard, path):
        path.write_bytes((tiny_shards / shard.file).read_bytes())

    return shards, fill


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
