"""Shards elsewhere: the same bytes in the same order from the disk, the cache and ranges; every refusal a sentence."""

import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.data import source_remote
from pipeline.data.dataset import ShardDataset
from pipeline.data.drops import CUT_OFF, UNREADABLE, Drops, find_drops
from pipeline.data.index import ShardError, load_manifest
from pipeline.data.loader import eval_loader
from pipeline.data.source import open_source
from pipeline.data.transforms import Transform
from pipeline.data.verify import verify_shards
from pipeline.errors import UserError
from tests.pipeline.data.batches import assert_one_order, assert_same
from tests.pipeline.data.sources import elsewhere, num_cached, read_train

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def served(tiny_shards, tmp_path, server) -> Path:
    """The tars on the server."""
    server.files = {path.name: path.read_bytes() for path in tiny_shards.glob("*.tar")}
    return elsewhere(tiny_shards, tmp_path / "served", server.url)


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


def test_a_limit_that_was_lowered_is_kept_from_the_next_opening_on(served, environment, monkeypatch):
    monkeypatch.setenv("DART_SHARD_CACHE_GB", "1")
    read_train(served)
    assert num_cached(environment) == 6
    monkeypatch.setenv("DART_SHARD_CACHE_GB", "0.000025")
    open_source(served)
    assert 0 < num_cached(environment) < 6
    assert sum(path.stat().st_size for path in environment.iterdir()) <= 25_000


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


def test_a_limit_that_is_no_number_is_named(served, monkeypatch):
    monkeypatch.setenv("DART_SHARD_CACHE_GB", "lots")
    with pytest.raises(UserError, match="DART_SHARD_CACHE_GB = 'lots': must be a number of gigabytes"):
        open_source(served)


def test_a_damaged_source_file_is_named(served):
    (served / "source.json").write_text("{}")
    with pytest.raises(ShardError, match=r"source\.json: damaged"):
        open_source(served)
