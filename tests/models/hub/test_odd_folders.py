"""Folders whose files are odd: each is refused for the true reason, with a way out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from idefics_cli.core.errors import ModelError
from idefics_cli.models.hub.facts import find_facts
from tests.support import checkpoints


def refusal(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        find_facts(str(folder), offline=True)
    assert caught.value.hint
    return caught.value


def write(folder: Path, **changes: bytes) -> Path:
    names = {name.replace("__", "."): data for name, data in changes.items()}
    return checkpoints.write(folder, checkpoints.files() | names)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja",
             "preprocessor_config.json", "model.safetensors", "generation_config.json"]
)  # fmt: skip
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    error = refusal(folder)
    assert f"{name} of " in str(error)
    assert "is a Git LFS pointer" in str(error)
    assert "git lfs pull" in str(error.hint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, name: str, kind: str) -> None:
    folder = write(tmp_path)
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    assert f"{name} of `{tmp_path}` is not a regular file" in str(refusal(folder))


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)
    assert "larger than any file of its kind" in str(refusal(folder))


def test_a_link_that_leads_nowhere_is_a_missing_file(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / "gone")
    assert "has no tokenizer.json" in str(refusal(folder))


@pytest.mark.parametrize(
    ("config", "made_for"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "pt"),
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "pt"),
        ({}, "mlx"),
    ],
)
def test_a_conversion_for_mlx_is_named(
    tmp_path: Path, config: dict[str, object], made_for: str
) -> None:
    folder = checkpoints.write(tmp_path, checkpoints.files(**config))
    weights = checkpoints.safetensors(checkpoints.WEIGHTS, made_for=made_for)
    (folder / "model.safetensors").write_bytes(weights)
    error = refusal(folder)
    assert "is converted for MLX" in str(error)
    assert "original checkpoint" in str(error.hint)


def test_an_adapter_beside_a_model_is_an_error(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, adapter_config__json=b"{}"))
    assert "holds an adapter beside a model" in str(error)
    assert "remove adapter_config.json" in str(error.hint)


@pytest.mark.parametrize(
    "key", ["base_model.model.lm_head.weight", "model.layers.0.q_proj.lora_A.default.weight",
            "model.layers.0.q_proj.base_layer.weight"]
)  # fmt: skip
def test_the_names_of_a_peft_model_are_named(tmp_path: Path, key: str) -> None:
    weights = checkpoints.safetensors({key: [2, 2], "model.norm.weight": [2]})
    error = refusal(write(tmp_path, model__safetensors=weights))
    assert f"the names of a PEFT model, such as `{key}`" in str(error)
    assert "merge_and_unload" in str(error.hint)


def test_the_checkpoints_of_a_training_run_are_named(tmp_path: Path) -> None:
    for number in (500, 1000, 90):
        checkpoints.write(tmp_path / f"checkpoint-{number}", checkpoints.files())
    (tmp_path / "checkpoint-old").mkdir()
    error = refusal(tmp_path)
    assert "has no config.json" in str(error)
    assert "training run" in str(error.hint)
    names = [f"`-m {tmp_path}/checkpoint-{number}`" for number in (1000, 500, 90)]
    assert ", ".join(names) in str(error.hint)
    assert find_facts(f"{tmp_path}/checkpoint-500").parameters == 100


_TEXT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


@pytest.mark.parametrize("key", _TEXT)
@pytest.mark.parametrize("value", [-1, 0, 10**12, "2", 1.5, True, [[]]])
def test_an_absurd_number_in_the_config_is_named(tmp_path: Path, key: str, value: object) -> None:
    text = dict(checkpoints.IDEFICS2["text_config"], **{key: value})  # type: ignore[call-overload]  # JSON
    folder = checkpoints.write(tmp_path, checkpoints.files(text_config=text))
    shown = "[]" if value == [[]] else value
    assert f"says `text_config.{key}` is {shown}, which no model" in str(refusal(folder))


@pytest.mark.parametrize("edge", [-1, 0, 40_000, 10**20, "x"])
def test_an_absurd_size_of_pictures_is_named(tmp_path: Path, edge: object) -> None:
    images = json.dumps({"size": {"longest_edge": edge}}).encode()
    error = refusal(write(tmp_path, preprocessor_config__json=images))
    assert "preprocessor_config.json of" in str(error)
    assert f"says `size.longest_edge` is {edge}" in str(error)
