"""Known ways to wrong output without an error; none of them is open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Cache

from idefics_cli.core.errors import ModelError, PromptError
from idefics_cli.core.types import Attachment, GenerationRequest, LoadSpec, Message, Sampling
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.internals import cache_name
from idefics_cli.models.loading.loader import Loaded, check_tokenizer, load, load_config
from tests.support import tiny
from tests.support.prompts import complete_with
from tests.support.reference import auto_processor

Checkpoint = Callable[[str], Path]
PICTURE = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
LLAMA = ("idefics", "idefics-base", "idefics2", "idefics2-split", "idefics2-base")


# Any: fields of `LoadSpec`.
def spec_of(folder: Path, kind: str, **changes: Any) -> LoadSpec:
    family = json.loads((folder / "config.json").read_text())["model_type"]
    chats = not kind.endswith("base")
    return LoadSpec(repo=str(folder), family=family, chats=chats, **changes)


@pytest.fixture(scope="module")
def loaded_of(checkpoint: Checkpoint) -> Callable[[str], Loaded]:
    made: dict[str, Loaded] = {}

    def get(kind: str) -> Loaded:
        if kind not in made:
            made[kind] = load(spec_of(checkpoint(kind), kind))
        return made[kind]

    return get


LoadedOf = Callable[[str], Loaded]


def chat(*parts: str | Attachment) -> GenerationRequest:
    return GenerationRequest((Message("user", parts),), Sampling(max_new_tokens=4))


def raw(*parts: str | Attachment) -> GenerationRequest:
    return GenerationRequest((Message("user", parts),), Sampling(max_new_tokens=4), "complete")


def ids_of(family: Family, request: GenerationRequest) -> list[int]:
    ids: list[int] = inputs_of(family, request)["input_ids"][0].tolist()
    return ids


def inputs_of(family: Family, *requests: GenerationRequest) -> dict[str, torch.Tensor]:
    picture = family.preprocess(PICTURE).picture
    return family.encode(requests, [[picture] * len(r.attachments) for r in requests])


IMAGE = Attachment("picture.png")


@pytest.mark.parametrize("kind", LLAMA)
def test_text_after_a_special_token_keeps_its_word_mark(kind: str, loaded_of: LoadedOf) -> None:
    tokenizer = loaded_of(kind).family.tokenizer
    ids = tokenizer("<fake_token_around_image>\nA", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("▁") == ids[1]


@pytest.mark.parametrize("kind", LLAMA)
def test_a_tokenizer_that_drops_the_word_mark_is_refused(kind: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(kind)
    careless = auto_processor(folder, kind, legacy=False)
    with pytest.raises(ModelError, match="gives other tokens"):
        check_tokenizer(careless, folder, name=kind)


@pytest.mark.parametrize("kind", ["idefics", "idefics2"])
def test_a_resaved_checkpoint_gives_the_same_ids(
    kind: str, checkpoint: Checkpoint, loaded_of: LoadedOf, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint(kind), tmp_path, dirs_exist_ok=True)
    auto_processor(tmp_path, kind, legacy=True).save_pretrained(tmp_path)
    again = load(spec_of(tmp_path, kind)).family
    request = chat(IMAGE, "What is it?")
    assert ids_of(again, request) == ids_of(loaded_of(kind).family, request)


@pytest.mark.parametrize("uses_slots", [True, False])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_each_step_gives_the_model_one_token_and_a_cache_of_all_before(
    kind: str, uses_slots: bool, loaded_of: LoadedOf
) -> None:
    loaded = loaded_of(kind)
    request = replace(raw(IMAGE, "It is"), sampling=Sampling(max_new_tokens=4))
    calls: list[tuple[int, int]] = []

    def watch(module: nn.Module, _: object, named: dict[str, object]) -> None:
        tokens = named.get("input_ids", named.get("inputs_embeds"))
        states = named[cache_name(loaded.model.config.model_type)]
        assert isinstance(tokens, torch.Tensor)
        assert isinstance(states, Cache)
        calls.append((tokens.shape[1], states.get_seq_length()))

    hook = cast("nn.Module", loaded.model).register_forward_pre_hook(watch, with_kwargs=True)
    try:
        inference = Inference(loaded, uses_slots=uses_slots)
        prepared = Prepared(request, (inference.preprocess(PICTURE),))
        (answer,) = complete_with(inference, [prepared])
    finally:
        hook.remove()
    prompt = answer.prompt_tokens
    assert calls == [(prompt, 0), *((1, prompt + n) for n in range(answer.new_tokens - 1))]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_image_marks_without_images_are_refused_in_a_raw_prompt(
    kind: str, loaded_of: LoadedOf
) -> None:
    with pytest.raises(PromptError, match="1 `<image>`, and 0 pictures are given"):
        ids_of(loaded_of(kind).family, raw("What is <image>?"))


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_the_question_reaches_the_model(kind: str, loaded_of: LoadedOf) -> None:
    family = loaded_of(kind).family
    prompt = family.processor.tokenizer.decode(
        ids_of(family, chat(IMAGE, "What is it?")),
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    assert "What is it?<end_of_utterance>" in prompt
    assert prompt.endswith("\nAssistant:")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_prompt_begins_with_one_begin_token_whatever_else_is_in_the_batch(
    kind: str, loaded_of: LoadedOf
) -> None:
    family = loaded_of(kind).family
    bos = str(family.tokenizer.bos_token)
    begin = family.tokenizer.convert_tokens_to_ids(bos)
    requests = [raw(bos, IMAGE, "It is"), raw(IMAGE, "It"), raw(f"{bos}Once upon")]
    requests += [chat(IMAGE, "Hello")] if family.chats else []
    inputs = inputs_of(family, *requests)
    together = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    assert together == [ids_of(family, request) for request in requests]
    # Only SmolVLM's tokenizer adds no begin token.
    unwritten = 0 if kind.startswith("smolvlm") else 1
    assert [ids.count(begin) for ids in together[:3]] == [1, unwritten, 1]
    assert [ids.count(begin) for ids in together[3:]] == [1] * (len(requests) - 3)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_nothing_to_answer_is_refused(kind: str, loaded_of: LoadedOf) -> None:
    family = loaded_of(kind).family
    for mode in ("chat", "complete"):
        for messages in ((), (Message("user", ()),), (Message("user", ("",)),)):
            with pytest.raises(PromptError, match="empty"):
                family.check(GenerationRequest(messages, mode=mode))
    with pytest.raises(PromptError, match="empty"):
        family.check(chat(IMAGE))
    family.check(raw(IMAGE))


def test_what_a_checkpoints_template_refuses_is_an_error_of_ours(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("idefics3"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system turns') }}")
    family = load(spec_of(tmp_path, "idefics3")).family
    with pytest.raises(PromptError, match="refuses this: no system turns"):
        ids_of(family, chat("Hello"))


@pytest.mark.parametrize("kind", ["idefics2", "idefics3", "smolvlm2"])
def test_a_model_that_should_chat_and_has_no_template_is_refused_while_loading(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint(kind), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.json").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        load(spec_of(tmp_path, kind))


def test_a_folder_that_is_named_as_a_hub_id_is_not_taken_for_it(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint("idefics2"), tmp_path / "HuggingFaceM4" / "idefics2-8b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="is not in the cache"):
        load(LoadSpec(repo="HuggingFaceM4/idefics2-8b", family="idefics2", offline=True))


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_control_tokens_that_a_user_types_stay_text(kind: str, loaded_of: LoadedOf) -> None:
    family = loaded_of(kind).family
    control = family.tokenizer.get_added_vocab()
    clean = ids_of(family, chat(IMAGE, "Hello"))
    plain = ids_of(
        family,
        GenerationRequest(
            (
                Message("system", ("Be brief",)),
                Message("user", (IMAGE, "Hi there")),
                Message("assistant", ("Yes",)),
                Message("user", ("Hello",)),
            )
        ),
    )
    for token in [*control, "<im<image>age>", "<image><image>"]:
        request = GenerationRequest(
            (
                Message("system", (f"Be {token} brief",)),
                Message("user", (IMAGE, "Hi ", token, " there")),
                Message("assistant", (f"Yes{token}",)),
                Message("user", (f"{token}Hello",)),
            )
        )
        ids = ids_of(family, request)
        for name, control_id in control.items():
            assert ids.count(control_id) == plain.count(control_id), (token, name)
    assert clean.count(control["<image>"]) > 0


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/cat.jpg",
        "see:https://example.com/cat.jpg",
        "http:\n//example.com",
        "\n//example.com",
        "file://etc/passwd",
        "http://[broken",
        "a://b://c//d",
        "//example.com/http://x",
    ],
)
@pytest.mark.parametrize("kind", ["idefics", "idefics2", "idefics3"])
def test_a_url_that_a_user_types_is_never_fetched(
    kind: str, text: str, loaded_of: LoadedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = loaded_of(kind).family
    fetched: list[str] = []
    # Any: the protocol lacks the method that fetches.
    processor_class: Any = type(family.processor.image_processor)
    original = processor_class.fetch_images

    def fetch(self: object, source: object, *rest: object, **more: object) -> object:
        if isinstance(source, str):
            fetched.append(source)
            return PICTURE
        return original(self, source, *rest, **more)

    monkeypatch.setattr(processor_class, "fetch_images", fetch)
    for request in (chat(IMAGE, text), chat(text), raw(IMAGE, text), raw(text)):
        decoded = family.tokenizer.decode(
            ids_of(family, request), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert text.strip() in decoded
    assert fetched == []


def test_idefics1_puts_the_image_before_its_question_and_ends_the_turn(
    loaded_of: LoadedOf,
) -> None:
    family = loaded_of("idefics").family
    text = family.tokenizer.decode(
        ids_of(family, chat(IMAGE, "What is it?")),
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    fake = "<fake_token_around_image>"
    assert text.replace(" ", "") == (
        f"<s>User:{fake}<image>{fake}Whatisit?<end_of_utterance>\nAssistant:"
    )


def test_idefics1_still_sees_the_image_after_an_end_token_in_the_text(
    loaded_of: LoadedOf,
) -> None:
    request = GenerationRequest(
        (
            Message("user", (IMAGE, "What does </s> mean?")),
            Message("assistant", ("It ends </s> a text.",)),
            Message("user", ("And in the image?",)),
        )
    )
    mask = inputs_of(loaded_of("idefics").family, request)["image_attention_mask"]
    first = mask[0, :, 0].tolist().index(True)
    assert all(mask[0, first:, 0].tolist())


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_prompts_are_padded_on_the_left(kind: str, loaded_of: LoadedOf) -> None:
    requests = [raw(IMAGE, "It"), raw(IMAGE, "It is a picture of a")]
    inputs = inputs_of(loaded_of(kind).family, *requests)
    mask = inputs["attention_mask"]
    assert mask[:, -1].tolist() == [1, 1]
    assert mask[0, 0].item() == 0


def test_a_base_model_refuses_to_chat_and_names_the_model_that_does(
    checkpoint: Checkpoint,
) -> None:
    folder = checkpoint("idefics2-base")
    spec = spec_of(folder, "idefics2-base", name="idefics2-8b-base")
    with LocalEngine(spec) as engine, pytest.raises(PromptError, match="base model") as caught:
        engine.prepare(chat("Hello"))
    assert caught.value.hint is not None
    assert "-m idefics2-8b`" in caught.value.hint


@pytest.mark.parametrize("kind", ["idefics-base", "idefics2-base"])
def test_a_chat_token_in_a_base_models_prompt_is_an_error_not_a_crash(
    kind: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(kind)
    with LocalEngine(spec_of(folder, kind)) as engine:
        prepared = Prepared(raw("Hi<end_of_utterance>"))
        vocabulary = engine.loaded.vocabulary
        ids = ids_of(engine.loaded.family, prepared.request)
        if max(ids) < vocabulary:
            # The tokenizer lacks the token, so it is ordinary text.
            assert engine.complete([prepared])[0].new_tokens > 0
        else:
            with pytest.raises(PromptError, match="has only"):
                engine.complete([prepared])


def test_the_perceiver_takes_the_text_models_epsilon_when_the_config_is_silent(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = json.loads((checkpoint("idefics2") / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 3e-5
    (tmp_path / "config.json").write_text(json.dumps(config))
    stated = config["perceiver_config"]["rms_norm_eps"]
    assert load_config(tmp_path).perceiver_config.rms_norm_eps == stated
    del config["perceiver_config"]["rms_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_config(tmp_path).perceiver_config.rms_norm_eps == 3e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_is_the_plans_not_the_configs(dtype: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint("idefics2")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    loaded = load(spec_of(folder, "idefics2", dtype=dtype))
    assert isinstance(loaded.model, nn.Module)
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_reply_never_holds_an_image_token(kind: str, loaded_of: LoadedOf) -> None:
    family = loaded_of(kind).family
    banned = [
        i
        for token, i in family.tokenizer.get_added_vocab().items()
        if token in ("<image>", "<fake_token_around_image>", "<global-img>")
        or token.startswith("<row_")
    ]
    assert len(banned) >= 2
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):
        logits = torch.zeros(1, loaded_of(kind).vocabulary)
        logits[0, banned] = 100.0
        row = BatchRow(sampling, prompt=[1], limit=9, stop_ids=family.stop_ids)
        Scores(logits, torch.tensor(sorted(family.banned_ids))).choose_tokens([row])
        assert row.tokens[0] not in banned


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 50), (50, 3), (1, 300), (4, 4)])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_picture_of_a_few_pixels_is_taken_for_what_it_is(
    kind: str, size: tuple[int, int], checkpoint: Checkpoint, tmp_path: Path, loaded_of: LoadedOf
) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", size, (255, 0, 0)).save(path)
    with LocalEngine(spec_of(checkpoint(kind), kind)) as engine:
        prepared = engine.prepare(raw(Attachment(str(path)), " is"))
        (ready,) = engine.find_tensors(prepared)
        # The picture stays red in every tile: channel 0 is above the other two.
        assert all(tile[0].min() > tile[1].max() for tile in ready.tiles)
        assert {tile.shape[0] for tile in ready.tiles} == {3}
        assert engine.complete([prepared])[0].new_tokens > 0


@pytest.mark.parametrize("kind", ["idefics2", "idefics3", "smolvlm2"])
def test_splitting_changes_text_and_pixels_together(kind: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(kind)
    counts = {}
    for splitting in (False, True):
        with LocalEngine(spec_of(folder, kind, splitting=splitting)) as engine:
            prepared = Prepared(chat(IMAGE, "What is it?"), (engine.preprocess(PICTURE),))
            tokens = engine.measure(prepared).prompt_tokens
            counts[splitting] = (tokens, len(engine.find_tensors(prepared)[0].tiles))
            assert engine.complete([prepared])[0].new_tokens > 0
    assert counts[True][0] > counts[False][0]
    assert counts[True][1] > counts[False][1]
