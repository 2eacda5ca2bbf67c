"""A new family is one module and one row: a made-up one answers like transformers itself.

The module and the row are `tests/support/kite.py`. Nothing else knows of the family.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.families import spec
from idefics_cli.models.families.chat_template import CHAT_TEMPLATE
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from tests.support import kite, machines

QUESTION = "What is in this image?"


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny random checkpoint of the made-up family."""
    made = shutil.copytree(checkpoint("idefics2-split"), tmp_path / "kite")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "model_type": "kite"}))
    return made


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> spec.FamilySpec:
    """The row of the made-up family, in the table of families."""
    table = MappingProxyType({**spec.FAMILIES, kite.ROW.name: kite.ROW})
    monkeypatch.setattr(spec, "FAMILIES", table)
    return kite.ROW


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    image.paste((200, 40, 90), (5, 5, 45, 40))
    image.save(path := tmp_path / "picture.png")
    return path


def library_reply(folder: Path, picture: Path, *, max_new_tokens: int) -> list[int]:
    """The greedy tokens of the model, by plain calls of transformers."""
    processor = Idefics2Processor(
        image_processor=Idefics2ImageProcessorPil.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder, legacy=True),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    with Image.open(picture) as image:
        inputs = processor(text=text, images=[[image.convert("RGB")]], return_tensors="pt")
    inputs.pop("mm_token_type_ids", None)
    model = kite.KiteForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = processor.tokenizer.convert_tokens_to_ids
    reply = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=[ids("<end_of_utterance>"), ids("</s>")],
        bad_words_ids=[[ids(token)] for token in ("<image>", "<fake_token_around_image>")],
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    tokens: list[int] = reply[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def test_a_family_of_one_module_and_one_row_answers_as_the_library_does(
    folder: Path, picture: Path, row: spec.FamilySpec
) -> None:
    facts = find_facts(str(folder))
    assert (facts.family, facts.chats, facts.splitting) == ("kite", True, True)
    plan = make_plan(facts, PlanChoices(dtype="float32"), machines.cpu(16, cores=2))
    request = GenerationRequest(
        (Message("user", (Attachment(str(picture)), QUESTION)),), Sampling(max_new_tokens=12)
    )
    with LocalEngine(plan.spec) as engine:
        (completion,) = engine.complete([engine.prepare(request)])
    assert completion.new_tokens > 1
    assert list(completion.token_ids) == library_reply(folder, picture, max_new_tokens=12)


def test_the_cautions_of_its_row_are_in_its_plan(folder: Path, row: spec.FamilySpec) -> None:
    plan = make_plan(
        find_facts(str(folder)), PlanChoices(dtype="float16"), machines.gpus(machines.A100)
    )
    assert any(str(row.float16_caution) in warning for warning in plan.warnings)


def test_without_its_row_the_family_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="a model of type `kite`, which this tool does not run"):
        find_facts(str(folder))
