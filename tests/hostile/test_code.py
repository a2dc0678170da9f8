"""What the code itself never does: pickles read, shells started, archives unpacked, unchecked addresses opened."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "pipeline/tracking/uri.py": {"an address that nobody checks: urllib.request.urlopen"},  # the user's own tracker
    "benchmarks/reading.py": {"Image.open with every decoder"},  # of shards that it wrote itself
}
FILES = [path for package in ("dart", "pipeline", "stages", "benchmarks") for path in (ROOT / package).rglob("*.py")]
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}
UNPACKERS = {"extract", "extractall", "unpack_archive"}
OPENERS = {"requests.get", "requests.post", "urllib.request.urlopen", "urlretrieve", "urllib.request.urlretrieve"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def offences(source: str) -> list[str]:
    """What a source does that it must not, a line each."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipe:"):
            found.append("a pipe: address")
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if name in ("torch.load", "jit.load", "torch.jit.load") and keyword(call, "weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if last == "get_model" and keyword(call, "weights") not in (None, "None"):
            found.append("torchvision's get_model with weights: it loads any pickle")
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") not in (None, "False"):
            found.append("np.load with pickles")
        if name in ("yaml.load", "yaml.unsafe_load") or (last == "YAML" and keyword(call, "typ") == "'unsafe'"):
            found.append("YAML that makes objects")
        if keyword(call, "shell") not in (None, "False") or name in SHELLS:
            found.append(f"a shell, or code from data: {name}")
        if last in UNPACKERS:
            found.append(f"unpacks an archive: {name}")
        if name in OPENERS:
            found.append(f"an address that nobody checks: {name}")
        if last in ("open", "imread") and name.startswith(("Image.", "PIL.")) and keyword(call, "formats") is None:
            found.append("Image.open with every decoder")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_does_nothing_of_it(path: Path) -> None:
    assert set(offences(path.read_text())) == ALLOWED.get(path.relative_to(ROOT).as_posix(), set())


BAD = (
    "import pickle", "from cloudpickle import load", "torch.load(p)", "torch.load(p, weights_only=False)",
    "np.load(p, allow_pickle=True)", "yaml.load(t)", "YAML(typ='unsafe')", "subprocess.run(c, shell=True)",
    "os.system(c)", "eval(text)", "tar.extractall(d)", "shutil.unpack_archive(p)", "requests.get(url)",
    "urllib.request.urlopen(url)", "x = 'pipe:cat file'", "Image.open(path)", "models.get_model(n, weights='DEFAULT')",
)  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_the_test_finds_what_it_looks_for(line: str) -> None:
    assert len(offences(line)) == 1
