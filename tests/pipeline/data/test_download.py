"""Downloads against a real server on the loopback: resumed, checked, and every failure one sentence."""

import gzip
import hashlib
import io
import socket
import struct
import tarfile

import numpy as np
import pytest

from pipeline.data import cifar10, fashion_mnist
from pipeline.data.catalog import DATASETS, SPLITS
from pipeline.data.dataset import ShardDataset
from pipeline.data.download import RemoteFile, fetch_files
from pipeline.data.fetch import fetch_dataset
from pipeline.data.index import load_manifest
from pipeline.data.options import Cifar10Options, FashionMnistOptions
from pipeline.data.shards import write_shards
from pipeline.data.transforms import Transform
from pipeline.errors import UserError

DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def ours(monkeypatch) -> None:
    """The servers of these tests are inside, and not encrypted."""
    monkeypatch.setenv("DART_TRUSTED_HOSTS", "127.0.0.1")


def remote(name: str, data: bytes) -> RemoteFile:
    return RemoteFile(name, len(data), hashlib.sha256(data).hexdigest())


BLOB = remote("blob", DATA)


@pytest.fixture
def blob_server(server):
    server.files["blob"] = DATA
    return server


def test_a_cut_download_goes_on_where_it_stopped(blob_server, tmp_path):
    blob_server.hang_up_after = 200_000
    with pytest.raises(UserError, match=r"blob: cannot be fetched: .*run the same again, it goes on from here"):
        fetch_files(blob_server.url, (BLOB,), tmp_path)
    assert not (tmp_path / "blob").exists()
    done = (tmp_path / "blob.part").stat().st_size
    assert 100_000 < done <= 200_000
    fetch_files(blob_server.url, (BLOB,), tmp_path)
    assert blob_server.ranges == [None, f"bytes={done}-"]
    assert (tmp_path / "blob").read_bytes() == DATA
    assert not (tmp_path / "blob.part").exists()


def test_a_server_without_ranges_is_asked_for_all_of_it(blob_server, tmp_path):
    (tmp_path / "blob.part").write_bytes(DATA[:1000])
    blob_server.knows_range = False
    fetch_files(blob_server.url, (BLOB,), tmp_path)
    assert (tmp_path / "blob").read_bytes() == DATA


def test_what_is_complete_is_not_fetched_again(blob_server, tmp_path):
    fetch_files(blob_server.url, (BLOB,), tmp_path)
    fetch_files(blob_server.url, (BLOB,), tmp_path)
    assert len(blob_server.ranges) == 1


def test_a_finished_part_needs_no_server(tmp_path):
    (tmp_path / "blob.part").write_bytes(DATA)
    fetch_files("http://127.0.0.1:1/nothing", (BLOB,), tmp_path)
    assert (tmp_path / "blob").read_bytes() == DATA


def test_wrong_sha256_is_refused_and_not_kept(server, tmp_path):
    server.files["blob"] = DATA[:-1] + b"x"
    with pytest.raises(UserError, match=rf"blob: sha256 is \w{{64}}, not the published {BLOB.sha256}"):
        fetch_files(server.url, (BLOB,), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_length_is_refused_before_it_is_read(server, tmp_path):
    server.files["blob"] = DATA + b"more"
    with pytest.raises(UserError, match="blob: has 300004 bytes, the published file 300000"):
        fetch_files(server.url, (BLOB,), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_found_before_anything_is_asked_for(blob_server, tmp_path):
    huge = RemoteFile("blob", 10**18, BLOB.sha256)
    with pytest.raises(UserError, match=r"not enough disk space: 1000000000000\.0 MB to download, .* MB free"):
        fetch_files(blob_server.url, (huge,), tmp_path)
    assert blob_server.ranges == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_what_the_server_answers(server, tmp_path):
    with pytest.raises(UserError, match="folder/blob: the server answers 404"):
        fetch_files(server.url, (BLOB,), tmp_path)


def test_an_unreachable_server_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"cannot be fetched: ConnectionError; is the network up\?"):
            fetch_files(f"http://127.0.0.1:{taken.getsockname()[1]}", (BLOB,), tmp_path)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def fashion(server, monkeypatch) -> FashionMnistOptions:
    """Twelve and five pictures in the published format, on the server."""
    rng = np.random.default_rng(1)
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        server.files[f"{prefix}-images-idx3-ubyte.gz"] = idx(images)
        server.files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8) % 10)
    monkeypatch.setattr(fashion_mnist, "FILES", tuple(remote(n, d) for n, d in server.files.items()))
    return FashionMnistOptions(name="fashion-mnist", val_samples=3, seed=0, url=server.url)


