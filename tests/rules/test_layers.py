"""The import rules of the project, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.code import nodes
from tests.support.rooms import MODEL_ROOMS, RANK

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "idefics_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch", "transformers", "PIL", "numpy", "requests", "bitsandbytes", "accelerate", "ray",
    "fastapi", "starlette", "peft", "llguidance", "tokenizers", "safetensors", "huggingface_hub",
    "pyarrow", "llvmlite",
}  # fmt: skip


def imported(tree: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the full name of every import among the nodes of *tree*, also inside functions."""
    for node in tree:
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
            yield from imported([node])
        else:
            yield from imported_at_the_top(node)


@cache
def imported_by(path: Path) -> tuple[str, ...]:
    """Return the full name of every import in the file *path*."""
    return tuple(imported(nodes(path.read_text(encoding="utf-8"))))


def breaches(package: str, imports: Iterable[str], rank: dict[str, int], prefix: str) -> set[str]:
    """Return the packages below *prefix* that a module of *package* must not import, but does."""
    names = (name.removeprefix(prefix) for name in imports if name.startswith(prefix))
    others = {name.split(".")[0] for name in names}
    return {
        other
        for other in others - {package, "__version__"}
        if other not in rank or rank[other] >= rank[package]
    }


def module_name(path: Path) -> str:
    """Return the dotted name of the module or package in the file *path*."""
    parts = path.relative_to(TOP).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@cache
def arrows() -> dict[str, frozenset[str]]:
    """Return the modules of this project that each module imports, also inside functions."""
    names = {module_name(path) for path in MODULES}

    def module_of(name: str) -> str:
        while name not in names:
            name = name.rpartition(".")[0]
        return name

    found = {}
    for path in MODULES:
        own = module_name(path)
        targets = (name for name in imported_by(path) if name.startswith("idefics_cli."))
        found[own] = frozenset(map(module_of, targets)) - {own, "idefics_cli"}
    return found


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Return the names on one circle in *graph*; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def siblings(package: str, graph: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Return the arrows between the direct modules and sub-packages of *package*."""
    prefix = f"{package}."
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        if name.startswith(prefix):
            own = name.removeprefix(prefix).split(".")[0]
            rooms = {t.removeprefix(prefix).split(".")[0] for t in targets if t.startswith(prefix)}
            found.setdefault(own, set()).update(rooms - {own})
    return found


PACKAGES = sorted({module_name(path.parent / "__init__.py") for path in MODULES})


def parsed(path: Path) -> ast.AST:
    return nodes(path.read_text(encoding="utf-8"))[0]


def test_every_package_has_a_rank() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= RANK.keys()


def test_a_module_imports_only_lower_ranks_and_its_own_package() -> None:
    top = {path.name for path in MODULES if path.parent == PACKAGE}
    assert top == {"__init__.py", "__main__.py"}
    found = {}
    for path in MODULES:
        package, *rest = path.relative_to(PACKAGE).parts
        if rest:
            found[path] = breaches(package, imported_by(path), RANK, "idefics_cli.")
        if package == "models" and len(rest) > 1:
            found[path] |= breaches(rest[0], imported_by(path), MODEL_ROOMS, "idefics_cli.models.")
    assert {path: others for path, others in found.items() if others} == {}


def test_models_has_five_rooms() -> None:
    models = PACKAGE / "models"
    assert {path.name for path in models.iterdir() if path.is_dir()} - {"__pycache__"} == set(
        MODEL_ROOMS
    )
    assert [path.name for path in models.glob("*.py")] == ["__init__.py"]


def test_modules_import_in_no_circle() -> None:
    assert not circle(arrows())


def test_what_lies_in_a_package_imports_in_no_circle() -> None:
    circles = {package: circle(siblings(package, arrows())) for package in PACKAGES}
    assert {package: names for package, names in circles.items() if names} == {}


def test_a_circle_is_seen_between_modules_and_between_sub_packages() -> None:
    graph = {"p.a.x": {"p.b.y"}, "p.b.z": {"p.a.w"}, "p.b.y": set(), "p.a.w": set()}
    assert not circle(graph)
    assert circle(siblings("p", graph))
    assert circle({"p.a": {"p.b"}, "p.b": {"p.a"}})


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("models", "from idefics_cli.engine.protocol import Engine"),
        ("config", "from idefics_cli.images.loader import ImageLoader"),
        ("caption", "from idefics_cli.demo.scenes import Scene"),
        ("engine", "def f():\n    import idefics_cli.caption.job"),
        ("ui", "from idefics_cli import cli"),
    ],
)
def test_a_breach_of_the_ranks_is_seen(package: str, source: str) -> None:
    assert breaches(package, imported(nodes(source)), RANK, "idefics_cli.")


@cache
def heavy_rooms() -> tuple[str, ...]:
    """Return the folders whose modules may import a heavy library at the top, as set for ruff."""
    settings = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    return tuple(
        pattern.removesuffix("**")
        for pattern, rules in ignores.items()
        if "TID253" in rules and pattern.startswith("idefics_cli/")
    )


def test_heavy_libraries_are_allowed_by_folder() -> None:
    assert heavy_rooms()
    assert all((TOP / folder).is_dir() and folder.endswith("/") for folder in heavy_rooms())


def test_heavy_libraries_are_imported_at_the_top_only_in_their_rooms() -> None:
    found = {
        path: {top.split(".")[0] for top in imported_at_the_top(parsed(path))} & HEAVY
        for path in MODULES
        if path.name == "__init__.py"
        or not path.relative_to(TOP).as_posix().startswith(heavy_rooms())
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_a_heavy_import_at_the_top_is_seen_also_in_a_class_or_a_try() -> None:
    source = "try:\n    import torch\nexcept ImportError:\n    pass\nclass A:\n    import PIL.Image"
    assert set(imported_at_the_top(ast.parse(source))) == {"torch", "PIL.Image"}
    assert not set(imported_at_the_top(ast.parse("def f():\n    import torch")))


def test_click_is_never_imported() -> None:
    # Typer has its own copy of Click; exceptions and types of the package click are different.
    names = {(path, name) for path in MODULES for name in imported_by(path)}
    assert not {(p, n) for p, n in names if n.split(".")[0] == "click" or n.startswith("typer._")}


def loaded_after_each(*codes: str) -> list[set[str]]:
    """Return the top names in `sys.modules` after each of *codes*, which run in order."""
    script = (
        "import contextlib, io, os, sys\n"
        "os._exit = sys.exit  # `main` would leave the process after the first command\n"
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
    """Return the loaded modules after each code below; they add up from code to code."""
    codes = [f"import {module}" for module in CHEAP_MODULES]
    codes += [command(*arguments) for arguments in CHEAP_COMMANDS]
    return dict(zip(codes, loaded_after_each(*codes), strict=True))


def command(*arguments: str) -> str:
    return f"sys.argv = {['idefics', *arguments]!r}\nfrom idefics_cli.cli.app import main\nmain()"


CHEAP_MODULES = (
    "idefics_cli.engine.protocol",
    "idefics_cli.engine.factory",
    "idefics_cli.hardware.machine",
    "idefics_cli.images.formats",
    "idefics_cli.models.families.spec",
    "idefics_cli.models.hub.registry",
    "idefics_cli.models.hub.checkpoint",
    "idefics_cli.models.planning.plan",
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
    ("batch", "--help"),
    ("collect", "--help"),
    ("serve", "--help"),
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
