"""Checkpoints whose files are odd: each runs rightly, or is refused for the true reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import IdeficsError, ModelError, PromptError
from idefics_cli.core.types import Attachment, GenerationRequest, LoadSpec, Message, Sampling
from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.families.prompt_template import PromptTemplate
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.loading.loader import load
from idefics_cli.models.loading.processors import gives_ids_of_file
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from tests.support import machines, tiny
from tests.support.commands import run
from tests.support.pictures import quadrants
from tests.support.pixels import pixel_values

Change = Callable[[dict[str, object]], object]
QUESTION = "What is in this image?"
DOCLING: dict[str, object] = {
    "add_prefix_space": False,
    "additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 8192,
    "processor_class": "Idefics3Processor",
    "tokenizer_class": "GPT2Tokenizer",
    "truncation_side": "left",
    "unk_token": "<|endoftext|>",
    "vocab_size": 49152,
}
"""Settings of the tokenizer of ibm-granite/granite-docling-258M."""


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return what copies the checkpoint of a kind and changes the object in one of its files."""

    def make(kind: str, file: str = "config.json", change: Change = lambda content: None) -> Path:
        folder = tmp_path / "odd"
        shutil.copytree(checkpoint(kind), folder)
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        change(content)
        path.write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    quadrants(90, 60).save(path)
    return path


def spec_of(folder: Path) -> LoadSpec:
    facts = find_facts(str(folder))
    return make_plan(facts, PlanChoices(dtype="float32"), machines.cpu(16, cores=2)).spec


def answer(folder: Path, picture: Path) -> tuple[int, ...]:
    """Return the tokens of a greedy answer about *picture*."""
    request = GenerationRequest(
        (Message("user", (Attachment(str(picture)), QUESTION)),), Sampling(max_new_tokens=6)
    )
    with LocalEngine(spec_of(folder)) as engine:
        (completion,) = engine.complete([engine.prepare(request)])
    return completion.token_ids


def set_to(**values: object) -> Change:
    return lambda content: content.update(values)


def without(*keys: str) -> Change:
    return lambda content: [content.pop(key) for key in keys]


def in_text(**values: object) -> Change:
    return lambda content: content["text_config"].update(values)  # type: ignore[attr-defined]  # JSON


RIGHT: list[tuple[str, str, Change]] = [
    ("idefics3", "preprocessor_config.json", without("max_image_size")),
    ("smolvlm2", "preprocessor_config.json", without("max_image_size")),
    ("idefics", "preprocessor_config.json", without("image_size", "size")),
    ("idefics3", "processor_config.json", set_to(image_seq_len=169)),
    ("idefics3", "processor_config.json", without("image_seq_len")),
    ("idefics2", "processor_config.json", set_to(image_seq_len=10**7)),
    ("idefics2", "processor_config.json", set_to(image_seq_len="x")),
]


@pytest.mark.parametrize(("kind", "file", "change"), RIGHT)
def test_settings_that_follow_from_the_model_may_be_missing_or_stale(
    kind: str,
    file: str,
    change: Change,
    copy: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    picture: Path,
) -> None:
    assert answer(copy(kind, file, change), picture) == answer(checkpoint(kind), picture)


def test_a_tokenizer_without_the_legacy_flag_is_read_as_its_file(copy: Callable[..., Path]) -> None:
    folder = copy("idefics2", "tokenizer_config.json", set_to(legacy=False))
    plain = AutoTokenizer.from_pretrained(folder, legacy=False)
    plain.save_pretrained(folder)
    # As transformers without arguments gives them; with `legacy`, they differ.
    assert gives_ids_of_file(AutoTokenizer.from_pretrained(folder), folder)
    assert not gives_ids_of_file(AutoTokenizer.from_pretrained(folder, legacy=True), folder)
    tokenizer = load(spec_of(folder)).family.tokenizer
    text = "User: Hi<end_of_utterance>\nAssistant: A cat"
    assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]


