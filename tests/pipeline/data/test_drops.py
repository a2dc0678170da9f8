"""Damage in shards: every bad sample is found and no good one lost, within a budget, with one order for all."""

import json
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.drops import ALTERED, CUT_OFF, GONE, Drops, find_drops
from pipeline.data.index import ShardError, load_split_index
from pipeline.data.loader import eval_dataset, eval_loader, train_loader
from pipeline.data.order import GlobalBatches, epoch_order, keep, kept_indices
from pipeline.data.transforms import Transform
from pipeline.errors import UserError
from tests.pipeline.data.batches import assert_one_order, load_members


@pytest.fixture
def shards(tiny_shards, tmp_path) -> Path:
    """A copy to damage: train-000000.tar to train-000005.tar, 4 samples each but the last with 3."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "shards"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def span_of(directory: Path, shard: str, key: str, extension: str) -> tuple[int, int]:
    offset, length = dict(load_members(directory)[shard])[key][extension]
    return offset, length


@pytest.fixture
def damaged(shards) -> Path:
    """One flipped byte in a label, one shard cut in its third sample, one shard missing: 1 + 2 + 3 samples of 23."""
    flip(shards / "train-000001.tar", span_of(shards, "train-000001.tar", "train-000006", "cls")[0])
    cut(shards / "train-000002.tar", span_of(shards, "train-000002.tar", "train-000010", "png")[0] + 5)
    (shards / "train-000005.tar").unlink()
    return shards


BAD = (6, 10, 11, 20, 21, 22)


def test_whole_shards_lose_nothing(tiny_shards):
    for frac in (0, 0.5):
        drops = find_drops(tiny_shards, frac)
        assert drops == Drops()
        assert (drops.sha256, drops.indices("train")) == ("", ())


def test_exactly_the_damaged_samples_are_dropped_and_each_says_why(damaged):
    drops = find_drops(damaged, 0.3)
    assert drops.indices("train") == BAD
    assert drops.indices("val") == drops.indices("test") == ()
    assert Counter((drop.split, drop.shard, drop.reason) for drop in drops.drops) == {
        ("train", "train-000001.tar", ALTERED): 1,
        ("train", "train-000002.tar", CUT_OFF): 2,
        ("train", "train-000005.tar", GONE): 3,
    }
    assert [drop.key for drop in drops.drops] == [f"train-{i:06d}" for i in BAD]
    assert len(drops.sha256) == 64
    assert [note.split(": ")[0].rsplit("/", 1)[-1] for note in drops.notes] == [
        f"train-00000{n}.tar" for n in (1, 2, 5)
    ]
    assert drops.notes[1].endswith("2 of its 4 samples are left out")
    assert Drops.from_json(json.loads(json.dumps(drops.to_json()))) == drops


def test_beyond_the_budget_the_shards_and_the_first_samples_are_named(damaged):
    with pytest.raises(UserError) as error:
        find_drops(damaged, 0.25)
    message = str(error.value)
    assert message.startswith("max_bad_frac = 0.25: 6 of 23 samples of train are damaged in their shards ")
    assert "(train-000001.tar 1, train-000002.tar 2, train-000005.tar 3)" in message
    assert "train-000006 has other bytes, train-000010 is cut off" in message
    assert "train-000021 is gone with its shard, and 1 more; run the stage `shard` again, or allow more" in message
    assert find_drops(damaged, 0.25, ["val", "test"]) == Drops()


def test_without_a_budget_any_difference_is_refused_as_ever(damaged):
    with pytest.raises(ShardError, match=r"train-000001\.tar: shard has been altered"):
        find_drops(damaged, 0)


def test_a_split_that_is_gone_is_refused_whatever_the_budget(shards):
    for path in shards.glob("val-*.tar"):
        path.unlink()
    with pytest.raises(UserError, match="5 of 5 samples of val are damaged"):
        find_drops(shards, 0.999)


def test_a_header_that_is_altered_loses_no_sample_and_is_told(shards):
    flip(shards / "train-000003.tar", 140)  # in the time of the first header
    drops = find_drops(shards, 0.1)
    assert drops.drops == ()
    assert drops.sha256 == ""
    assert len(drops.notes) == 1
    assert "train-000003.tar: shard has been altered" in drops.notes[0]
    read_train(shards)


@given(data=st.data())
def test_any_flipped_byte_of_a_member_is_found(tiny_shards, tmp_path_factory, data):
    shards = tmp_path_factory.mktemp("flipped")
    for path in tiny_shards.iterdir():
        (shards / path.name).symlink_to(path)
    index = load_split_index(tiny_shards, "train")
    sample = data.draw(st.integers(0, 22))
    spans = [span for span in index.members[sample].tolist() if span[1]]
    offset, length = data.draw(st.sampled_from(spans))
    path = shards / index.files[index.shards[sample]]
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole)
    flip(path, offset + data.draw(st.integers(0, length - 1)))
    assert find_drops(shards, 0.1, ["train"]).indices("train") == (sample,)


def read_train(directory, **options):
    options = {"global_batch_size": 4, "seed": 3, "epoch": 2, "augment": "flip_crop", "verify": "samples", **options}
    return list(train_loader(directory, **options))


def test_the_order_is_a_permutation_of_what_remains_and_the_samples_are_the_same(damaged, tiny_shards):
    expected = read_train(damaged, dropped=BAD)
    kept = kept_indices(23, BAD)
    seen = torch.cat([indices for *_, indices in expected]).numpy()
    assert np.array_equal(seen, kept[epoch_order(17, 3, 2)][:16])
    assert_one_order(partial(read_train, damaged, dropped=BAD), expected)
    # What a sample looks like depends on its index, not on who else is left out.
    whole = {
        int(i): image
        for images, _, indices in read_train(tiny_shards)
        for image, i in zip(images, indices, strict=True)
    }
    shared = [
        (image, whole[int(i)])
        for images, _, indices in expected
        for image, i in zip(images, indices, strict=True)
        if int(i) in whole
    ]
    assert len(shared) > 10
    assert all(torch.equal(a, b) for a, b in shared)


def test_an_evaluation_reads_what_remains_once(damaged):
    seen = [
        i
        for rank in range(3)
        for *_, indices in eval_loader(damaged, "train", 4, rank, 3, verify="samples", dropped=BAD)
        for i in indices.tolist()
    ]
    assert seen == eval_dataset(damaged, "train", "samples", dropped=BAD).kept.tolist()
    assert sorted([*seen, *BAD]) == list(range(23))


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_damaged_sample_that_was_not_dropped_is_named_while_reading(damaged, loader_workers):
    folder = re.escape(str(damaged))  # the sentence begins with it, whichever process says it
    with pytest.raises(ShardError, match=rf"^{folder}/train-000001\.tar: sample train-000006: its bytes are not those"):
        read_train(damaged, dropped=BAD[1:], loader_workers=loader_workers)
    with pytest.raises(ShardError, match=rf"^{folder}/train-000005\.tar: shard cannot be read.*[^\n]\Z"):
        read_train(damaged, dropped=BAD[:3], loader_workers=loader_workers)


class Refusing(Transform):
    def __call__(self, pixels, index, repeat=0):
        raise UserError("a = 1: wrong\nb = 2: wrong too; mend both")


def test_a_refusal_of_several_lines_comes_whole_from_a_worker(tiny_shards):
    loader = eval_loader(tiny_shards, "val", 2, loader_workers=1)
    loader.dataset.transform = Refusing()
    with pytest.raises(UserError) as refusal:
        list(loader)
    assert str(refusal.value) == "a = 1: wrong\nb = 2: wrong too; mend both"


@given(
    num_samples=st.integers(2, 200),
    dropped=st.sets(st.integers(0, 199), max_size=50),
    repeats=st.integers(1, 3),
    world_size=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_left_out_samples_never_come_and_the_others_as_often_as_without_repeats_on_any_world(
    num_samples, dropped, repeats, world_size, seed
):
    dropped = sorted(i for i in dropped if i < num_samples)
    kept = num_samples - len(dropped)
    if kept < world_size:
        return
    ranks = [
        list(keep(GlobalBatches(kept, world_size, seed, 0, r, world_size, aug_repeats=repeats), num_samples, dropped))
        for r in range(world_size)
    ]
    draws = [draw for shares in zip(*ranks, strict=True) for share in shares for draw in share]
    assert len(draws) == kept // world_size * world_size
    assert not {draw % num_samples for draw in draws} & set(dropped)
    assert len(set(draws)) == len(draws)
    assert all(draw // num_samples < repeats for draw in draws)
