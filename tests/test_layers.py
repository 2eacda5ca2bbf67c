"""The import rules of the project, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "idefics_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
RANK = {
    "core": 0,
    "models": 1,
    "engine": 2,
    "config": 2,
    "caption": 3,
    "chat": 3,
    "bench": 3,
    "completion": 3,
    "demo": 3,
    "ui": 4,
    "cli": 5,
}
HEAVY = {
    "torch", "transformers", "PIL", "numpy", "requests", "bitsandbytes", "accelerate", "ray",
    "fastapi", "tokenizers", "safetensors", "huggingface_hub",
}  # fmt: skip
TENSORS = (
    *("beside", "decode", "graphs", "inference", "local", "memory", "prefill", "prefix"),
    *("sampling", "serving", "slots", "steps", "transfer", "vision"),
)
MAY_BE_HEAVY = ("models/", *(f"engine/{name}.py" for name in TENSORS), "demo/")
CHEAP = ("models/__init__.py", "models/registry.py", "models/plan.py", "demo/__init__.py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every import in *tree*, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_the_top(tree: ast.AST) -> Iterator[str]:
    """Yield the names of the imports that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)
        else:
            yield from imported_at_the_top(node)


def breaches(package: str, tree: ast.AST) -> set[str]:
    """Return the packages that a module of *package* imports and must not."""
    others = {name.split(".")[1] for name in imported(tree) if name.startswith("idefics_cli.")}
    return {
        other
        for other in others - {package, "__version__"}
        if other not in RANK or RANK[other] >= RANK[package]
    }


@cache
def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_package_has_a_rank() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_ranks_and_its_own_package(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        assert parts[0] in ("__init__.py", "__main__.py")
        return
    assert not breaches(parts[0], parsed(path))


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("models", "from idefics_cli.engine import Engine"),
        ("caption", "from idefics_cli.demo.scenes import Scene"),
        ("engine", "def f():\n    import idefics_cli.config.settings"),
        ("ui", "from idefics_cli import cli"),
    ],
)
def test_a_breach_of_the_ranks_is_seen(package: str, source: str) -> None:
    assert breaches(package, ast.parse(source))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_at_the_top_only_where_they_are_used(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith(MAY_BE_HEAVY) and name not in CHEAP:
        return
    assert not {top.split(".")[0] for top in imported_at_the_top(parsed(path))} & HEAVY


def test_a_heavy_import_at_the_top_is_seen_also_in_a_class_or_a_try() -> None:
    source = "try:\n    import torch\nexcept ImportError:\n    pass\nclass A:\n    import PIL.Image"
    assert set(imported_at_the_top(ast.parse(source))) == {"torch", "PIL.Image"}
    assert not set(imported_at_the_top(ast.parse("def f():\n    import torch")))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_click_is_never_imported(path: Path) -> None:
    # Typer has a Click of its own; the exceptions and types of another are not Typer's.
    names = set(imported(parsed(path)))
    assert not {n for n in names if n.split(".")[0] == "click" or n.startswith("typer._")}


def loaded_after_each(*codes: str) -> list[set[str]]:
    """Return the top names in `sys.modules` after each of *codes* ran, one after the other."""
    script = (
        "import contextlib, io, sys\n"
        "for code in sys.argv[1:]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        exec(code)\n"
        "    print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *codes], capture_output=True, text=True, check=True
    )
    loaded = [{name.split(".")[0] for name in line.split()} for line in done.stdout.splitlines()]
    assert len(loaded) == len(codes)
    return loaded


@cache
def loaded_after() -> dict[str, set[str]]:
    """Return what is loaded after each code below; what one has loaded the later have, too."""
    codes = [f"import {module}" for module in CHEAP_MODULES]
    codes += [command(*arguments) for arguments in CHEAP_COMMANDS]
    return dict(zip(codes, loaded_after_each(*codes), strict=True))


def command(*arguments: str) -> str:
    return f"sys.argv = {['idefics', *arguments]!r}\nfrom idefics_cli.cli.app import main\nmain()"


CHEAP_MODULES = (
    "idefics_cli.engine",
    "idefics_cli.models.registry",
    "idefics_cli.models.plan",
    "idefics_cli.config.resolve",
    "idefics_cli.caption.runner",
    "idefics_cli.bench.run",
)
CHEAP_COMMANDS = (
    (),
    ("--help",),
    ("--version",),
    ("ask", "--help"),
    ("chat", "--help"),
    ("caption", "--help"),
    ("doctor", "--help"),
    ("bench", "--help"),
    ("demo", "--help"),
    ("models", "--help"),
    ("config",),
    ("config", "path"),
    ("completion", "show", "bash"),
    ("no-such-command",),
)


@pytest.mark.parametrize("arguments", CHEAP_COMMANDS, ids=" ".join)
def test_a_command_that_needs_no_model_loads_no_heavy_library(arguments: tuple[str, ...]) -> None:
    assert not loaded_after()[command(*arguments)] & HEAVY


@pytest.mark.parametrize("module", CHEAP_MODULES)
def test_a_cheap_module_stays_cheap(module: str) -> None:
    assert not loaded_after()[f"import {module}"] & HEAVY


def test_a_heavy_library_that_was_loaded_is_seen() -> None:
    before, after = loaded_after_each("import idefics_cli", "import PIL")
    assert not before & HEAVY
    assert "PIL" in after & HEAVY
