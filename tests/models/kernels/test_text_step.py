"""The compiled decode step computes what transformers computes."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.kernels import code_store
from idefics_cli.models.kernels.jit import CompiledModule
from idefics_cli.models.kernels.openmp import torch_threads
from idefics_cli.models.kernels.text_step.functions import BARRIER, StepKind
from idefics_cli.models.kernels.text_step.layout import Format
from idefics_cli.models.kernels.text_step.program import write_module
from idefics_cli.models.kernels.text_step.step import TextModel, TextStep
from idefics_cli.models.loading import text_step
from idefics_cli.models.loading.loader import Loaded, load
from tests.support import machines
from tests.support.kernels import needs_compiler, relative_error, spec_of

pytestmark = needs_compiler

# The text model of the SmolVLMs is that of Idefics3.
KINDS = ("idefics2", "idefics3")
# Rows of different lengths, up to more than a block of keys and than a vector of scores.
LENGTHS = (1, 3, 16, 150)
# The held and the new tokens of short prompts.
PROMPTS = (
    (0, 1), (0, 32), (1, 2), (1, 31), (16, 15), (16, 32), (150, 1), (150, 2), (150, 15), (150, 31),
)  # fmt: skip
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"dtype": "float32", "quantization": "8bit"},
    "8bit in bfloat16": {"dtype": "bfloat16", "quantization": "8bit"},
    "int4": {"dtype": "bfloat16", "quantization": "4bit", "format_4bit": "int4"},
}


class States:
    """The KV states of one layer."""

    def __init__(self, rows: int, like: Tensor, capacity: int) -> None:
        shape = (rows, like.shape[1], capacity, like.shape[3])
        self.keys, self.values = (torch.zeros(shape, dtype=like.dtype) for _ in range(2))


def text_of(loaded: Loaded) -> nn.Module:
    model = loaded.model
    assert isinstance(model, nn.Module)
    return model.get_submodule("model.text_model")


def prompts(loaded: Loaded) -> tuple[list[DynamicCache], list[Tensor]]:
    """Return the KV states of random prompts, and the embedding of the token after each."""
    generator = torch.Generator().manual_seed(0)
    text, caches, tokens = text_of(loaded), [], []
    width = loaded.model.config.get_text_config().hidden_size
    for length in LENGTHS:
        embedded = torch.randn(1, length + 1, width, generator=generator).to(
            loaded.model.model.dtype
        )
        cache = DynamicCache()
        text(inputs_embeds=embedded[:, :length], cache=cache, use_cache=True)
        caches.append(cache)
        tokens.append(embedded[:, length:])
    return caches, tokens


def states_of(caches: Sequence[DynamicCache], capacity: int) -> list[States]:
    """Return the states of all rows together, as slots hold them."""
    found = []
    for index, layer in enumerate(caches[0].layers):
        states = States(len(caches) + 1, layer.keys, capacity)
        for row, cache in enumerate(caches):
            length = cache.get_seq_length()
            states.keys[row, :, :length] = cache.layers[index].keys
            states.values[row, :, :length] = cache.layers[index].values
        found.append(states)
    return found


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_computes_what_transformers_does(
    kind: str, format_: str, checkpoint: Callable[[str], Path]
) -> None:
    loaded = load(spec_of(checkpoint(kind), **FORMATS[format_]))
    assert loaded.text_step is not None
    head = loaded.model.get_output_embeddings()
    tolerance = 1e-5 if loaded.model.model.dtype == torch.float32 else 0.02
    with torch.inference_mode():
        caches, tokens = prompts(loaded)
        held = {threads: states_of(caches, 256) for threads in (1, 2)}
        given = {}
        for threads, states in held.items():
            with torch_threads(threads):
                given[threads] = loaded.text_step(torch.cat(tokens)[:, 0], LENGTHS, states)
        wanted = []
        for cache, token in zip(caches, tokens, strict=True):
            hidden = text_of(loaded)(inputs_embeds=token, cache=cache, use_cache=True)
            wanted.append(head(hidden.last_hidden_state[:, -1]))
        again = states_of(caches, 256)
    for threads, logits in given.items():
        assert logits.dtype == wanted[0].dtype
        assert relative_error(logits, torch.cat(wanted)) < tolerance
        # The KV states of the new tokens are where the next step looks for them.
        for ours, theirs in zip(held[threads], again, strict=True):
            assert relative_error(ours.keys, theirs.keys) < tolerance
            assert relative_error(ours.values, theirs.values) < tolerance


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_short_prompt_behind_known_tokens_computes_what_transformers_does(
    kind: str, format_: str, checkpoint: Callable[[str], Path]
) -> None:
    loaded = load(spec_of(checkpoint(kind), **FORMATS[format_]))
    tolerance = 1e-5 if loaded.model.model.dtype == torch.float32 else 0.02
    if format_ == "8bit":
        # A number in the middle between two numbers of 16 bits may be rounded up in one way and
        # down in the other. The largest error for 300 other prompts was 1.1e-5.
        tolerance = 3e-5
    for number, (held, new) in enumerate(PROMPTS):
        # One thread reads the keys that another has written.
        with torch.inference_mode(), torch_threads(1 + number % 2):
            check_prompt(loaded, held, new, tolerance)


def check_prompt(loaded: Loaded, held: int, new: int, tolerance: float) -> None:
    """Run *new* tokens behind *held* tokens by both ways, and compare."""
    assert loaded.text_step is not None
    generator = torch.Generator().manual_seed(held + new)
    width = loaded.model.config.get_text_config().hidden_size
    embedded = torch.randn(1, held + new, width, generator=generator).to(loaded.model.model.dtype)
    text, cache = text_of(loaded), DynamicCache()
    if held:
        text(inputs_embeds=embedded[:, :held], cache=cache, use_cache=True)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    hidden = text(inputs_embeds=embedded[:, held:], cache=cache, use_cache=True).last_hidden_state
    wanted = loaded.model.get_output_embeddings()(hidden[:, -1])
    states = [States(1, layer.keys, held + new) for layer in cache.layers]
    for (keys, values), layer in zip(before, states, strict=False):
        layer.keys[:, :, :held], layer.values[:, :, :held] = keys, values
    given = loaded.text_step.run_prompt(embedded[0, held:], held, states)
    assert given.dtype == wanted.dtype
    assert relative_error(given, wanted) < tolerance
    for ours, theirs in zip(states, cache.layers, strict=True):
        assert relative_error(ours.keys, theirs.keys) < tolerance
        assert relative_error(ours.values, theirs.values) < tolerance


def reached_without_waiting(text: str, name: str) -> list[set[str]]:
    """Return, for each call of the function *name*, the functions that may be called after it.

    Only calls count before which the threads have not waited for each other.
    """
    body = text[text.index('define void @"step"') :]
    parts = re.split(r'^"?([.\w]+)"?:$', body, flags=re.MULTILINE)
    blocks = dict(zip(parts[1::2], parts[2::2], strict=True))
    calls = {label: re.findall(r'call void @"(\w+)"', code) for label, code in blocks.items()}
    follow = {label: re.findall(r'label %"([^"]+)"', code) for label, code in blocks.items()}
    found = []
    for label, names in calls.items():
        for place, called in enumerate(names):
            if called != name:
                continue
            reached: set[str] = set()
            seen: set[str] = set()
            paths = [(label, place + 1)]
            while paths:
                at, first = paths.pop()
                after = calls[at][first:]
                before = after[: after.index(BARRIER)] if BARRIER in after else after
                reached.update(before)
                if before == after:
                    paths += [(each, 0) for each in follow[at] if each not in seen]
                    seen.update(follow[at])
            found.append(reached)
    return found


@needs_compiler
def test_all_states_of_a_prompt_are_stored_before_any_token_attends_to_them() -> None:
    # Without the wait, wrong logits are rare unless threads outnumber the cores.
    text = write_module(StepKind((Format.FLOAT32,), 16, is_bfloat16=False), "step")
    of_prompt, of_rows = sorted(reached_without_waiting(text, "store_state"), key=len)
    assert of_prompt == {"store_state"}
    # A row of a decode step attends to its own states only, which the same thread stores.
    assert of_rows == {"store_state", "attention"}
    assert "product" not in set().union(*reached_without_waiting(text, "attention"))


def narrow(folder: Path, copy: Path) -> Loaded:
    """Load a copy of the checkpoint whose tokens attend to 12 tokens only."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["sliding_window"] = 12
    config["text_config"].pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    return load(spec_of(copy, dtype="float32"))


