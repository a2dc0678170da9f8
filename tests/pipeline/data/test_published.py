"""Shards that somebody has published: used where they are, if they are what their manifest says."""

import hashlib
import json

import pytest

from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import ShardError, load_manifest
from pipeline.data.options import PublishedShardsOptions
from pipeline.data.shards import write_shards
from pipeline.errors import UserError
from tests.pipeline.data.batches import assert_same
from tests.pipeline.data.sources import read_train

pytestmark = pytest.mark.usefixtures("environment")


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
