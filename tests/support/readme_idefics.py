"""`idefics` for the commands of README: the whole program, with a model that answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from idefics_cli.cli.app import make_app
from idefics_cli.cli.services import Services
from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.hub.facts import ModelFacts, find_facts, registry_facts
from tests.support.commands import World
from tests.support.fakes import FakeEngine


def main() -> None:
    """Run `idefics` with the arguments of this process."""
    world = World(FakeEngine(_answer))
    services = replace(
        world.services, environ=Services().environ, stdin=sys.stdin.buffer, find_facts=_facts
    )
    # To build all commands takes longer than to run one.
    make_app(sys.argv[1:2])(prog_name="idefics", obj=services)


def _answer(request: GenerationRequest) -> str:
    constraint = request.constraint
    if constraint is None or constraint.kind != "schema":
        return "A red square."
    return json.dumps(_value(json.loads(constraint.text)))


def _value(schema: Mapping[str, Any]) -> object:
    """Return a value that a simple *schema* allows."""
    if "enum" in schema:
        return schema["enum"][0]
    values: dict[str, object] = {"string": "A red square.", "boolean": True, "array": []}
    if schema["type"] != "object":
        return values.get(schema["type"], 1)
    return {name: _value(schema["properties"][name]) for name in schema["required"]}


def _facts(name: str, *, revision: str | None, offline: bool) -> ModelFacts:
    """Return the facts of a model of the list as if it were downloaded, and of no other."""
    facts = find_facts(name, revision=revision, offline=True)
    known = {model.name for model in registry_facts()}
    assert facts.name in known or facts.adapter is not None
    return replace(facts, folder=facts.folder or Path("/cached"), download_bytes=0)


if __name__ == "__main__":
    main()
