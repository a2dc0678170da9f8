"""Order is arithmetic: the same global batches for any ranks, loader workers and resume points."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.order import GlobalBatches, epoch_order, eval_batches, keep
from pipeline.data.transforms import Transform
from pipeline.errors import UserError
from tests.pipeline.data.batches import assert_one_order, assert_same

seeds = st.integers(0, 2**32)


def global_batches(num_samples, batch, seed, epoch, world_size, start_batch=0):
    """What all ranks read together, batch by batch."""
    ranks = [GlobalBatches(num_samples, batch, seed, epoch, r, world_size, start_batch) for r in range(world_size)]
    return [[i for share in shares for i in share] for shares in zip(*ranks, strict=True)]


@given(num_samples=st.integers(1, 500), seed=seeds, epoch=st.integers(0, 1000))
@settings(deadline=None)
def test_an_epoch_is_a_permutation(num_samples, seed, epoch):
    order = epoch_order(num_samples, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(num_samples))


@given(
    world_size=st.integers(1, 8),
    share=st.integers(1, 7),
    num_batches=st.integers(1, 12),
    rest=st.integers(0, 6),
    cut=st.integers(0, 12),
    seed=seeds,
    epoch=st.integers(0, 1000),
)
@settings(deadline=None)
def test_global_batches_are_slices_of_the_order_on_any_world_and_after_any_resize(
    world_size, share, num_batches, rest, cut, seed, epoch
):
    batch = world_size * share
    num_samples = num_batches * batch + min(rest, batch - 1)
    order = epoch_order(num_samples, seed, epoch).tolist()
    expected = [order[b * batch : (b + 1) * batch] for b in range(num_batches)]
    assert global_batches(num_samples, batch, seed, epoch, world_size) == expected
    # Stopped after `cut` batches on this many ranks, resumed on one.
    assert global_batches(num_samples, batch, seed, epoch, world_size, cut) == expected[cut:]
    assert global_batches(num_samples, batch, seed, epoch, 1, cut) == expected[cut:]
    resumed = GlobalBatches(num_samples, batch, seed, epoch, start_batch=cut)
    assert (len(resumed), resumed.num_batches) == (len(expected[cut:]), num_batches)


@given(
    share=st.integers(1, 3),
    worlds=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    repeats=st.integers(1, 3),
    paired=st.booleans(),
    dropped=st.sets(st.integers(0, 10)),
    seed=seeds,
)
@settings(max_examples=50)
def test_any_chain_of_resizes_reads_the_same_global_batches(share, worlds, cuts, repeats, paired, dropped, seed):
    batch = share * 2 * math.lcm(*worlds)  # at most 5040
    num_samples = 4 * batch + len(dropped) + 3
    kept, left_out = num_samples - len(dropped), sorted(dropped)

    def read(world_size, start, stop):
        ranks = [
            list(
                keep(GlobalBatches(kept, batch, seed, 1, r, world_size, start, repeats, paired), num_samples, left_out)
            )
            for r in range(world_size)
        ]
        return [join_shares(shares, paired) for shares in zip(*ranks, strict=True)][: stop - start]

    found, start = [], 0
    for world_size, cut in zip(worlds, cuts, strict=False):  # killed after `cut` batches, resumed on the next size
        found += read(world_size, start, start + cut)
        start = len(found)
    assert found + read(worlds[-1], start, 4) == read(1, 0, 4)


def join_shares(shares, paired):
    """A global batch of what the ranks read of it."""
    if not paired:
        return [draw for share in shares for draw in share]
    half = len(shares[0]) // 2
    front = [draw for share in shares for draw in share[:half]]
    return front + [draw for share in reversed(shares) for draw in share[half:]]


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(num_samples=st.integers(0, 300), batch=st.integers(1, 40), world_size=st.integers(1, 12))
@settings(deadline=None)
def test_evaluation_sees_every_sample_exactly_once_in_order(num_samples, batch, world_size):
    ranks = [eval_batches(num_samples, batch, rank, world_size) for rank in range(world_size)]
    assert [i for batches in ranks for part in batches for i in part] == list(range(num_samples))
    # Whole batches: a sample's batch mates are the same on any number of ranks.
    assert [part for batches in ranks for part in batches] == eval_batches(num_samples, batch)
    assert all(len(part) == batch for part in eval_batches(num_samples, batch)[:-1])


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"global_batch_size = 10: not a multiple of world_size \(3\); try 9"):
        GlobalBatches(100, 10, 0, 0, world_size=3)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"global_batch_size = 50: more than the 23 samples .*; at most 23"):
        GlobalBatches(23, 50, 0, 0)


def read_train(directory, **options):
    options = {"global_batch_size": 6, "seed": 3, "epoch": 2, "augment": "flip_crop", **options}
    return list(train_loader(directory, **options))


def test_loader_workers_ranks_and_resume_change_no_byte(tiny_shards):
    expected = read_train(tiny_shards)
    assert torch.cat([indices for *_, indices in expected]).tolist() == epoch_order(23, 3, 2)[:18].tolist()
    assert [tuple(images.shape) for images, *_ in expected] == [(6, 1, 24, 24)] * 3
    assert_one_order(partial(read_train, tiny_shards), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "then", "size", "cut"),
    [(1, 2, 4, 3), (2, 3, 6, 2), (3, 6, 6, 1), (4, 2, 4, 4), (5, 1, 5, 2), (6, 3, 6, 2), (7, 1, 7, 1), (8, 4, 8, 1)],
)
def test_ranks_and_loader_workers_read_what_one_process_does(tiny_shards, world_size, then, size, cut):
    """Real loaders of 1 to 8 ranks with 0 to 4 workers each, cut and resumed on another number of ranks."""
    expected = read_train(tiny_shards, global_batch_size=size)
    assert_same(read_on_ranks(tiny_shards, size, world_size, 3 * world_size % 5), expected)
    assert_same(read_on_ranks(tiny_shards, size, then, cut % 3, start_batch=cut), expected[cut:])


def read_on_ranks(directory, size, world_size, loader_workers, **options):
    options = {"global_batch_size": size, "world_size": world_size, "loader_workers": loader_workers, **options}
    ranks = [read_train(directory, rank=rank, **options) for rank in range(world_size)]
    return [tuple(map(torch.cat, zip(*shares, strict=True))) for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_two_ranks_evaluate_every_sample_once(tiny_shards, loader_workers):
    seen = []
    for rank in range(2):
        for images, labels, indices in eval_loader(tiny_shards, "test", 3, rank, 2, loader_workers):
            assert images.dtype == torch.float32
            assert len(images) == len(labels) == len(indices)
            seen += indices.tolist()
    assert sorted(seen) == list(range(11))


def test_reading_leaves_the_global_random_state_alone(tiny_shards):
    before = torch.get_rng_state()
    read_train(tiny_shards)
    list(eval_loader(tiny_shards, "val", 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_can_be_sent_to_another_process(tiny_shards):
    dataset = ShardDataset(tiny_shards, "train", Transform("flip_crop", seed=1))
    image, label, index = dataset[5]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5][0], image)
    assert copy[5][1:] == (label, index) == (label, 5)
