"""The facts about a model by its alias, its folder or its Hub id, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idefics_cli.core.errors import ModelError
from idefics_cli.models.hub.facts import ModelFacts, demo_folder, find_facts, find_folder
from idefics_cli.models.hub.registry import MODELS
from tests.support import checkpoints, tiny
from tests.support.hub import FakeHub, empty_cache, online

REPO = "somebody/tiny"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    return empty_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with one model."""
    with online(FakeHub({REPO: checkpoints.files()}), monkeypatch) as server:
        yield server


def failure(name: str | Path, *, offline: bool = False) -> ModelError:
    with pytest.raises(ModelError) as caught:
        find_facts(str(name), offline=offline)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", MODELS)
def test_an_alias_needs_no_network_and_no_cache(name: str) -> None:
    facts, spec = find_facts(name, offline=True), MODELS[name]
    assert (facts.name, facts.repo, facts.family) == (name, spec.repo, spec.family)
    assert (facts.folder is None) == (name != "demo")
    assert find_facts(spec.repo, offline=True).parameters == spec.parameters


def test_an_alias_knows_its_cached_folder_and_its_download(root: Path) -> None:
    # The Hub has the weights of idefics2-8b in float32.
    before = find_facts("idefics2-8b")
    assert before.download_bytes == 8_402_768_112 * 4
    folder = checkpoints.put_in_cache(root, "HuggingFaceM4/idefics2-8b", checkpoints.files())
    after = find_facts("idefics2-8b")
    assert (after.folder, after.download_bytes) == (folder, 0)
    assert find_facts("idefics2-8b", revision="v2").folder is None
    assert find_facts("smolvlm2-2.2b").download_bytes is None


def test_the_built_in_model_is_in_the_package() -> None:
    assert find_facts("demo").folder == demo_folder() == find_folder("demo")