def test_a_head_that_only_the_text_settings_tie_is_tied(
    copy: Callable[..., Path], picture: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy("idefics3", "config.json", set_to(tie_word_embeddings=True))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    expected = answer(folder, picture)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    assert answer(folder, picture) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}<end_of_utterance>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    ],
)
def test_a_template_for_strings_gets_strings(template: str, copy: Callable[..., Path]) -> None:
    folder = copy("idefics3", "chat_template.json", set_to(chat_template=template))
    family = load(spec_of(folder)).family
    message = Message("user", (Attachment("a.png"), QUESTION))
    request = GenerationRequest((message, Message("assistant", ("A cat.",)), message))
    prepared = family.preprocess(quadrants()).picture
    (ids,) = family.encode([request], [[prepared, prepared]])["input_ids"].tolist()
    # transformers, called with the strings that the template's authors had in mind.
    turns = [
        ("user", f"<image>{QUESTION}"),
        ("assistant", "A cat."),
        ("user", f"<image>{QUESTION}"),
    ]
    text = "".join(f"{role}: {content}<end_of_utterance>\n" for role, content in turns)
    library = family.processor(text=[text + "assistant:"], images=[[quadrants(), quadrants()]])  # type: ignore[call-arg]  # the protocol has no pictures
    assert ids == library["input_ids"][0]


def _edges(longest: int, shortest: int) -> dict[str, int]:
    return {"longest_edge": longest, "shortest_edge": shortest}


REFUSED: list[tuple[str, str, Change, str, str]] = [
    ("idefics", "preprocessor_config.json", set_to(image_size=56, size={"height": 56, "width": 56}),
     "are of 56 x 56 pixels, and the model takes 28 x 28", "preprocessor_config.json"),
    ("idefics", "preprocessor_config.json", set_to(do_resize=False),
     "and the model takes 28 x 28", "preprocessor_config.json"),
    ("idefics3", "preprocessor_config.json", set_to(max_image_size={"longest_edge": 42}),
     "are of 42 x 42 pixels, which are no square of 28", "preprocessor_config.json"),
    ("idefics2", "preprocessor_config.json", set_to(size=_edges(16000, 28)),
     "scales pictures to 16000 pixels, and its vision model was made for 70", "preprocessor"),
    ("idefics2", "preprocessor_config.json", set_to(size=_edges(70, 16000)),
     "scales pictures to 16000 pixels", "preprocessor_config.json"),
    ("idefics3", "preprocessor_config.json", set_to(max_image_size={"longest_edge": 16000}),
     "scales pictures to 16000 pixels", "preprocessor_config.json"),
    ("idefics3", "preprocessor_config.json", set_to(image_mean=[0.5] * 7),
     "mean must have 3 elements", "copy or download"),
    ("idefics3", "preprocessor_config.json", set_to(resample=99),
     "Unknown resampling filter", "copy or download"),
    ("idefics2", "config.json", in_text(num_hidden_layers=1),
     "has weights for more layers than config.json says", "from one checkpoint"),
    ("idefics2", "config.json", in_text(num_hidden_layers=3), "lacks 9 of its weights", "again"),
    ("idefics2", "config.json", in_text(hidden_size=64), "have other shapes", "one checkpoint"),
    ("idefics3", "config.json", in_text(hidden_act="nope"), "KeyError: 'nope'", "damaged"),
    ("idefics3", "config.json", in_text(model_type="evil"), "evil", "damaged"),
    ("idefics3", "generation_config.json", set_to(eos_token_id=["x", None]),
     "an eos_token_id that is no token", "again"),
    ("idefics2", "tokenizer_config.json", set_to(tokenizer_class="BertTokenizer"),
     "gives other tokens", ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "change", "message", "hint"), REFUSED)
def test_what_cannot_run_rightly_is_refused_while_loading(
    kind: str, file: str, change: Change, message: str, hint: str, copy: Callable[..., Path]
) -> None:
    folder = copy(kind, file, change)
    with pytest.raises(ModelError) as caught:
        load(spec_of(folder))
    assert message in str(caught.value)
    assert hint in str(caught.value.hint)


def test_a_tokenizer_in_one_file_of_sentencepiece_needs_its_package(
    copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("idefics2")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    # `find_spec` takes a module that is None for one that is not there.
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ModelError, match="needs the package sentencepiece") as caught:
        load(spec_of(folder))
    assert "pip install sentencepiece" in str(caught.value.hint)


