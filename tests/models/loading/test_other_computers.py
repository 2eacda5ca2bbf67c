"""Plans that were made for another computer, or by hand: refused for the true reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.core.errors import ModelError, PlanError
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.factory import engine_factory
from idefics_cli.models.loading.loader import load

DEMO = {"repo": "demo", "family": "idefics2", "name": "demo"}


@pytest.mark.parametrize(
    ("choices", "missing"),
    [
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "cuda:x"}, "cuda:x"),
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda", "device_map": "auto", "max_memory": {"98": 9, "cpu": 9}}, "cuda:98"),
    ],
)
def test_a_device_that_is_not_here_is_named_before_any_file_is_read(
    choices: dict[str, object], missing: str
) -> None:
    spec = LoadSpec(**{**DEMO, "repo": "/no/such/folder", **choices})  # type: ignore[arg-type]  # as a caller without types
    for load_it in (lambda: load(spec), engine_factory(spec)):
        with pytest.raises(PlanError, match=f"the device {missing}, which this computer") as caught:
            load_it()
        assert "make_plan" in str(caught.value.hint)


def test_an_attention_without_its_package_is_named() -> None:
    with pytest.raises(PlanError, match="flash_attention_3, whose package is not installed"):
        load(LoadSpec(**DEMO, attention="flash_attention_3"))  # type: ignore[arg-type]  # a table of texts


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(LoadSpec(repo=str(tmp_path / "nosuch"), family="idefics2"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="is a model of type `bert`"):
        load(LoadSpec(repo=str(tmp_path), family="idefics2"))
