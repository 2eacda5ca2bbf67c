"""No module names a model family but those in `models/families/` and the registry of models.

Comments and docstrings may name one: they give sources and figures.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.models.families.spec import FAMILIES
from idefics_cli.models.hub.registry import MODELS
from tests.support.code import nodes

PACKAGE = Path(__file__).parents[2] / "idefics_cli"
ROOMS = ("models/families/", "models/hub/registry.py")
# The `model_type` of the first family is also the name of this program.
PROGRAM = "idefics"
PROGRAM_IS_NAMED_IN = {
    "caption/sinks/webdataset.py",
    "cli/app.py",
    "cli/commands/bench/measuring.py",
    "cli/help/command_suggestions.py",
    "cli/root.py",
    "completion/answers.py",
    "completion/scripts.py",
    "completion/spec.py",
    "core/paths.py",
    "core/servers.py",
    "server/app.py",
    "ui/views/bench.py",
}
ALLOWED = {
    "bench/shapes.py": "configuration files of checkpoints on the Hub, as data",
    "demo/build.py": "builds a checkpoint of one family",
}
OUR_ERROR = "IdeficsError"


def class_names() -> set[str]:
    paths = {path for row in FAMILIES.values() for path in library_paths(row.name)}
    return {path.partition(":")[2] for path in paths | {row.runner for row in FAMILIES.values()}}


def library_paths(family: str) -> tuple[str, ...]:
    classes = FAMILIES[family].classes
    return (classes.config, classes.model, classes.image_processor, classes.processor)


WORDS = {row.name for row in FAMILIES.values()} - {PROGRAM}
WORDS |= {row.title for row in FAMILIES.values()} | class_names()
FAMILY = re.compile(
    "|".join(
        [
            *map(re.escape, sorted(WORDS)),
            r"idefics[-_]?\d",
            r"models\.idefics\b",
            r"\bidefics[A-Z]",
            "smolvlm",
        ]
    ),
    re.IGNORECASE,
)
MODEL = re.compile(
    "|".join(
        sorted(
            {re.escape(name) for spec in MODELS.values() for name in (spec.name, spec.repo)},
            key=len,
            reverse=True,
        )
    )
)


def words(source: str) -> Iterator[str]:
    """Yield the names and texts in *source*, without its comments and docstrings."""
    prose = {
        id(node.value)
        for node in nodes(source)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        for field in ("id", "attr", "name", "asname", "module", "arg"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def named(source: str) -> list[str]:
    """Return what names a family in *source*: neither a model nor one of our errors."""
    found = (MODEL.sub("", word) for word in words(source) if word != OUR_ERROR)
    return [word for word in found if word == PROGRAM or FAMILY.search(word)]


def sources() -> dict[str, str]:
    texts = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in texts.items()
        if not name.startswith(ROOMS)
    }


def test_no_family_is_named_outside_its_room_and_the_registry() -> None:
    naming = {name: set(named(text)) for name, text in sources().items()}
    for name in PROGRAM_IS_NAMED_IN:
        naming[name] -= {PROGRAM}
    assert {name: found for name, found in naming.items() if found and name not in ALLOWED} == {}


def test_every_allowance_is_needed() -> None:
    texts = sources()
    assert [name for name in ALLOWED if not named(texts[name])] == []
    assert [name for name in PROGRAM_IS_NAMED_IN if PROGRAM not in named(texts[name])] == []


def test_a_family_that_is_named_is_seen() -> None:
    for source in (
        'if family == "idefics": pass',
        'KINDS = {"idefics2": 1}',
        'print(f"{attention} of Idefics2 is {n}")',
        'hint = "IDEFICS-1 cannot"',
        "from transformers import SmolVLMConfig",
        "from transformers.models.idefics3 import x",
        "import transformers.models.idefics as library",
        "is_idefics2 = True",
        "def f(smolvlm=None): pass",
        "value = library.IdeficsRMSNorm",
    ):
        assert named(source), source
    for source in (
        '"""Prose on Idefics2."""',
        "def f():\n    '''Of SmolVLM.'''\n    # and of Idefics3",
        'hint = "try idefics2-8b or HuggingFaceTB/SmolVLM-Instruct"',
        "class A(IdeficsError): pass",
        'command = "idefics chat"',
    ):
        assert not named(source), source
