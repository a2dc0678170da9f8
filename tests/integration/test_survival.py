"""kill -9 of a trial and of its stage, Ctrl-C: the same command goes on, to the same bits; `make chaos` does more."""

from pathlib import Path

import pytest

from pipeline.config import load_suite
from pipeline.sweep.plan import plan_experiments
from tests.chaos import stage as real
from tests.chaos.stage import Stage, all_gone, finished, num_epochs, resumes, run_dir, wait_for

EPOCHS = 12


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_death_is_survived(tiny_project: Path, tmp_path: Path) -> None:
    project = tmp_path
    real.prepare(tiny_project, project, EPOCHS)
    stage = Stage(project)
    wait_for(lambda: num_epochs(project, "long") >= 2 and finished(project, "short"), "the first epochs")
    for trainer in stage.trainers():
        trainer.kill()
    wait_for(lambda: resumes(project, "long"), "the retry of a killed trial")
    orphans = stage.trainers()
    stage.process.kill()
    stage.process.communicate()
    assert orphans
    wait_for(lambda: all_gone(orphans), "the end of the trials of a killed stage", 30)  # Ray's idle agents take 60 s

    epochs = num_epochs(project, "long")
    stage = Stage(project)
    wait_for(lambda: num_epochs(project, "long") > epochs, "an epoch after kill -9 of the stage")
    relatives = stage.family()
    stage.interrupt()
    code, output = stage.end(60)
    assert code == 130, output
    assert "2 trials, 1 trainings to do" in output  # the short one was finished before the first death
    assert "the same command goes on from here" in output
    wait_for(lambda: all_gone(relatives), "the end of what Ctrl-C leaves behind", 30)
    assert num_epochs(project, "long") < EPOCHS, "the training was too short to be killed"
    assert not resumes(project, "short")
    assert len(resumes(project, "long")) >= 2
    same_as_undisturbed(project)


def same_as_undisturbed(project: Path) -> None:
    """What is left of the training is done here, and comes to the weights of one that nobody killed."""
    import torch

    from pipeline.train.loop import WEIGHTS, fit

    torch.set_num_threads(1)
    trial = plan_experiments(load_suite("tiny", project / "suites/tiny.yaml"))[1]
    killed, alone = run_dir(project, trial.name), project / "alone"
    assert killed is not None
    alone.mkdir()
    results = [fit(trial, project / "data/tiny/shards", folder, num_classes=10) for folder in (killed, alone)]
    assert len(resumes(project, trial.name)) >= 3
    assert (killed / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()
    assert results[0].metrics == results[1].metrics
