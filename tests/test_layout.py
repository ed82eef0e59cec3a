"""The house rules that a parser can hold: arrows between modules, quiet imports, small pieces."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sparrowlm"

# A module imports only from rows before its own (and from its own).
ROWS = [
    "process", "errors", "config", "runtime", "batch", "files", "text", "data", "model",
    "objectives", "optim", "checkpoint", "infer", "evaluate", "train", "report", "share",
    "pipeline", "api", "line", "cli",
]  # fmt: skip
# Narrower than the rows allow.
ONLY = {
    "model": {"config", "batch", "errors", "model"},
    "optim": {"config", "batch", "errors", "optim"},
}
NEVER = {
    "data": {"model"},
    "train.trainer": {"infer", "evaluate"},
}
HEAVY = ("torch", "numpy", "matplotlib", "transformers", "tokenizers", "safetensors", "tiktoken")
WITHOUT_TORCH = ("errors", "config", "files", "text", "data", "report", "cli.__init__", "__init__")
WITH_TORCH = ("data.streams", "data.packing")

FUNCTION_LINES, FILE_LINES = 60, 400


def modules() -> dict[str, ast.Module]:
    """{dotted name below the package: its tree}."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module's full name and line, at any depth; names imported from the package
    itself (`from sparrowlm import files`) count as modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if node.module == "sparrowlm":
                yield from ((f"sparrowlm.{name.name}", node.lineno) for name in node.names)
            elif node.module:
                yield node.module, node.lineno


def own_imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The imported rows of the package itself."""
    for name, line in imports(tree):
        parts = name.split(".")
        if parts[0] == "sparrowlm" and len(parts) > 1:
            yield parts[1], line


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those under `if TYPE_CHECKING` aside."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if isinstance(node, ast.If):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            waiting += [*node.body, *node.orelse, *node.finalbody]
            waiting += [part for handler in node.handlers for part in handler.body]
        elif isinstance(node, ast.With | ast.For | ast.While | ast.ClassDef):
            waiting += node.body


def row_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    row = row_of(module)
    if row in ("__init__", "__main__"):
        return
    assert row in ROWS, f"{module} has no row: add it to the plan"
    allowed = ONLY.get(row, set(ROWS[: ROWS.index(row) + 1]))
    refused = NEVER.get(module, NEVER.get(row, set()))
    bad = [
        f"{SOURCE / module.replace('.', '/')}.py:{line} imports {name}"
        for name, line in own_imports(MODULES[module])
        if name not in allowed - refused and name != "__version__"
    ]
    assert not bad


def test_the_package_itself_imports_nothing_of_its_own_when_imported() -> None:
    """Everything imports `sparrowlm` first, so whatever it imports every command would pay."""
    for node in at_import(MODULES["__init__"]):
        if isinstance(node, ast.FunctionDef):
            continue  # imports when it is called
        assert not list(own_imports(node)), f"line {node.lineno}"


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if name.startswith(WITHOUT_TORCH) and name not in WITH_TORCH],
)
def test_imports_no_torch(module: str) -> None:
    heavy = [
        f"line {line}: {name}" for name, line in imports(MODULES[module]) if _is(name, "torch")
    ]
    assert not heavy


@pytest.mark.parametrize("module", ["__init__", "__main__", "cli.__init__", "report.picture"])
def test_heavy_imports_wait_for_a_command(module: str) -> None:
    for node in at_import(MODULES[module]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name for name, _ in imports(node)]
            assert not [name for name in names if _is(name, *HEAVY)], ast.unparse(node)


def _is(name: str, *packages: str) -> bool:
    return name.split(".")[0] in packages


NOISY = {
    "open", "print", "exec", "eval", "input", "mkdir", "write_text", "read_text", "write_bytes",
    "is_available", "device_count", "manual_seed", "set_num_threads", "basicConfig",
    "set_default_dtype", "filterwarnings", "simplefilter", "getenv", "setdefault", "use",
    "putenv", "run", "Popen", "urlopen", "signal", "set_start_method", "detect", "home", "cwd",
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_nothing_happens_at_import(module: str) -> None:
    """No device probe, logging set-up, file, environment or process at import."""
    for node in at_import(MODULES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            continue
        bare_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if module != "__main__":
            assert not bare_call, f"{module}:{node.lineno} calls something for its effect"
        for call in (part for part in ast.walk(node) if isinstance(part, ast.Call)):
            last = ast.unparse(call.func).split(".")[-1]
            assert last not in NOISY, f"{module}:{call.lineno} calls {last} at import"
        assert not _reads_environment(node), f"{module}:{node.lineno}"


def _reads_environment(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
        for node in ast.walk(tree)
    )


def test_only_the_runtime_reads_the_environment() -> None:
    found = {name for name, tree in MODULES.items() if _reads_environment(tree)}
    assert found <= {"runtime", "process"}


def test_only_the_command_line_prints_and_exits() -> None:
    printers = {
        f"{module}:{node.lineno}"
        for module, tree in MODULES.items()
        if row_of(module) not in ("cli", "__main__")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit")
    }
    assert not printers


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle_no_eval_no_bare_except_no_silenced_warning(module: str) -> None:
    tree = MODULES[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}:{node.lineno} a bare except"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "builtins.eval", "builtins.exec"), (
                f"{module}: {name}"
            )
            assert not name.startswith("warnings.") or name == "warnings.warn", f"{module}: {name}"
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert keywords.get("trust_remote_code") != "True"
            assert keywords.get("strict") != "False" or name != "load_state_dict"
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", f"{module}:{node.lineno}"
    loaders = {name for name, _ in imports(tree)} & {
        "pickle",
        "cPickle",
        "dill",
        "joblib",
        "shelve",
    }
    # files.read_foreign reads other projects' pickles with an unpickler that imports nothing.
    assert not loaders or module == "files"


@pytest.mark.parametrize("module", MODULES)
def test_functions_and_files_fit_a_glance(module: str) -> None:
    path = SOURCE / f"{module.replace('.', '/')}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{module}.{node.name} has {length} lines"


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from sparrowlm.cli import main; code = main(['--help']);"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules));"
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_help_answers_in_half_a_second() -> None:
    """The best of a few tries, beyond what a bare Python takes on a machine that is busy."""

    def took(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - began

    bare = min(took("-c", "pass") for _ in range(3))
    best = min(took("-m", "sparrowlm", "--help") for _ in range(3))
    assert best < max(0.5, 5 * bare)
