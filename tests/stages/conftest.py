"""The import graph of the repository, read from the sources: nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("dart", "pipeline", "stages")


class ImportGraph:
    """Which module of ours imports what, by dotted names."""

    def __init__(self, root: Path = ROOT) -> None:
        files = [path for package in OURS for path in sorted((root / package).rglob("*.py"))]
        self.files = {".".join(path.relative_to(root).with_suffix("").parts): path for path in files}
        self.files = {name.removesuffix(".__init__"): path for name, path in self.files.items()}

    def imports(self, module: str, top_level_only: bool = False) -> set[str]:
        """Everything `module` imports, ours and others', `from a import b` as both a and a.b."""
        tree = ast.parse(self.files[module].read_text())
        nodes = _outside_functions(tree) if top_level_only else ast.walk(tree)
        found: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found

    def closure(self, *modules: str, top_level_only: bool = False, stop: frozenset[str] = frozenset()) -> set[str]:
        """The modules and all that they import in turn; does not look into those named in `stop`."""
        seen: set[str] = set()
        todo = list(modules)
        while todo:
            module = todo.pop()
            if module in seen:
                continue
            seen.add(module)
            if module in self.files and module not in stop:
                todo += self.imports(module, top_level_only)
        return seen


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs at import: not function bodies, not `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not typing_only:
            yield node
            yield from _outside_functions(node)


@pytest.fixture(scope="session")
def graph() -> ImportGraph:
    return ImportGraph()
