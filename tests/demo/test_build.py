"""The built-in model before training: processor, tokenizer, settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idefics_cli.demo.build import build_model, build_processor
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.demo.training.worker import save
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.spec import END_OF_UTTERANCE
from tests.support.reference import auto_processor


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the saved processor and model before training."""
    folder = tmp_path_factory.mktemp("untrained")
    processor = build_processor()
    save(build_model(processor.tokenizer), processor, folder)
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_what_is_built_from_nothing_is_what_is_shipped(untrained: Path, name: str) -> None:
    assert (untrained / name).read_text() == (WEIGHTS / name).read_text()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_built_from_nothing_are_those_shipped(untrained: Path, name: str) -> None:
    built, shipped = (json.loads((f / name).read_text()) for f in (untrained, WEIGHTS))
    for settings in (built, shipped):
        settings.pop("transformers_version", None)

    assert built == shipped


def test_the_shipped_model_is_small_and_readable_by_all() -> None:
    files = list(WEIGHTS.iterdir())

    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_the_tokenizer_keeps_what_it_does_not_know(processor: Processor) -> None:
    for text in ("Zürich é 漢字!", "Is there a red star?", "a\nb", "<0x41> 12"):
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = processor.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

        assert decoded == text


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}])
def test_the_tokenizer_is_that_of_its_file_whatever_legacy_says(
    settings: dict[str, bool],
) -> None:
    from tokenizers import Tokenizer

    loaded = auto_processor(WEIGHTS, "idefics2", **settings).tokenizer
    raw = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    text = f"User: What do you see?{END_OF_UTTERANCE}\nAssistant: A cat.{END_OF_UTTERANCE}\nA"
    ids = loaded(text)["input_ids"]
    end = ids.index(loaded.convert_tokens_to_ids(END_OF_UTTERANCE))

    assert ids == raw.encode(text).ids
    assert loaded.convert_ids_to_tokens(ids[end + 1 : end + 3]) == ["▁", "\n"]