@pytest.fixture
def cifar(server, monkeypatch) -> Cifar10Options:
    """Five batches of four and a test batch of four, in the published format."""
    rng = np.random.default_rng(2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in [*cifar10.BATCHES["train"], *cifar10.BATCHES["test"], "readme.html"]:
            records = rng.integers(0, 256, (4, cifar10.RECORD_BYTES), np.uint8)
            records[:, 0] = [3, 1, 4, 1]
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = records.nbytes
            tar.addfile(info, io.BytesIO(records.tobytes()))
    server.files[cifar10.ARCHIVE] = buffer.getvalue()
    monkeypatch.setattr(cifar10, "FILES", (remote(cifar10.ARCHIVE, buffer.getvalue()),))
    return Cifar10Options(name="cifar10", val_samples=6, seed=0, url=server.url)


def check_end_to_end(options, tmp_path, counts):
    """From the server to shards, twice the same; each published picture in one split."""
    fetch_dataset(options, tmp_path / "raw")
    manifest = write_shards(options, tmp_path / "raw", tmp_path / "shards", 5)
    assert manifest == write_shards(options, tmp_path / "raw", tmp_path / "again", 4 + 1)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == counts
    entry = DATASETS[options.name]
    sources = [
        s for split in SPLITS for sample in entry.samples(options, tmp_path / "raw", split) for s in sample.sources
    ]
    assert len(set(sources)) == len(sources) == sum(counts.values())


def test_fashion_mnist_end_to_end(fashion, tmp_path):
    check_end_to_end(fashion, tmp_path, {"train": 9, "val": 3, "test": 5})
    assert load_manifest(tmp_path / "shards").image_size == (28, 28)
    test = ShardDataset(tmp_path / "shards", "test", Transform())
    published = fashion_mnist.read_idx(tmp_path / "raw" / "t10k-images-idx3-ubyte.gz")
    assert all(np.array_equal(test.image(i), published[i]) for i in range(5))
    assert [test[i][1] for i in range(5)] == [0, 1, 2, 3, 4]


def test_cifar10_end_to_end(cifar, tmp_path):
    check_end_to_end(cifar, tmp_path, {"train": 14, "val": 6, "test": 4})
    test = ShardDataset(tmp_path / "shards", "test", Transform())
    assert test[0][0].shape == (3, 32, 32)
    assert [test[i][1] for i in range(4)] == [3, 1, 4, 1]
    with tarfile.open(tmp_path / "raw" / cifar10.ARCHIVE) as tar:
        file = tar.extractfile("cifar-10-batches-bin/test_batch.bin")
        assert file is not None
        record = file.read(cifar10.RECORD_BYTES)
    assert np.array_equal(test.image(0)[:, :, 0].ravel(), np.frombuffer(record, np.uint8)[1 : 1 + 1024])


def test_an_interrupted_fetch_keeps_its_finished_files(fashion, server, tmp_path):
    lost = "t10k-labels-idx1-ubyte.gz"
    data = server.files.pop(lost)
    with pytest.raises(UserError, match=f"{lost}: the server answers 404"):
        fetch_dataset(fashion, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    server.files[lost] = data
    num_requests = len(server.ranges)
    fetch_dataset(fashion, tmp_path / "raw")
    assert len(server.ranges) == num_requests + 1
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == sorted(server.files)


def test_val_must_leave_something_to_train_on(fashion, tmp_path):
    fetch_dataset(fashion, tmp_path / "raw")
    options = fashion.model_copy(update={"val_samples": 12})
    with pytest.raises(UserError, match=r"val_samples = 12: leaves nothing to train on, .* are 12"):
        write_shards(options, tmp_path / "raw", tmp_path / "shards", 5)
    assert not (tmp_path / "shards").exists()


def test_an_archive_of_something_else_is_one_sentence(cifar, tmp_path):
    with tarfile.open(tmp_path / cifar10.ARCHIVE, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    with pytest.raises(UserError, match="not the binary version of CIFAR-10"):
        cifar10.read_archive(tmp_path / cifar10.ARCHIVE, "train")
