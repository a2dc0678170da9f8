"""A training that is lost goes back and on, or stops, as the recipe says; and after any death with the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import Suite, Trial
from pipeline.errors import UserError
from pipeline.journal import curves, read_journal
from pipeline.recipe import DivergenceConfig
from pipeline.sweep.plan import plan_experiments
from pipeline.train import divergence
from pipeline.train.divergence import FEWEST, RECENT, Diverged, check, is_snapshot
from pipeline.train.loop import WEIGHTS, FitResult, fit
from tests.pipeline.train.small_suites import Killed

STEPS = 40  # 2 epochs of 400 samples in batches of 20
REWIND = {"action": "rewind", "spike_factor": 3.0, "max_rewinds": 9}


class Accident:
    """Spoils the logits of certain steps, and kills at others, once each."""

    def __init__(self, factors: dict[int, float], kills: tuple[int, ...] = ()) -> None:
        self.factors, self.kills, self.step = factors, list(kills), -1

    def beat(self, place: float, patient: bool) -> None:
        self.step = int(place)

    def wrap(self, model: nn.Module) -> nn.Module:
        accident = self

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, images: Tensor) -> Tensor:
                if accident.step in accident.kills:
                    accident.kills.remove(accident.step)
                    raise Killed
                return self.inner(images) * accident.factors.get(accident.step, 1.0)

        return Net()


@pytest.fixture(scope="module")
def trial(tiny_suite: Suite) -> Trial:
    return next(trial for trial in plan_experiments(tiny_suite) if trial.name == "uniform-4")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots after 8, 16, 20, 28, 36 and 40 steps."""
    monkeypatch.setattr(divergence, "SNAPSHOT_STEPS", 8)


def with_divergence(trial: Trial, **config: Any) -> Trial:
    found = DivergenceConfig.model_validate({**REWIND, **config})
    return trial.model_copy(update={"train": trial.train.model_copy(update={"divergence": found})})


def train(trial: Trial, shards: Path, run_dir: Path, accident: Accident, **options: Any) -> FitResult:
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    options = {"log_every_steps": 5, "checkpoint_every_s": 0, **options}
    return fit(
        trial, shards, run_dir, num_classes=10, wrap=accident.wrap, beat=accident.beat, **options
    )  # fmt: skip


def lines(run_dir: Path) -> dict[str, dict[int, float]]:
    """The curves that do not depend on the clock."""
    found = curves(read_journal(run_dir / "journal.jsonl"))
    return {name: found[name] for name in ("train_loss", "val_loss", "val_top1", "lr")}


