"""No module of ours reads what could run code when it is read. Wire and disk are tried in tests/deploy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlp_datasets", "sequence_processing", "jobs", "worker", "webui")
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "code"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "yaml.load", "eval", "exec", "compile", "os.system"}

# A function of the caller's own, handed to `job.reward`, goes to a child process of the caller through a pipe that only
# these two hold. It comes from no wire and no disk; a worker's rewards go by name.
OWN_CHILD = {"jobs/rewards/judge.py": ["dill"], "jobs/rewards/child.py": ["dill"]}


def risky(tree: ast.AST) -> Iterator[str]:
    """Names of modules and functions in the code that run, or may run, what they read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            yield ast.unparse(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            yield f"{node.arg}="


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_of_ours_unpickles_or_evaluates(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): list(risky(ast.parse(file.read_text()))) for file in files}
    assert {file: names for file, names in found.items() if names != OWN_CHILD.get(file, [])} == {}


@pytest.mark.parametrize(
    "line", ["import pickle", "from dill import loads", "torch.load(f)", "np.load(f, allow_pickle=True)", "eval('1')"]
)
def test_it_would_be_found(line: str) -> None:
    assert list(risky(ast.parse(line)))
