"""A real stage under fire, with Ray and MLflow's server: one training that dies in every way, in turn."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.config import load_suite
from pipeline.sweep.plan import plan_experiments
from pipeline.tracking.runs import find_runs
from pipeline.train.loop import WEIGHTS, fit
from tests.chaos import stage as real
from tests.chaos.attempts import attempt
from tests.chaos.ledger import known
from tests.chaos.project import Project
from tests.chaos.report import Row
from tests.chaos.stage import Stage, all_gone, num_epochs, resumes, run_dir, wait_for

EPOCHS = 400  # about a minute of training, so that it is not done before it has died of everything
SILENCE_S = 10.0  # what the suite calls a silent rank here; 60 by default
REPLAY = "pipeline.tracking replay"
TIMED = "images_per_s"
SENTENCES = ("error: ", "interrupted: ")  # how the last word of a stage begins
NAMED_S = 60.0  # a silent rank, and a lost cluster, must be dealt with by then


class UnderFire:
    """A training of several attempts, each killed in another way."""

    def __init__(self, made: Project, folder: Path) -> None:
        self.folder, self.server = folder, Server(folder / "server")
        real.prepare(made.root, folder, EPOCHS)
        placement = {"max_failures": 5, "silence_s": SILENCE_S}
        YAML().dump(
            {"suites": ["tiny"], "placement": placement, "tracking": {"uri": self.server.uri}}, folder / "params.yaml"
        )
        self.stage: Stage | None = None

    def rows(self) -> Iterator[Callable[[], Row]]:
        """In this order; the next goes on from what the one before has left."""
        try:
            for death in (self.kill_trial, self.stop_trial, self.kill_tracker, self.interrupt, self.kill_raylet,
                          self.kill_stage, self.finish):  # fmt: skip
                yield partial(self.told, death)
        finally:
            self.server.kill()
            if self.stage is not None:
                self.stage.process.kill()

    def told(self, death: Callable[[], Row]) -> Row:
        """Its row, also where something did not happen that should have."""
        try:
            return death()
        except AssertionError as error:
            row = Row(f"{death.__name__.replace('_', ' ')} (real processes)")
            row.goes_on([str(error)])
            return row

    def running(self) -> Stage:
        """The stage, started if it is not there, when its training has got on by two epochs."""
        if self.stage is None:
            self.server.start()
            self.stage = Stage(self.folder)
        self.get_on()
        return self.stage

    def get_on(self) -> None:
        """Wait for two epochs more than there are."""
        epochs, stage = num_epochs(self.folder, "long"), self.stage
        assert stage is not None

        def further() -> bool:
            assert stage.process.poll() is None, stage.end(10)
            return num_epochs(self.folder, "long") >= epochs + 2

        wait_for(further, "two more epochs", 180)

    def goes_on(self, row: Row, before: int, within_s: float) -> Row:
        """Wait for the training to be gone on from a checkpoint once more than `before`."""
        start = time.monotonic()
        try:
            wait_for(lambda: len(resumes(self.folder, "long")) > before, "a resume", within_s)
            row.goes_on([])
            row.fault += f" (back in {time.monotonic() - start:.0f} s)"
        except AssertionError as error:
            row.goes_on([str(error)])
        return row

    def kill_trial(self) -> Row:
        stage, before = self.running(), len(resumes(self.folder, "long"))
        for trainer in stage.trainers():
            trainer.kill()
        return self.goes_on(Row("kill -9 of the process that trains"), before, 120)

    def stop_trial(self) -> Row:
        stage, before = self.running(), len(resumes(self.folder, "long"))
        for trainer in stage.trainers():
            trainer.suspend()
        return self.goes_on(Row(f"SIGSTOP of the process that trains, silent for {SILENCE_S:.0f} s"), before, NAMED_S)

    def kill_tracker(self) -> Row:
        self.running()
        self.server.kill()
        row = Row("kill -9 of MLflow's server while it trains")
        self.get_on()
        row.goes_on([])
        return row

    def interrupt(self) -> Row:
        stage = self.running()
        relatives = stage.family()
        stage.interrupt()
        return self.ended(Row("Ctrl-C of a stage"), stage, relatives, code=130, word="the same command goes on")

    def kill_raylet(self) -> Row:
        stage = self.running()
        relatives = stage.family()
        for process in relatives:
            if process.name() == "raylet":
                process.kill()
        return self.ended(Row("kill -9 of the raylet of a stage"), stage, relatives, code=1, word="error")

    def kill_stage(self) -> Row:
        stage = self.running()
        relatives = stage.trainers()
        stage.process.kill()
        return self.ended(Row("kill -9 of a stage"), stage, relatives, code=-signal.SIGKILL, word="")

    def ended(self, row: Row, stage: Stage, relatives: list, code: int, word: str) -> Row:
        """The stage has ended, saying so, and nothing of it is left."""
        start, lost = time.monotonic(), []
        try:
            found, output = stage.end(NAMED_S + 30)
        except subprocess.TimeoutExpired:
            stage.process.kill()
            found, output = stage.end(30)
            lost.append(f"it did not end in {NAMED_S + 30:.0f} s")
        said = [line for line in output.splitlines() if line.startswith(SENTENCES)]
        last = said[-1] if said else "no sentence"
        if found != code or (word and word not in last):
            lost.append(f"exit code {found}: {output[-2000:]}")
        if "Traceback" in output:
            lost.append(f"a traceback was shown: {output[output.index('Traceback') :][:2000]}")
        with suppress(AssertionError):
            wait_for(lambda: all_gone(relatives), "the end of all processes", 30)
        lost += [f"process {process.name()} is left" for process in relatives if not all_gone([process])]
        row.fault += f" (over in {time.monotonic() - start:.0f} s)"
        row.ends(last if word else "nothing, it is dead", lost)
        self.stage = None
        return row

    def finish(self) -> Row:
        """The last attempt is left alone: same weights as undisturbed, and MLflow knows everything once."""
        row = Row("all of these, then the same command to its end")
        self.server.start()
        code, output = Stage(self.folder).end(300)
        if code:
            row.goes_on([f"exit code {code}: {output[-2000:]}"])
            return row
        if REPLAY in output:  # a tracker that is too slow is given up, and the stage says what to do
            subprocess.run([sys.executable, "-m", *REPLAY.split(), "tiny"], cwd=self.folder, check=True)
        row.goes_on([*self.lost_bits(), *self.lost_points()])
        row.fault += f" ({len(resumes(self.folder, 'long'))} times gone on)"
        return row

    def lost_bits(self) -> list[str]:
        """In what the published run differs from one that nobody disturbed."""
        trial = plan_experiments(load_suite("tiny", self.folder / "suites/tiny.yaml"))[1]
        alone, killed = self.folder / "alone", run_dir(self.folder, "long")
        assert killed is not None
        alone.mkdir()
        done = attempt(partial(fit, trial, self.folder / "data/tiny/shards", alone, num_classes=10), alone, limit_s=600)
        if done.error:
            return [done.error]
        published = self.folder / "results/tiny/train" / killed.name / WEIGHTS
        same = published.is_file() and published.read_bytes() == (alone / WEIGHTS).read_bytes()
        return [] if same else ["weights"]

    def lost_points(self) -> list[str]:
        """What the journals have and MLflow has not, or the other way round, or twice."""
        expected: Counter = Counter()
        for run in find_runs("tiny", self.folder / "runs", self.folder / "results"):
            run.poll()
            expected.update((run.key, name, step, value) for (name, step), (value, _) in run.points().items())
        found = known(self.server.folder)["points"]
        # A step that is done again after a death is the same in all but the time that it takes.
        expected, found = (Counter({p: n for p, n in each.items() if p[1] != TIMED}) for each in (expected, found))
        more, fewer = len(found - expected), len(expected - found)
        return [f"MLflow has {more} points too many, {fewer} too few"] if more or fewer else []


class Server:
    """MLflow's, on the loopback interface."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Return when it answers."""
        if self.process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        where = ["--artifacts-destination", f"{self.folder}/artifacts", "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *where, "--workers", "1"],
                env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for(self.answers, "MLflow's server")

    def answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    def kill(self) -> None:
        """With all its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
