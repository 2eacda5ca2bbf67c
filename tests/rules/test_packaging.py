"""The claims of pyproject.toml about the package; `.ci/check_wheel` tests the wheel itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from idefics_cli import __version__
from tests.support.code import nodes

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "idefics_cli"
SOURCES = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
PYPROJECT: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

MODULES = {
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "prompt-toolkit": "prompt_toolkit",
    "huggingface-hub": "huggingface_hub",
    "textual-image": "textual_image",
    "prometheus-client": "prometheus_client",
}
# Packages that transformers imports for us, for models on several devices and quantization.
THROUGH_TRANSFORMERS = {
    "accelerate": '"max_memory"',
    "bitsandbytes": "BitsAndBytesConfig",
    "flash-attn": "flash_attention_2",
}
# Packages that fsspec imports for the addresses of a store.
THROUGH_FSSPEC = {"s3fs": "s3", "gcsfs": "gs", "adlfs": "az", "paramiko": "sftp"}
# Packages that are part of the interface of another: its progress bars, tokenizer and errors.
PART_OF = {
    "tqdm": "huggingface-hub",
    "tokenizers": "transformers",
    "urllib3": "requests",
    "h11": "uvicorn",
}


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def imported() -> Iterator[str]:
    """Yield the top name of every import, also inside functions."""
    for source in SOURCES.values():
        for node in nodes(source):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).split(".")[0]
            elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                # A library without types is imported by its name.
                (name,) = node.args
                if isinstance(name, ast.Constant):
                    yield str(name.value).split(".")[0]


def declared(*groups: str) -> set[str]:
    extras = PROJECT["optional-dependencies"]
    rows = [*PROJECT["dependencies"], *(row for group in groups for row in extras[group])]
    return {name_of(row) for row in rows}


EXTRAS = sorted(PROJECT["optional-dependencies"].keys() - {"dev"})


def test_every_dependency_is_imported() -> None:
    direct = declared(*EXTRAS) - THROUGH_TRANSFORMERS.keys() - THROUGH_FSSPEC.keys()
    modules = {MODULES.get(name, name) for name in direct}
    assert modules - set(imported()) == set()
    for name, protocol in THROUGH_FSSPEC.items():
        assert any(f'"{protocol}": ("{name}"' in source for source in SOURCES.values()), name
    for name, use in THROUGH_TRANSFORMERS.items():
        assert any(use in source and name in source for source in SOURCES.values()), name


def test_everything_imported_is_a_dependency() -> None:
    known = {MODULES.get(name, name) for name in declared(*EXTRAS)} | PART_OF.keys()
    assert set(imported()) - known - sys.stdlib_module_names - {"idefics_cli"} == set()
    for part, whole in PART_OF.items():
        assert part in {name_of(row) for row in metadata.requires(whole) or ()}
        assert whole in declared(*EXTRAS)


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_gives_names_it_when_it_is_missing(extra: str) -> None:
    options = "--no-build-isolation " if extra == "flash" else ""
    hint = f"pip install {options}'idefics-cli[{extra}]'"
    assert any(hint in source for source in SOURCES.values())


# The extra "flash" takes an hour to compile. For the stores, the tests have one in memory.
@pytest.mark.parametrize("extra", sorted({*EXTRAS} - {"flash", *THROUGH_FSSPEC.values()}))
def test_the_tests_run_with_every_extra(extra: str) -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras[extra]) <= set(extras["dev"])


def test_the_version_is_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "idefics_cli/__init__.py"
    holders = [path for path, source in SOURCES.items() if f'"{__version__}"' in source]
    assert holders == [PACKAGE / "__init__.py"]


def test_what_the_wheel_ships_is_there() -> None:
    data = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {Path(source).parent.name for source in data} == {"completions"}
    assert all((TOP / source).is_file() for source in data)
    assert (PACKAGE / "py.typed").is_file()
    assert (TOP / PROJECT["license-files"][0]).is_file()


def constraints(name: str) -> dict[str, str]:
    lines = (TOP / ".ci" / name).read_text(encoding="utf-8").splitlines()
    rows = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name_of(package): version for package, version in rows}


def bounds(package: str) -> dict[str, str]:
    row = next(row for row in PROJECT["dependencies"] if name_of(row) == package)
    return dict(re.findall(r"(>=|<)([\d.]+)", row))


def test_the_lowest_and_the_highest_transformers_are_tried() -> None:
    limits = bounds("transformers")
    lowest = constraints("constraints-lowest.txt")["transformers"]
    highest = constraints("constraints.txt")["transformers"]
    assert lowest == f"{limits['>=']}.0"
    major, minor = limits["<"].split(".")
    assert highest.startswith(f"{major}.{int(minor) - 1}.")
    # The error about a wrong version names the same range.
    wanted = next(row for row in PROJECT["dependencies"] if name_of(row) == "transformers")
    assert any(f"pip install '{wanted}'" in source for source in SOURCES.values())


def test_the_lowest_version_of_every_dependency_is_tried() -> None:
    tried = constraints("constraints-lowest.txt")
    extras = (PROJECT["optional-dependencies"][extra] for extra in ("heif", "parquet", "preview"))
    for row in (*PROJECT["dependencies"], *(row for extra in extras for row in extra)):
        bound = re.search(r">=([\d.]+)", row)
        assert bound is not None
        assert f"{tried[name_of(row)]}.".startswith(f"{bound[1]}."), row


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_dependency_has_an_exact_version(file: str) -> None:
    assert declared("dev") - constraints(file).keys() == set()


def installed(name: str, seen: dict[str, metadata.Distribution]) -> None:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return  # for another system, or an extra
    if name.startswith(("nvidia-", "cuda-")):
        return  # NVIDIA packages of the CUDA build of torch
    seen[name] = distribution
    for row in distribution.requires or ():
        if "extra ==" not in row and name_of(row) not in seen:
            installed(name_of(row), seen)


def licence(distribution: metadata.Distribution) -> str:
    about = distribution.metadata
    classifiers = [c for c in about.get_all("Classifier", []) if c.startswith("License")]
    fields = {field: about[field] for field in ("License-Expression", "License") if field in about}
    named = " ".join(classifiers) or fields.get("License", "")
    return fields.get("License-Expression") or named


def test_the_licences_of_the_dependencies_are_compatible_with_ours() -> None:
    found: dict[str, metadata.Distribution] = {}
    for name in declared(*EXTRAS):
        installed(name, found)
    assert {"torch", "sympy"} <= found.keys()
    licences = {name: licence(distribution) for name, distribution in found.items()}
    # Users choose this extra; its older versions say that their wheels contain x265 (GPL).
    licences.pop("pillow-heif", None)
    # Our wheel contains none of them, so the LGPL and the MPL make no demands on it.
    free = re.compile(r"MIT|BSD|Apache|ISC|PSF|Python|MPL|Mozilla|HPND|Zlib|LGPL|Lesser")
    strict = re.compile(r"\bA?GPL|(?<!Lesser )General Public", re.IGNORECASE)
    assert {n: text for n, text in licences.items() if not free.search(text)} == {}
    assert {n: text for n, text in licences.items() if strict.search(text)} == {}


def test_the_changelog_begins_with_the_version_and_a_day() -> None:
    text = (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert newest is not None
    assert newest[1] in ("Unreleased", __version__)
    assert f"## [{__version__}] - " in text
