"""A checkpoint is what was saved, or an older one, or none; and it is nobody else's."""

import os
import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.train.checkpoint import (
    EMA_FILE,
    FILES,
    Identity,
    Position,
    Rewind,
    load_checkpoint,
    save_checkpoint,
)
from pipeline.train.state import take, whole

OURS = Identity("dart_vit_nano_patch8_32", "a" * 64, "b" * 64)


class Training:
    """A model and its optimizer after some steps."""

    def __init__(self, steps: int = 0) -> None:
        self.model = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4))
        group = {"params": list(self.model.parameters()), "names": [n for n, _ in self.model.named_parameters()]}
        self.optimizer = torch.optim.AdamW([group], lr=0.1)
        for _ in range(steps):
            self.model(torch.rand(2, 3)).square().sum().backward()
            self.optimizer.step()

    def save(self, root: Path, step: int) -> None:
        save_checkpoint(root, OURS, Position(step, 1.5, {"val_top1": 0.25}), whole(take(self.model, self.optimizer)))

    def load(self, root: Path, identity: Identity = OURS) -> tuple[Position, list[str]]:
        notes: list[str] = []
        return load_checkpoint(root, identity, self.model, self.optimizer, notes.append), notes

    def tensors(self) -> list[torch.Tensor]:
        states = [self.optimizer.state[parameter] for parameter in self.model.parameters()]
        moments = [state[key] for state in states for key in sorted(state)]
        return [*self.model.state_dict().values(), *moments]


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved, loaded = Training(steps=3), Training()
    saved.save(tmp_path, step=3)
    assert loaded.load(tmp_path) == (Position(3, 1.5, {"val_top1": 0.25}), [])
    assert all(torch.equal(a, b) for a, b in zip(saved.tensors(), loaded.tensors(), strict=True))


def test_without_a_checkpoint_the_position_is_the_start(tmp_path: Path) -> None:
    assert Training().load(tmp_path / "none") == (Position(0, 0.0, {}), [])


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    training = Training(steps=1)
    training.save(tmp_path, step=10)
    training.save(tmp_path, step=20)
    file = tmp_path / "step-00000020" / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] if damage == "cut" else data[:middle] + b"\0" + data[middle + 1 :])
    position, notes = Training().load(tmp_path)
    assert position.step == 10
    assert len(notes) == 1
    assert "step-00000020 is damaged" in notes[0]


def test_a_save_that_was_killed_leaves_nothing_to_load(tmp_path: Path) -> None:
    Training(steps=1).save(tmp_path, step=10)
    unfinished = tmp_path / ".step-00000020.tmp"
    unfinished.mkdir()
    (unfinished / FILES[0]).write_bytes(b"half")
    assert Training().load(tmp_path) == (Position(10, 1.5, {"val_top1": 0.25}), [])


@pytest.mark.parametrize("key", Identity._fields)
def test_a_foreign_checkpoint_is_refused_and_both_are_named(tmp_path: Path, key: str) -> None:
    Training(steps=1).save(tmp_path, step=10)
    with pytest.raises(UserError) as error:
        Training().load(tmp_path, OURS._replace(**{key: "uniform_vit_nano_patch8_32"}))
    assert getattr(OURS, key)[:40] in str(error.value)
    assert "uniform_vit_nano_patch8_32" in str(error.value)


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    training = Training(steps=1)
    for step in (10, 20, 30):
        training.save(tmp_path, step)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


def test_a_damaged_one_that_was_passed_over_goes_with_the_next_save(tmp_path: Path) -> None:
    for step in (1, 2):
        Training(steps=step).save(tmp_path, step)
    (tmp_path / "step-00000002/model.safetensors").write_bytes(b"")
    training = Training()
    assert training.load(tmp_path)[0].step == 1
    Training(steps=1).save(tmp_path, 1)  # as a rewound clock would, or another place to save
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["step-00000001"]


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"state.json": "0"}'])
def test_a_manifest_that_names_nothing_protects_nothing(tmp_path: Path, text: str) -> None:
    Training(steps=1).save(tmp_path, 1)
    (tmp_path / "step-00000001/manifest.json").write_text(text)
    position, notes = Training().load(tmp_path)
    assert position.step == 0
    assert "manifest.json is not as written" in notes[0]


def test_averaged_weights_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    training, average, loaded = Training(steps=1), Training(steps=2).model, Training().model
    position = Position(10, 1.5, {})
    save_checkpoint(tmp_path, OURS, position, whole(take(training.model, training.optimizer, average)))
    other = Training()
    assert load_checkpoint(tmp_path, OURS, other.model, other.optimizer, print, loaded) == position
    found, expected, own = (list(m.state_dict().values()) for m in (loaded, average, training.model))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


def test_a_checkpoint_without_its_averaged_weights_is_damaged(tmp_path: Path) -> None:
    training = Training(steps=1)
    state = whole(take(training.model, training.optimizer, Training().model))
    save_checkpoint(tmp_path, OURS, Position(10, 1.5, {}), state)
    (tmp_path / "step-00000010" / EMA_FILE).unlink()
    notes: list[str] = []
    position = load_checkpoint(tmp_path, OURS, training.model, training.optimizer, notes.append, Training().model)
    assert position.step == 0
    assert "is damaged" in notes[0]


def test_a_position_is_the_same_after_the_journey(tmp_path: Path) -> None:
    training = Training(steps=1)
    position = Position(10, 1.5, {"val_top1": 0.1}, (0.1 + 0.2, 1e-300), (Rewind(9, 4, "gradient norm nan"),))
    save_checkpoint(tmp_path, OURS, position, whole(take(training.model, training.optimizer)))
    assert training.load(tmp_path) == (position, [])


def test_a_full_disk_is_one_sentence_and_what_was_published_stays(tmp_path: Path) -> None:
    """In a process that may not write files as large as the weights."""
    training = Training(steps=1)
    training.save(tmp_path, step=10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(UserError, match=r"no space left on the disk; free some and run the same again$"):
            training.save(tmp_path, step=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Training().load(tmp_path) == (Position(10, 1.5, {"val_top1": 0.25}), [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_folder_that_is_not_ours_to_write_is_one_sentence() -> None:
    """As somebody without rights: who runs the tests may have all of them."""
    with TemporaryDirectory() as name:  # not below a folder that only its owner may enter
        save_without_rights(Path(name))


def save_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    training = Training(steps=1)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            else:
                tmp_path.chmod(0o500)
            training.save(tmp_path / "checkpoint", step=10)
        except UserError as error:
            os._exit(0 if "cannot be written (permission denied)" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