def test_a_folder_with_the_built_in_model_has_its_facts() -> None:
    ours, theirs = find_facts("demo"), find_facts(str(demo_folder()))
    for field in ("family", "parameters", "shape", "context_tokens", "chats", "splitting"):
        assert getattr(ours, field) == getattr(theirs, field)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_checkpoint_in_a_folder_is_known(kind: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(kind)
    facts = find_facts(str(folder))
    family = {"smolvlm": "idefics3", "smolvlm2": "smolvlm"}.get(kind, kind.partition("-")[0])
    assert facts.family == family
    assert facts.repo == str(folder)
    assert facts.chats == (kind in tiny.CHATTING)
    expected = {"idefics": None, "idefics2": kind == "idefics2-split"}.get(family, True)
    assert facts.splitting is expected
    assert facts.context_tokens == {"idefics": 512, "idefics2": 512}.get(family, 1024)
    assert facts.parameters * 4 == pytest.approx(
        (folder / "model.safetensors").stat().st_size, rel=0.2
    )


@pytest.mark.parametrize("layout", [lambda c: c, checkpoints.sharded], ids=["one", "several"])
def test_parameters_are_counted_in_headers(
    tmp_path: Path, layout: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    checkpoints.write(tmp_path, layout(checkpoints.files()))
    assert find_facts(str(tmp_path)).parameters == 100


@pytest.mark.parametrize(
    ("files", "chats"),
    [
        ({}, False),
        ({"chat_template.jinja": "x"}, True),
        ({"chat_template.json": "{}"}, True),
        ({"processor_config.json": '{"chat_template": "x"}'}, True),
        ({"tokenizer_config.json": '{"chat_template": "x"}'}, True),
        ({"tokenizer_config.json": '{"chat_template": null}'}, False),
    ],
)
def test_a_chat_template_anywhere_makes_a_checkpoint_chat(
    tmp_path: Path, files: dict[str, str], chats: bool
) -> None:
    content = checkpoints.files() | {name: text.encode() for name, text in files.items()}
    assert find_facts(str(checkpoints.write(tmp_path, content))).chats is chats


@pytest.mark.parametrize("token", ["<end_of_utterance>", "<other>"])
def test_idefics1_chats_if_it_has_the_token_that_ends_a_turn(tmp_path: Path, token: str) -> None:
    content = checkpoints.files(model_type="idefics") | {
        "tokenizer.json": json.dumps({"added_tokens": [{"content": token}]}).encode()
    }
    facts = find_facts(str(checkpoints.write(tmp_path, content)))
    assert facts.chats is (token == "<end_of_utterance>")
    assert facts.splitting is None


@pytest.mark.parametrize("name", ["~/model", "./model", "model"])
def test_a_folder_may_be_named_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = checkpoints.write(tmp_path / "model", checkpoints.files())
    facts = find_facts(name)
    assert (facts.name, facts.repo, facts.folder) == (name, str(folder), folder)
    assert find_folder(name) == folder


def test_a_folder_named_like_an_alias_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.write(tmp_path / "demo", checkpoints.files())
    assert find_facts("demo").repo == "demo"
    assert find_facts("./demo").repo == str(tmp_path / "demo")


BROKEN: list[tuple[dict[str, bytes | None], str, str]] = [
    ({"config.json": None}, "has no config.json", "config.json"),
    ({"config.json": None, "model.gguf": b"GGUF"}, "is a GGUF model", "4bit"),
    ({"config.json": None, "adapter_config.json": b"{}"}, "an adapter beside a model", "remove"),
    ({"config.json": b"{"}, "config.json of", "again"),
    ({"config.json": b"\xff\xfe"}, "not valid JSON", "again"),
    ({"config.json": b"[1]"}, "holds no JSON object", ""),
    ({"config.json": b"{}"}, "has no model_type", "idefics, idefics2, idefics3 and"),
    ({"config.json": b'{"model_type": "llava"}'}, "type `llava`", "idefics3 and smolvlm"),
    ({"model.safetensors": None}, "has no weights", "model.safetensors"),
    ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "safetensors format", "save_pretr"),
    ({"model.safetensors": b""}, "not a safetensors file", "again"),
    ({"model.safetensors": b"x" * 100}, "not a safetensors file", "again"),
    ({"model.safetensors": b"\x02" + bytes(7) + b"{"}, "not a safetensors file", "again"),
    ({"model.safetensors": b"version https://git-lfs"}, "Git LFS pointer", "git lfs pull"),
    (
        {"model.safetensors": checkpoints.safetensors({"a": [50]})[:-1]},
        "is cut short: ",
        "again",
    ),
    (
        {
            "model.safetensors": None,
            "model.safetensors.index.json": b'{"weight_map": {"a": "part.safetensors"}}',
        },
        "are missing: part.safetensors",
        "again",
    ),
    ({"tokenizer.json": None}, "has no tokenizer.json", "save_pretrained"),
    ({"preprocessor_config.json": None}, "has no preprocessor_config.json", "save_pretrained"),
    (
        {"preprocessor_config.json": None, "processor_config.json": b'{"image_seq_len": 64}'},
        "has no preprocessor_config.json",
        "from the folder of the base model",
    ),
    ({"preprocessor_config.json": b"{"}, "preprocessor_config.json of", "again"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message", "hint"), BROKEN)
def test_the_error_for_a_broken_folder_names_the_fault(
    tmp_path: Path, files: dict[str, bytes | None], message: str, hint: str
) -> None:
    content: dict[str, bytes | None] = {**checkpoints.files(), **files}
    checkpoints.write(tmp_path, {name: data for name, data in content.items() if data is not None})
    with pytest.raises(ModelError) as caught:
        find_facts(str(tmp_path))
    assert message in str(caught.value)
    assert hint in str(caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("idefic2-8b", "unknown model `idefic2-8b`", "`idefics2-8b`"),
        ("zzz", "unknown model `zzz`", "`idefics models`"),
        ("", "the name of the model is empty", "`idefics models`"),
        ("x" * 5000, "unknown model", "`idefics models`"),
        ("a\0b", "unknown model", "`idefics models`"),
        ("~no-such-user/model", "there is no folder", "Hub id"),
        ("C:\\models\\mine", "there is no folder", "Hub id"),
        ("./nowhere", "there is no folder `./nowhere`", "Hub id"),
        ("/nowhere/model", "there is no folder `/nowhere/model`", "Hub id"),
        ("a/b/c", "there is no folder `a/b/c`", "Hub id"),
        ("model.Q4_K_M.gguf", "is a GGUF model", "4bit"),
        ("owner/name with space", "unknown model", "Hub id"),
    ],
)
def test_a_name_without_a_meaning_is_an_error(name: str, message: str, hint: str) -> None:
    error = failure(name)
    assert message in str(error)
    assert hint in str(error.hint)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert "is a file" in str(failure(path))


def test_a_hub_id_is_known_before_its_weights_are_here(hub: FakeHub) -> None:
    facts = find_facts(REPO)
    size = len(hub.repos[REPO]["model.safetensors"])
    assert (facts.name, facts.family, facts.folder) == (REPO, "idefics2", None)
    assert facts.download_bytes == size
    # The file has a header and 100 numbers of 2 bytes.
    assert facts.parameters == size // 2
    assert hub.downloads("model.safetensors") == 0


def test_a_cached_hub_id_needs_no_network(root: Path, hub: FakeHub) -> None:
    folder = checkpoints.put_in_cache(root, REPO, checkpoints.files())
    facts = find_facts(REPO)
    assert (facts.folder, facts.parameters, facts.download_bytes) == (folder, 100, 0)
    assert not hub.requests
    assert find_folder(REPO) == folder


def test_offline_a_hub_id_that_is_not_cached_is_an_error(hub: FakeHub) -> None:
    error = failure(REPO, offline=True)
    assert f"`{REPO}` is not in the cache" in str(error)
    assert not hub.requests
    assert find_folder(REPO) is None


def test_a_hub_id_of_another_family_is_refused_before_its_weights_come(hub: FakeHub) -> None:
    hub.repos[REPO] = checkpoints.files(model_type="qwen2_vl")
    assert "type `qwen2_vl`" in str(failure(REPO))
    assert hub.downloads("model.safetensors") == 0


def test_a_hub_id_without_safetensors_is_refused(hub: FakeHub) -> None:
    content = checkpoints.files()
    content["pytorch_model.bin"] = content.pop("model.safetensors")
    hub.repos[REPO] = content
    assert "safetensors" in str(failure(REPO))


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8bit"),
    ],
)
def test_the_quantization_of_stored_weights_is_known(
    tmp_path: Path, settings: dict[str, object], stored: str
) -> None:
    content = checkpoints.files(quantization_config=settings)
    facts = find_facts(str(checkpoints.write(tmp_path, content)))
    assert (facts.stored, facts.stored_dtype) == (stored, "bfloat16")
    assert facts.stored_bytes == len(content["model.safetensors"])


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_weights_in_another_quantization_are_refused(tmp_path: Path, method: str) -> None:
    content = checkpoints.files(quantization_config={"quant_method": method})
    error = failure(checkpoints.write(tmp_path, content))
    assert f"quantized with {method}" in str(error)
    assert "4bit" in str(error.hint)


def test_facts_pickle_without_torch() -> None:
    import pickle

    facts = find_facts("smolvlm-500m")
    copy = pickle.loads(pickle.dumps(facts))
    assert isinstance(copy, ModelFacts)
    assert copy == facts