FAULTS = [
    ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
     "writes 0 `<image>` for a picture"),
    ("{% for m in messages %}<image><image>{{ m.content }}{% endfor %}",
     "writes 2 `<image>` for a picture"),
    ("<image>", "writes no text"),
    ("{{ 1 // 0 }}", "fails: ZeroDivisionError"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: RecursionError"),
    ("{{ 'x' * 10**15 }}", "fails: TemplateTooLarge: it makes a value of more than"),
    ("{{ messages[5].content.x }}", "fails: UndefinedError"),
    ("{% for %}", "fails: TemplateSyntaxError"),
    ("{% if 1 %}" * 2000 + "x" + "{% endif %}" * 2000, "fails: RecursionError"),
    ("{{ range(10**9) }}", "fails: OverflowError"),
    ("{{ ''.__class__.__mro__ }}<image>", "fails: SecurityError"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_a_template_without_one_mark_for_a_picture_is_refused_while_loading(
    template: str, fault: str, copy: Callable[..., Path]
) -> None:
    folder = copy("idefics3", "chat_template.json", set_to(chat_template=template))
    with pytest.raises(ModelError) as caught:
        load(spec_of(folder))
    assert f"the chat template of `{folder}` {fault}" in str(caught.value)
    assert "chat_template.jinja" in str(caught.value.hint)


def test_a_run_of_captions_ends_at_once_with_a_template_that_cannot_be_used(
    copy: Callable[..., Path], picture: Path
) -> None:
    folder = copy("idefics3", "chat_template.json", set_to(chat_template="{{ 1 // 0 }}"))
    services = Services(probe=lambda: machines.cpu(24, cores=2))
    ran = run("caption", "-m", str(folder), str(picture), str(picture), services=services)
    assert (ran.code, ran.out) == (1, "")
    assert "fails: ZeroDivisionError" in ran.err
    assert "Traceback" not in ran.err


def test_markup_of_special_tokens_is_text_of_prompt_and_reply(copy: Callable[..., Path]) -> None:
    """As in Granite-Docling, whose answers are made of `<loc_12>` and `<otsl>`."""
    folder = copy("idefics3")
    raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_special_tokens(["<otsl>", "<loc_12>", "<|start_of_role|>", "<filename>"])
    raw.save(str(folder / "tokenizer.json"))
    family = load(spec_of(folder)).family
    ids = family.tokenizer("<otsl><loc_12>L<|start_of_role|><image><filename><end_of_utterance>")[
        "input_ids"
    ]
    reply = Detokenizer(family.tokenizer, strip=True, hidden=family.hidden_ids)
    assert reply.whole(ids) == "<otsl><loc_12>L"
    pieces = [reply.feed(ids[:n], last=n == len(ids)) for n in range(1, len(ids) + 1)]
    assert "".join(pieces) == "<otsl><loc_12>L"
    assert family.break_control_tokens("<loc_12><filename>") == "<loc_12>< filename>"


def test_a_reply_of_a_document_model_shows_its_markup_wherever_it_goes(
    copy: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    """With the tokenizer settings of Granite-Docling, and a head that says only markup."""
    from safetensors.torch import load_file, save_file

    folder = copy("smolvlm", "tokenizer_config.json", lambda content: content.update(DOCLING))
    raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
    markup = ["<doctag>", "<loc_12>", "<loc_490>", "<otsl>", "<fcel>", "<nl>", "</doctag>"]
    raw.add_special_tokens([*markup, "<|endoftext|>"])
    raw.save(str(folder / "tokenizer.json"))
    first, rows = raw.token_to_id("<doctag>"), raw.get_vocab_size()
    weights = load_file(folder / "model.safetensors")
    # With other weights, the reply may be one tag over and over, which `caption` asks again.
    source = torch.Generator().manual_seed(0)
    for name in ("model.text_model.embed_tokens.weight", "lm_head.weight"):
        old = weights[name]
        # The rows of letters are small, so that markup is likeliest.
        weights[name] = torch.cat(
            [old * 0.01, torch.randn(rows - len(old), old.shape[1], generator=source)]
        )
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    in_text(vocab_size=rows)(config)
    (folder / "config.json").write_text(json.dumps(config))

    services = Services(probe=lambda: machines.cpu(24, cores=2), stdin=None)
    call = (
        "-m",
        str(folder),
        "-i",
        str(picture),
        "--max-new-tokens",
        "12",
        "--dtype",
        "float32",
        "--repetition-penalty",
        "3",
    )
    whole = run("ask", "Convert this page.", *call, "--json", services=services)
    ids = whole.record["token_ids"]
    shown = [raw.id_to_token(i) for i in ids if raw.id_to_token(i) in markup]
    assert len(shown) > 5
    assert max(ids) >= first
    assert [t for t in re.findall(r"</?[a-z_0-9]+>", whole.record["text"]) if t in markup] == shown
    assert "<|endoftext|>" not in whole.record["text"]
    streamed = run("ask", "Convert this page.", *call, "--stream", services=services)
    assert streamed.out.rstrip("\n") == whole.record["text"]
    out = tmp_path / "captions.jsonl"
    captioned = run(
        "caption", str(picture), "-p", "Convert this page.", "-o", str(out), *call[:2], *call[4:],
        services=services,
    )  # fmt: skip
    assert captioned.code == 0
    assert json.loads(out.read_text())["caption"] == whole.record["text"]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_tokenizer_without_markup_hides_all_special_tokens(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    assert load(spec_of(checkpoint(kind))).family.hidden_ids is None


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{% for %}", "no text", None])
def test_a_raw_prompt_needs_no_template(
    template: str | None, copy: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    change = set_to(chat_template=template)
    folder = copy("idefics3", "chat_template.json", change)
    call = ("ask", "--raw", "User: Hi", "--max-new-tokens", "4", "--json", "--dtype", "float32")
    services = Services(probe=lambda: machines.cpu(24, cores=2), stdin=None)
    broken = run(*call, "-m", str(folder), services=services)
    whole = run(*call, "-m", str(checkpoint("idefics3")), services=services)
    assert broken.code == 0
    assert broken.record["token_ids"] == whole.record["token_ids"]
    assert len(whole.record["token_ids"]) == 4
    assert run("ask", "Hi", "-m", str(folder), services=services).code == 1


class Rendered:
    """A processor whose template is a function of the conversation."""

    def __init__(self, template: Callable[[list[dict[str, object]]], str]) -> None:
        self.template = template

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, add_generation_prompt: bool
    ) -> str:
        return self.template(conversation)


def template_of(
    function: Callable[[list[dict[str, object]]], str], **options: float
) -> PromptTemplate:
    processor: Processor = Rendered(function)  # type: ignore[assignment]  # a part of one
    return PromptTemplate(processor, **options)


def test_a_template_that_does_not_end_is_refused() -> None:
    import threading

    gone = threading.Event()
    template = template_of(lambda turns: str(gone.wait(20)), probe_seconds=0.05)
    gone.set()
    assert template.fault == "does not end within 0.05 seconds"


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        (ZeroDivisionError("division by zero"), ModelError, "fails: ZeroDivisionError: division"),
        (TypeError(), ModelError, "fails: TypeError"),
        ("<image>", PromptError, "writes 1 `<image>` for 2 pictures"),
        (None, ModelError, "the template gives no text"),
    ],
)
def test_a_template_that_fails_later_is_an_error_of_ours(
    result: object, kind: type[IdeficsError], message: str
) -> None:
    def render(turns: list[dict[str, object]]) -> str:
        if len(turns) == 1:
            return "<image>What is it?"
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]  # what a template may give

    template = template_of(render)
    assert template.fault is None
    with pytest.raises(kind, match=message) as caught:
        template.render([("user", [None, "a"]), ("assistant", ["b"]), ("user", [None, "c"])])
    assert caught.value.hint


def test_pictures_that_are_not_scaled_are_not_reduced_while_decoding(
    copy: Callable[..., Path],
) -> None:
    folder = copy("idefics2", "preprocessor_config.json", set_to(do_resize=False))
    family = load(spec_of(folder)).family
    assert family.draft_edge > 65_000
    prepared = family.preprocess(Image.new("RGB", (140, 70)))
    assert prepared.picture.tile_sizes == ((70, 140),)
    assert torch.equal(pixel_values(prepared)[0], torch.full((3, 70, 140), -1.0))