def test_a_sliding_window_hides_older_tokens(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = narrow(checkpoint("idefics2"), tmp_path / "narrow")
    assert loaded.text_step is not None
    with torch.inference_mode():
        caches, tokens = prompts(loaded)
        whole = [DynamicCache() for _ in LENGTHS]
        generator = torch.Generator().manual_seed(0)
        wanted = []
        width = tokens[0].shape[-1]
        for length, cache in zip(LENGTHS, whole, strict=True):
            embedded = torch.randn(1, length + 1, width, generator=generator)
            hidden = text_of(loaded)(inputs_embeds=embedded, cache=cache, use_cache=True)
            wanted.append(loaded.model.get_output_embeddings()(hidden.last_hidden_state[:, -1]))
        given = loaded.text_step(torch.cat(tokens)[:, 0], LENGTHS, states_of(caches, 256))
        assert relative_error(given, torch.cat(wanted)) < 1e-5


def test_a_sliding_window_hides_older_tokens_of_a_short_prompt(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = narrow(checkpoint("idefics2"), tmp_path / "narrow")
    step = loaded.text_step
    assert step is not None
    generator = torch.Generator().manual_seed(0)
    width = loaded.model.config.get_text_config().hidden_size
    with torch.inference_mode():
        embedded = torch.randn(1, 60, width, generator=generator)
        cache = DynamicCache()
        hidden = text_of(loaded)(inputs_embeds=embedded, cache=cache, use_cache=True)
        wanted = loaded.model.get_output_embeddings()(hidden.last_hidden_state[:, -1])
        states = [States(1, layer.keys, 60) for layer in cache.layers]
        for start in (0, 20, 40):
            given = step.run_prompt(embedded[0, start : start + 20], start, states)
    assert relative_error(given, wanted) < 1e-5


def test_a_key_that_is_no_number_makes_the_logits_of_its_row_none(
    checkpoint: Callable[[str], Path],
) -> None:
    loaded = load(spec_of(checkpoint("smolvlm"), dtype="float32"))
    assert loaded.text_step is not None
    with torch.inference_mode():
        caches, tokens = prompts(loaded)
        states = states_of(caches, 256)
        states[1].keys[1, 0, 0, 0] = float("nan")
        logits = loaded.text_step(torch.cat(tokens)[:, 0], LENGTHS, states)
    assert logits.isnan().all(1).tolist() == [False, True, False, False]
    assert logits.isnan().any(1).tolist() == [False, True, False, False]


def test_rows_threads_and_buffers_may_change_between_steps(
    checkpoint: Callable[[str], Path],
) -> None:
    loaded = load(spec_of(checkpoint("smolvlm"), dtype="float32"))
    step = loaded.text_step
    assert step is not None
    with torch.inference_mode():
        caches, tokens = prompts(loaded)
        together = step(torch.cat(tokens)[:, 0], LENGTHS, states_of(caches, 256)).clone()
        for row, (cache, token) in enumerate(zip(caches, tokens, strict=True)):
            with torch_threads(1 + row % 2):
                capacity = LENGTHS[row] + 1
                alone = step(token[:, 0], [LENGTHS[row]], states_of([cache], capacity))
            assert relative_error(alone, together[row : row + 1]) < 1e-5


def test_a_step_that_differs_from_transformers_is_left_out_with_a_warning(
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = spec_of(checkpoint("idefics2"), dtype="float32")
    right = text_step.text_model_of

    def wrong(*arguments: Any) -> TextModel | None:
        text = right(*arguments)
        return None if text is None else replace(text, scaling=2 * text.scaling)

    monkeypatch.setattr(text_step, "text_model_of", wrong)
    with caplog.at_level(logging.WARNING):
        assert load(spec).text_step is None
    assert caplog.messages == ["the kernel `text_step` fails its self-test; torch replaces it"]


def test_a_step_whose_prompts_differ_is_left_out_too(
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    right = TextStep.run_prompt

    def wrong(step: TextStep, states: Tensor, position: int, layers: Sequence[States]) -> Tensor:
        return right(step, states.flip(0), position, layers)

    monkeypatch.setattr(TextStep, "run_prompt", wrong)
    with caplog.at_level(logging.WARNING):
        assert load(spec_of(checkpoint("smolvlm"), dtype="float32")).text_step is None
    assert caplog.messages == ["the kernel `text_step` fails its self-test; torch replaces it"]


def test_layers_without_code_are_left_to_torch_with_a_warning(
    checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(
        spec_of(checkpoint("idefics2"), dtype="float32"),
        quantization="8bit",
        kernels=KernelChoice(text=("int8_torch",), head=("int8_torch",), step=("text_step",)),
    )
    with caplog.at_level(logging.WARNING):
        assert load(spec).text_step is None
    assert caplog.messages == [
        "the kernel `text_step` does not fit: no code for the layer `TorchInt8Linear`; torch "
        "replaces it"
    ]


def test_bfloat16_weights_without_a_layout_of_their_own_have_code(
    checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(
        spec_of(checkpoint("idefics2"), dtype="bfloat16"),
        kernels=KernelChoice(text=("bf16_widened",), step=("text_step",)),
    )
    old_processor = machines.cpu(
        24, "avx2", "fma", versions={**machines.VERSIONS, "llvmlite": "0.50.0"}
    )
    with caplog.at_level(logging.WARNING):
        assert load(spec, machine=old_processor).text_step is not None
    assert caplog.messages == []


def test_a_text_model_of_another_structure_has_no_step(checkpoint: Callable[[str], Path]) -> None:
    spec = spec_of(checkpoint("idefics"), dtype="float32")
    assert spec.kernels.step == ()
    loaded = load(spec)
    assert loaded.text_step is None
    assert text_step.text_model_of(loaded.model, find_family("idefics")) is None


def test_a_plan_without_the_step_runs_the_layers_of_torch() -> None:
    assert load(LoadSpec(repo="demo", family="idefics2")).text_step is None


def test_code_that_was_kept_is_used_unless_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written: list[str] = []

    def write() -> str:
        written.append("step")
        return 'define void @"step"(ptr %data) { ret void }'

    def compile_it() -> None:
        CompiledModule("a key", write, symbols={BARRIER: 1})

    for _ in range(2):
        compile_it()
    assert written == ["step"]
    (file,) = (tmp_path / "idefics" / "code").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole[:50] + b"\0" + whole[51:], whole + b"x"):
        written.clear()
        file.write_bytes(damaged)
        compile_it()
        assert written == ["step"]
        assert file.read_bytes() == whole
    # The undamaged code of another kernel would crash this process, or compute something else.
    code_store.keep_code("another key", b"code")
    written.clear()
    (other,) = {*file.parent.iterdir()} - {file}
    other.replace(file)
    compile_it()
    assert written == ["step"]
    assert file.read_bytes() == whole


def test_old_code_is_removed_and_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(70):
        code_store.keep_code(str(number), b"code")
    assert len(list((tmp_path / "idefics" / "code").iterdir())) == 64
    assert code_store.find_code("69") == b"code"
    newest = max(
        (tmp_path / "idefics" / "code").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )
    newest.chmod(0o666)  # somebody else may have written it
    assert code_store.find_code("69") is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    code_store.keep_code("a", b"code")
    assert code_store.find_code("a") is None


def test_the_step_is_a_kernel_that_is_tested_here() -> None:
    assert TextStep.passes_self_test()