def test_without_an_accident_nothing_changes(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    train(trial, tiny_shards, tmp_path / "plain", Accident({}))
    result = train(with_divergence(trial, spike_factor=50.0), tiny_shards, tmp_path / "watched", Accident({}))
    assert (result.rewinds, result.diverged) == ((), "")
    assert (tmp_path / "plain" / WEIGHTS).read_bytes() == (tmp_path / "watched" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("factor", [float("nan"), 1e4])
def test_steps_since_the_snapshot_have_changed_nothing(
    trial: Trial, tiny_shards: Path, tmp_path: Path, factor: float
) -> None:
    """Lost at one step, or at every step since the snapshot: the weights are the same."""
    rewinding = with_divergence(trial)
    one = train(rewinding, tiny_shards, tmp_path / "one", Accident({26: factor}))
    every = train(rewinding, tiny_shards, tmp_path / "every", Accident(dict.fromkeys(range(20, 27), factor)))
    assert [(rewind.at, rewind.to) for rewind in one.rewinds] == [(27, 20)]
    assert [(rewind.at, rewind.to) for rewind in every.rewinds] == [(step + 1, step) for step in range(20, 27)]
    assert one.num_steps == STEPS
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "every" / WEIGHTS).read_bytes()
    text = (tmp_path / "one" / "journal.jsonl").read_text()
    assert "lost at step 27 of 40: " in text
    assert "rewound to step 20" in text


@pytest.mark.parametrize("kills", [(26,), (27,), (28,), (24, 26, 30, 39), (17, 18, 19, 20, 21)])
def test_a_killed_training_rewinds_as_the_one_that_was_not(
    trial: Trial, tiny_shards: Path, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    """Two accidents, the second with no snapshot in between, and one at the end of an epoch."""
    rewinding, factors = with_divergence(trial), {17: 1e4, 19: float("nan"), 26: 1e4, 27: 1e4}
    whole = train(rewinding, tiny_shards, tmp_path / "whole", Accident(factors))
    accident = Accident(factors, kills)
    for _ in kills:
        with pytest.raises(Killed):
            train(rewinding, tiny_shards, tmp_path / "parts", accident)
    parts = train(rewinding, tiny_shards, tmp_path / "parts", accident)
    assert parts.rewinds == whole.rewinds
    assert [rewind.at for rewind in whole.rewinds] == [18, 20, 27, 28]
    assert parts.metrics == whole.metrics
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert (tmp_path / "parts" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_a_lost_training_that_is_to_stop_has_the_weights_before(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    stopping = with_divergence(trial, action="stop", max_rewinds=0)
    result = train(stopping, tiny_shards, tmp_path, Accident({25: 1e4}))
    assert result.diverged == "diverged at step 26 of 40"
    assert (result.num_steps, result.num_samples) == (25, 500)
    assert {"val_loss", "train_loss"} <= result.metrics.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(tmp_path / WEIGHTS).values())


def test_after_the_last_rewind_it_stops_and_says_so(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    accident = Accident(dict.fromkeys((12, 14, 30), float("nan")))
    result = train(with_divergence(trial, max_rewinds=2), tiny_shards, tmp_path, accident)
    assert result.diverged == "diverged at step 31 of 40 after 2 rewinds"
    assert [rewind.at for rewind in result.rewinds] == [13, 15]


def test_weights_that_the_last_step_of_an_epoch_spoilt_are_seen_by_the_validation(
    trial: Trial, tiny_shards: Path, tmp_path: Path
) -> None:
    """One step an epoch, so long that the weights overflow: the gradient that made it was finite."""
    wild = {"global_batch_size": 400, "lr": 1e39, "warmup_frac": 0.0}
    wild_trial = trial.model_copy(update={"train": trial.train.model_copy(update=wild)})
    stopped = train(
        with_divergence(wild_trial, action="stop", max_rewinds=0), tiny_shards, tmp_path / "stop", Accident({})
    )
    assert stopped.diverged == "diverged at step 1 of 2"
    back = train(with_divergence(wild_trial, max_rewinds=1), tiny_shards, tmp_path / "back", Accident({}))
    assert [(rewind.at, rewind.to) for rewind in back.rewinds] == [(1, 0)]
    assert back.diverged == "diverged at step 2 of 2 after 1 rewinds"
    with pytest.raises(UserError, match=r"val_loss = nan: not finite at step 1 of 2, the training diverged"):
        train(wild_trial, tiny_shards, tmp_path / "error", Accident({}))


def test_without_a_word_about_it_the_run_has_no_result(trial: Trial, tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gradient norm = nan: not finite at step 26 of 40, the training diverged"):
        train(trial, tiny_shards, tmp_path, Accident({25: float("nan")}))


def test_a_spike_is_measured_by_the_median_of_the_last_losses() -> None:
    config = DivergenceConfig.model_validate(REWIND)
    recent: tuple[float, ...] = ()
    for i in range(FEWEST):
        recent = check(config, 1.0, 1000.0 ** (i % 2), recent)  # too few to call anything a spike
    for _ in range(2 * RECENT):
        recent = check(config, 1.0, 2.0, recent)
    assert recent == (2.0,) * RECENT
    assert check(config, 1.0, 6.0, recent)[-1] == 6.0
    with pytest.raises(Diverged, match=r"loss 6.1 is above 3 x the median 2 of the last ones"):
        check(config, 1.0, 6.1, recent)


def test_there_is_a_snapshot_at_the_end_of_every_epoch() -> None:
    assert [step for step in range(1, 41) if is_snapshot(step, 20)] == [8, 16, 20, 28, 36, 40]


def test_what_is_not_said_is_no_science_and_what_does_not_go_together_is_refused(trial: Trial) -> None:
    assert "divergence" not in trial.science()["train"]
    assert with_divergence(trial).science()["train"]["divergence"] == REWIND
    with pytest.raises(ValueError, match="0 with stop, at least 1 with rewind"):
        DivergenceConfig.model_validate({**REWIND, "max_rewinds": 0})
