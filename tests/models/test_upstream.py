"""What this project relies on in other libraries that these do not document, a row for each.

A row that fails names what changed upstream, and what of ours uses it.
"""

from __future__ import annotations

import ctypes
import inspect
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    Cache,
    DynamicCache,
    IdeficsConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations import sdpa_attention

import idefics_cli
from idefics_cli.bench import random_model
from idefics_cli.cli import app, root
from idefics_cli.cli.help import groups, sections
from idefics_cli.completion import spec as completion_spec
from idefics_cli.core import imports as importing
from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.demo import build
from idefics_cli.demo.training import losses
from idefics_cli.engine.local import memory
from idefics_cli.hardware import machine
from idefics_cli.images import loader as images
from idefics_cli.images import pillow_setup
from idefics_cli.models.families import (
    base,
    bounded_template,
    classes,
    compiler_imports,
    geometry,
    idefics1,
    idefics2,
    idefics3,
    internals,
    kv_cache,
    spec,
)
from idefics_cli.models.families import resize as shrinking
from idefics_cli.models.hub import cache
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels import gelu_mlp, jit, openmp, packed, rms_norm
from idefics_cli.models.kernels.int4 import linear as int4
from idefics_cli.models.kernels.int8 import linear as int8
from idefics_cli.models.kernels.text_step import step
from idefics_cli.models.loading import (
    float16,
    loader,
    patch_positions,
    processors,
    text_step,
    unfilled,
    weights,
)
from idefics_cli.models.planning import attention, needs, quantization

Check: TypeAlias = Callable[[], None]

PACKAGE = Path(idefics_cli.__file__).parent
FAMILIES = ("idefics", "idefics2", "idefics3", "smolvlm")
TEMPLATED = FAMILIES[1:]
ON_X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
_ROWS: list[object] = []


@dataclass(frozen=True)
class Reliance:
    """An undocumented part of a library, and the modules that use it."""

    used_by: tuple[ModuleType, ...]
    check: Check


def relied_on(name: str, *used_by: ModuleType, x86_linux: bool = False) -> Callable[[Check], Check]:
    """Make a check a row of the contract.

    Args:
        name: The reliance; names the test.
        used_by: The modules that use it.
        x86_linux: It exists on x86 Linux only.
    """
    absent = pytest.mark.skipif(x86_linux and not ON_X86_LINUX, reason="of x86 Linux")

    def note(check: Check) -> Check:
        _ROWS.append(pytest.param(Reliance(used_by, check), id=name, marks=absent))
        return check

    return note


def modeling(kind: str) -> ModuleType:
    return import_module(f"transformers.models.{kind}.modeling_{kind}")


def parameters(function: Callable[..., object]) -> set[str]:
    return set(inspect.signature(function).parameters)


def tiny_text() -> dict[str, object]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "pad_token_id": 0,
    }


def tiny_vision() -> dict[str, object]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }


def tiny_config(kind: str, **more: object) -> PreTrainedConfig:
    if kind == "idefics":
        vision = {**tiny_vision(), "embed_dim": 32}
        perceiver = {
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
        }
        more = {"use_resampler": True, "additional_vocab_size": 2, **more}
        return IdeficsConfig(
            **tiny_text(),
            vision_config=vision,
            perceiver_config=perceiver,
            cross_layer_interval=1,
            **more,
        )
    text = {"model_type": "mistral" if kind == "idefics2" else "llama", **tiny_text()}
    shapes: dict[str, object] = {"vision_config": tiny_vision(), "text_config": text}
    if kind == "idefics2":
        shapes["perceiver_config"] = {
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        }
    else:
        shapes["scale_factor"] = 2
    return classes.config_class(kind)(**shapes, image_token_id=39, **more)


def tiny_model(kind: str, attention_name: str = "sdpa", **more: object) -> Any:
    torch.manual_seed(0)
    config = tiny_config(kind, **more)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention_name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # They start at 0, with which pictures count for nothing.
            if "alpha" in name:
                parameter.normal_()
    return model.eval()


def run(model: Any, **inputs: object) -> Tensor:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        logits: Tensor = model(**inputs, return_dict=True).logits
        return logits


def states(tokens: int, *, rows: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(tokens)
    return torch.randn(rows, 2, tokens, 8), torch.randn(rows, 2, tokens, 8)


# --- transformers: the forward of a model


@relied_on("forward takes the cache by one of two names", internals, base)
def _() -> None:
    wanted = {"attention_mask", "position_ids", "inputs_embeds", "use_cache", "logits_to_keep"}
    for kind in FAMILIES:
        name = internals.cache_name(kind)
        assert wanted | {"input_ids", name} <= parameters(classes.model_class(kind).forward), kind
        # Another name for it would be swallowed by the rest of the arguments.
        model, grown = tiny_model(kind), DynamicCache()
        seen = {"input_ids": torch.tensor([[5, 6, 7]]), name: grown, "use_cache": True}
        if kind == "idefics":
            seen["image_attention_mask"] = torch.zeros(1, 3, 1, dtype=torch.long)
            seen["pixel_values"] = torch.zeros(1, 1, 3, 28, 28)
        assert run(model, **seen, logits_to_keep=1).shape[1] == 1
        assert grown.get_seq_length() == 3, kind


@relied_on("forward gives the logits of a step from a cache of ours", base, kv_cache)
def _() -> None:
    for kind in TEMPLATED:
        model, name, ids = tiny_model(kind), internals.cache_name(kind), torch.arange(3, 9)[None]
        whole = run(model, input_ids=ids)[:, -1]
        growing = kv_cache.growing_cache()
        run(model, input_ids=ids[:, :-1], use_cache=True, **{name: growing})
        layers = []
        for layer in growing.layers:
            room = torch.zeros(2, 1, 2, 10, layer.keys.shape[3])
            room[0, :, :, :5], room[1, :, :, :5] = layer.keys, layer.values
            layers.append(kv_cache.SlotLayer(*room))
        place = torch.tensor([5])
        for layer in layers:
            layer.view = kv_cache.SlotView(torch.arange(1), place, 7)
        # One place more is in view than is filled, which the mask hides.
        mask = (torch.arange(7) <= place[:, None])[:, None, None]
        for cached, seen in ((growing, None), (Cache(layers=layers), mask)):
            step = {"input_ids": ids[:, -1:], "position_ids": place[:, None], name: cached}
            given = run(model, **step, attention_mask=seen, use_cache=True)
            torch.testing.assert_close(given[:, -1], whole, rtol=1e-4, atol=1e-5)


@relied_on("IDEFICS-1 takes image states as takes_flat_states tells", internals, idefics1)
def _() -> None:
    for resamples, name in ((True, "perceiver_embeddings"), (False, "image_encoder_embeddings")):
        model = tiny_model("idefics", use_resampler=resamples)
        pixels, ids = torch.randn(2, 3, 3, 28, 28), torch.tensor([[3, 4, 5, 6]] * 2)
        seen = torch.zeros(2, 4, 3, dtype=torch.long)
        seen[:, 1, 0] = seen[:, 2:, 2] = 1
        expected = run(model, input_ids=ids, pixel_values=pixels, image_attention_mask=seen)
        with torch.inference_mode():
            every = model.model.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
            every = model.model.perceiver_resampler(every) if resamples else every
        sight = every if internals.takes_flat_states() else every.unflatten(0, (2, 3))
        given = run(model, input_ids=ids, image_attention_mask=seen, **{name: sight})
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
        other = run(model, input_ids=ids, image_attention_mask=seen, **{name: sight.flip(0)})
        assert not torch.allclose(other, expected, rtol=1e-2), "the pictures count for nothing"


@relied_on("IDEFICS-1's embedding has two tables", idefics1, loader)
def _() -> None:
    table = tiny_model("idefics").get_input_embeddings()
    assert (table.num_embeddings, table.num_additional_embeddings) == (40, 2)
    assert table.weight.shape == (40, 32)
    assert table.additional_embedding.weight.shape == (2, 32)
    with torch.inference_mode():
        both = torch.cat([table.weight, table.additional_embedding.weight])
        torch.testing.assert_close(table(torch.arange(42)), both)


@relied_on("get_image_features gives its pictures' features as pooler_output", idefics2, losses)
def _() -> None:
    for kind, width in (("idefics2", 4), ("idefics3", 1), ("smolvlm", 1)):
        model = tiny_model(kind)
        with torch.inference_mode():
            features = model.model.get_image_features(torch.randn(1, 3, 3, 28, 28)).pooler_output
        features = features if isinstance(features, Tensor) else torch.cat(list(features))
        assert features.reshape(3, -1, features.shape[-1]).shape == (3, width, 32), kind


@relied_on("Idefics2's encoder and connector take masks of patches", idefics2)
def _() -> None:
    core, tiles = tiny_model("idefics2").model, torch.randn(2, 3, 28, 42)
    real = torch.ones(2, 2, 3, dtype=torch.bool)
    with torch.inference_mode():
        seen = core.vision_model(pixel_values=tiles, patch_attention_mask=real).last_hidden_state
        given = core.connector(seen, attention_mask=real.flatten(1))
        features = core.get_image_features(tiles[None]).pooler_output
    features = features if isinstance(features, Tensor) else torch.cat(list(features))
    torch.testing.assert_close(given.flatten(), features.flatten())


@relied_on("num_patches_per_side marks what finds the positions of patches", patch_positions)
def _() -> None:
    for kind in FAMILIES:
        encoder = tiny_model(kind).model.vision_model
        marked = [each for each in encoder.modules() if hasattr(each, "num_patches_per_side")]
        assert marked == ([] if kind == "idefics" else [encoder.embeddings]), kind
        for module in marked:
            assert isinstance(module.patch_embedding, nn.Conv2d)
            assert "pixel_values" in parameters(module.forward)
            assert "self.embeddings(pixel_values=" in inspect.getsource(type(encoder).forward)


@relied_on("sdpa asks use_gqa_in_sdpa whether heads share keys", float16)
def _() -> None:
    assert "use_gqa_in_sdpa(" in inspect.getsource(sdpa_attention.sdpa_attention_forward)


@relied_on("_attn_implementation of the parts of a config", internals)
def _() -> None:
    for kind in FAMILIES:
        config = tiny_model(kind, "eager").config
        text = config.get_text_config()
        assert internals.attention_of(text) == internals.attention_of(config.vision_config), kind
        assert internals.attention_of(text) == "eager"


@relied_on("hf_device_map tells where a model lies", internals)
def _() -> None:
    from accelerate import dispatch_model  # type: ignore[import-untyped]  # it has no types

    model = tiny_model("idefics3")
    assert not internals.is_spread(model)
    dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert model.hf_device_map == {"": "cpu"}


@relied_on("_cuda_endAllocateToPool ends a recording of torch's allocator", internals)
def _() -> None:
    # A torch without CUDA has only its declaration.
    declared = Path(torch.__file__).with_name("_C").joinpath("__init__.pyi").read_text("utf-8")
    line = next(each for each in declared.splitlines() if "_cuda_endAllocateToPool" in each)
    assert line.startswith(
        "def _cuda_endAllocateToPool(device: _int, mempool_id: tuple[_int, _int]"
    )
    assert hasattr(torch._C, "_cuda_endAllocateToPool")


@relied_on("is_loaded_in_8bit marks a model of LLM.int8()", internals)
def _() -> None:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_8bit=True))
    model: Any = SimpleNamespace()
    assert not internals.has_8bit_layers(model)
    quantizer._process_model_after_weight_loading(model)
    assert internals.has_8bit_layers(model)


# --- transformers: caches


@relied_on("DynamicCache makes its layers of layer_class_to_replicate", kv_cache)
def _() -> None:
    grown = kv_cache.growing_cache()
    assert not grown.layers
    grown.update(*states(3), 1)
    assert [type(layer) for layer in grown.layers] == [kv_cache.GrowingLayer] * 2


@relied_on("Cache is made of given layers", kv_cache)
def _() -> None:
    made = Cache(layers=[])
    assert made.layers == []
    made.layers.append(kv_cache.SlotLayer(*states(4)))
    made.layers[0].view = kv_cache.SlotView(torch.arange(1), torch.tensor([2]), 3)
    assert made.get_seq_length() == 2
    assert made.get_mask_sizes(1, 0) == (3, 0)


@relied_on("DynamicLayer keeps keys and values, and what crops them", kv_cache)
def _() -> None:
    for layer in (DynamicLayer(), kv_cache.GrowingLayer()):
        assert not layer.is_initialized
        keys, values = states(5, rows=2)
        layer.update(keys[:, :, :4], values[:, :, :4])
        assert layer.is_initialized
        layer.update(keys[:, :, 4:], values[:, :, 4:])
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert layer.get_seq_length() == 5
        layer.batch_select_indices(torch.tensor([1]))
        # The number of states to remove, not to keep.
        layer.crop(-2)
        assert torch.equal(layer.keys, keys[1:, :, :3])


@relied_on("DynamicLayer.reset can be called when nothing is kept", kv_cache)
def _() -> None:
    layer = kv_cache.GrowingLayer()
    layer.update(*states(5))
    layer.reset()
    assert layer.buffers == [None, None]


@relied_on("lazy_initialization leaves empty keys and values", kv_cache)
def _() -> None:
    layer = DynamicLayer()
    layer.lazy_initialization(*states(2))
    assert layer.keys.numel() == layer.values.numel() == 0
    assert layer.keys.dim() != 4


# --- transformers: attention


@relied_on("attention functions and masks can be registered", cpu_attention)
def _() -> None:
    called: list[set[str]] = []
    name = cpu_attention.PADDED.register()
    from transformers import AttentionInterface

    def watched(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        **options: Any,
    ) -> tuple[Tensor, None]:
        called.append(set(options))
        return cpu_attention.PADDED(module, query, key, value, mask, **options)

    before = AttentionInterface()[name]
    try:
        AttentionInterface.register(name, watched)
        for kind in FAMILIES:
            model, ids = tiny_model(kind, name), torch.tensor([[1, 2, 3]])
            more = {}
            if kind == "idefics":
                more["image_attention_mask"] = torch.ones(1, 3, 1, dtype=torch.long)
                more["pixel_values"] = torch.randn(1, 1, 3, 28, 28)
            called.clear()
            given = run(model, input_ids=ids, **more)
            assert called, kind
            assert all({"dropout", "scaling"} <= options for options in called), kind
            torch.testing.assert_close(given, run(tiny_model(kind), input_ids=ids, **more))
    finally:
        AttentionInterface.register(name, before)


@relied_on("sdpa_attention_forward is the library's sdpa", cpu_attention)
def _() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    wanted = ["module", "query", "key", "value", "attention_mask", "dropout", "scaling"]
    assert list(inspect.signature(sdpa_attention_forward).parameters)[:7] == wanted


@relied_on("sdpa_mask gives masks of bool, or none", cpu_attention)
def _() -> None:
    from transformers.masking_utils import sdpa_mask

    made = sdpa_mask(batch_size=1, q_length=2, kv_length=4, q_offset=2)
    assert made.dtype == torch.bool
    assert made.tolist() == [[[[True, True, True, False], [True] * 4]]]


@relied_on("eager attention adds masks of the lowest number", base)
def _() -> None:
    from transformers.masking_utils import eager_mask

    real = torch.tensor([[False, True, True]])
    made = eager_mask(
        batch_size=1, q_length=1, kv_length=3, q_offset=2, attention_mask=real, dtype=torch.float16
    )
    assert made.flatten().tolist() == [torch.finfo(torch.float16).min, 0, 0]


@relied_on("_supports_flash_attn of the model classes", spec)
def _() -> None:
    for kind, family in spec.FAMILIES.items():
        assert classes.model_class(kind)._supports_flash_attn is family.supports_flash, kind


@relied_on("FLASH_ATTENTION_COMPATIBILITY_MATRIX", attention)
def _() -> None:
    from transformers.modeling_flash_attention_utils import (
        FLASH_ATTENTION_COMPATIBILITY_MATRIX as MATRIX,
    )

    assert set(attention.FLASH) == {f"flash_attention_{version}" for version in MATRIX}
    for version, theirs in MATRIX.items():
        ours = {str(name): row for name, row in attention.FLASH.items()}[
            f"flash_attention_{version}"
        ]
        assert ours.capability[0] >= theirs.get("cuda_min_major_version", 0)


# --- transformers: loading


@relied_on("modules and names of the classes", classes)
def _() -> None:
    for kind in FAMILIES:
        made = (classes.config_class(kind), classes.model_class(kind))
        assert all(isinstance(each, type) for each in (*made, *classes.processor_classes(kind)))
        # Without torchvision the names above are none of classes in transformers 5.17.
        assert classes.processor_classes(kind)[0].__name__.endswith("ImageProcessorPil")


@relied_on("processors take image_seq_len and chat_template", processors)
def _() -> None:
    for kind in TEMPLATED:
        taken = parameters(classes.processor_classes(kind)[1].__init__)
        assert {"image_processor", "tokenizer", "image_seq_len", "chat_template"} <= taken, kind


@relied_on("safetensors tells a weight's dtype by these names", weights)
def _() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with TemporaryDirectory() as folder:
            save_file({"weight": torch.zeros(2, dtype=dtype)}, Path(folder, "model.safetensors"))
            assert weights._dtype_of_files(Path(folder)) == dtype


@relied_on("broken files raise errors of these modules", loader)
def _() -> None:
    with TemporaryDirectory() as folder:
        broken = Path(folder, "broken")
        broken.write_bytes(b"neither JSON nor a header of weights")
        opened: tuple[Callable[[], object], ...] = (
            lambda: safe_open(broken, framework="pt"),
            lambda: Tokenizer.from_file(str(broken)),
        )
        for open_it in opened:
            with pytest.raises(Exception) as raised:  # noqa: PT011  # the class is the question
                open_it()
            package = raised.type.__module__.partition(".")[0]
            assert package in ("safetensors", "tokenizers", "builtins")


@relied_on("all_tied_weights_keys names what is stored once", random_model)
def _() -> None:
    tied = tiny_model("idefics3", tie_word_embeddings=True).all_tied_weights_keys
    assert "lm_head.weight" in tied


@relied_on("from_pretrained tells of missing keys by name", weights)
def _() -> None:
    model = tiny_model("idefics3")
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    lacking = "model.text_model.layers.1.mlp.up_proj.weight"
    whole.pop(lacking)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=whole)
        _, found = classes.model_class("idefics3").from_pretrained(folder, output_loading_info=True)
    assert sorted(found["missing_keys"]) == [lacking]


@relied_on(
    "create_import_structure_from_path is called by name, for a folder and a file in it", importing
)
def _() -> None:
    import transformers
    from transformers.utils import import_utils

    look = import_utils.create_import_structure_from_path
    folder = Path(transformers.__file__).parent / "models" / "idefics"
    assert look(folder) == look(folder / "__init__.py")
    used = inspect.getsource(import_utils.define_import_structure)
    assert "create_import_structure_from_path(" in used


@relied_on(
    "transformers asks torch's compiler for few names, all decorators", compiler_imports, unfilled
)
def _() -> None:
    program = """
import contextlib, sys, torch
kept_out = {"torch._dynamo", "torch.distributed.tensor", "sympy"} - set(sys.modules)
from idefics_cli.cli.app import make_app
with contextlib.suppress(SystemExit):
    make_app()(["ask", "How many?", "-m", "demo", "-q"])
from idefics_cli.models.families import classes, spec
for name in spec.FAMILIES:
    classes.model_class(name), classes.processor_classes(name)
print("torch._dynamo" in kept_out, kept_out & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == ["True set()"], done.stdout


@relied_on("get_resize_output_image_size of Idefics2 looks at a shape", idefics2)
def _() -> None:
    module = import_module("transformers.models.idefics2.image_processing_pil_idefics2")
    made = classes.processor_classes("idefics2")[0](size={"shortest_edge": 42, "longest_edge": 112})
    shape = SimpleNamespace(shape=(3, 100, 200))
    assert module.get_resize_output_image_size(shape, made.size) == (56, 112)


@relied_on("get_resize_output_image_size of Idefics3 looks at a shape", idefics3)
def _() -> None:
    module = import_module("transformers.models.idefics3.image_processing_pil_idefics3")
    shape = SimpleNamespace(shape=(3, 100, 300))
    assert module.get_resize_output_image_size(shape, 150) == (50, 150)


@relied_on("Idefics3's image processor tells rows and columns", idefics3)
def _() -> None:
    for kind in ("idefics3", "smolvlm"):
        made = classes.processor_classes(kind)[0](
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        )
        picture = Image.new("RGB", (40, 20), "red")
        given = made([[picture]], return_tensors="pt", return_row_col_info=True)
        assert (given["rows"][0][0], given["cols"][0][0]) == (1, 2), kind
        assert given["pixel_values"].shape == (1, 3, 3, 28, 28), kind
        assert given["pixel_attention_mask"].shape == (1, 3, 28, 28), kind


@relied_on("image processors rescale and normalize numpy arrays", shrinking)
def _() -> None:
    made = classes.processor_classes("idefics2")[0](image_mean=[0.5] * 3, image_std=[0.25] * 3)
    pixels = np.full((3, 2, 2), 255, np.uint8)
    pixels = made.rescale(pixels, made.rescale_factor)
    assert np.allclose(made.normalize(pixels, made.image_mean, made.image_std), 2.0)
    assert made.do_resize
    assert made.do_rescale
    assert made.do_normalize
    assert isinstance(made.resample, int)


@relied_on("IDEFICS-1's image processor gives a tensor", idefics1)
def _() -> None:
    made = classes.processor_classes("idefics")[0](image_size=28, size={"height": 28, "width": 28})
    given = made([Image.new("RGB", (28, 28))], return_tensors="pt")
    assert isinstance(given, Tensor)
    assert given.shape == (1, 3, 28, 28)


@relied_on("is_progress_bar_enabled", loader)
def _() -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()
        assert logging.is_progress_bar_enabled() is False
        logging.enable_progress_bar()
        assert logging.is_progress_bar_enabled() is True
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


@relied_on("defaults of text configs", geometry)
def _() -> None:
    kinds = {"mistral": MistralConfig, "idefics": IdeficsConfig, "llama": LlamaConfig}
    assert kinds.keys() == geometry.TEXT_DEFAULTS.keys()
    for kind, config_class in kinds.items():
        config = config_class()
        defaults = {**geometry.TEXT_DEFAULT, **geometry.TEXT_DEFAULTS[kind]}
        actual = {name: getattr(config, name, None) for name in defaults}
        if kind == "mistral":
            # Idefics2's own, which its config gives to a Mistral.
            defaults.pop("max_position_embeddings")
            actual.pop("max_position_embeddings")
        assert actual == defaults, kind


@relied_on("defaults of vision configs", spec)
def _() -> None:
    for kind, family in spec.FAMILIES.items():
        vision = classes.config_class(kind)().vision_config
        defaults = dict(family.geometry.vision_defaults)
        assert {name: getattr(vision, name) for name in defaults} == defaults, kind


@relied_on("norms of these names divide by the root mean square", rms_norm)
def _() -> None:
    known = {name for row in spec.FAMILIES.values() for name in row.rms_norms}
    found = set()
    for kind in FAMILIES:
        for module in tiny_model(kind).modules():
            if type(module).__name__ in known:
                found.add(type(module).__name__)
                given = torch.randn(2, len(module.weight))
                torch.testing.assert_close(rms_norm.CpuRMSNorm(module)(given), module(given))
    assert found == known


@relied_on("modules that are not quantized match from the start of a name", spec)
def _() -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    for skipped in (family.unquantized for family in spec.FAMILIES.values()):
        for name in skipped:
            assert not should_convert_module(f"{name}.layer", list(skipped))
        assert not should_convert_module("lm_head", list(skipped))
        assert should_convert_module("model.text_model.layers.0.mlp.up_proj", list(skipped))
    assert should_convert_module("model.vision_model.layer", ["vision_model"])


@relied_on("quantizers plan with nine tenths of max_memory", needs)
def _() -> None:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    for settings in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**settings))
        left = quantizer.adjust_max_memory({0: 1000})
        assert left == {0: pytest.approx(1000 * needs._QUANTIZER_SHARE)}


@relied_on("Idefics2Model takes encoded pictures as mm_encoder_outputs", losses)
def _() -> None:
    taken = parameters(modeling("idefics2").Idefics2Model.forward)
    assert {"mm_encoder_outputs", "image_hidden_states"} & taken


@relied_on("latents of the perceiver are at connector.perceiver_resampler", build)
def _() -> None:
    assert tiny_model("idefics2").model.connector.perceiver_resampler.latents.shape == (4, 32)


# --- huggingface_hub


@relied_on("HfHubHTTPError's first base is the client's error", cache)
def _() -> None:
    from huggingface_hub import errors

    first = errors.HfHubHTTPError.__bases__[0]
    assert first.__name__ == "HTTPError"
    assert first.__module__.partition(".")[0].startswith("httpx")
    assert issubclass(errors.LocalEntryNotFoundError, OSError)


@relied_on("a dry run of snapshot_download lists files", cache)
def _() -> None:
    import huggingface_hub
    from huggingface_hub import errors, file_download

    assert {"dry_run", "tqdm_class", "allow_patterns", "ignore_patterns"} <= parameters(
        huggingface_hub.snapshot_download
    )
    told = file_download.DryRunFileInfo.__dataclass_fields__
    assert {"filename", "file_size", "will_download"} <= set(told)
    assert issubclass(errors.DryRunError, Exception)


@relied_on("folders of the Hub's cache", cache)
def _() -> None:
    from huggingface_hub import constants, file_download

    assert file_download.repo_folder_name(repo_id="a/b", repo_type="model") == "models--a--b"
    assert isinstance(constants.HF_HUB_CACHE, str)
    assert isinstance(constants.HF_HUB_OFFLINE, bool)
    assert isinstance(constants.ENDPOINT, str)


# --- bitsandbytes


@relied_on("nf4 is packed for CPUs by 32 rows", quantization)
def _() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    pack = inspect.signature(functional._convert_weight_packed_for_cpu)
    assert pack.parameters["block_n"].default == quantization._PACK_ROWS


@relied_on("bitsandbytes' CPU kernels ask for AVX512_BF16", machine)
def _() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    has = "avx512_bf16" in machine.probe_machine().cpu_flags
    assert bool(functional.has_avx512bf16()) == has


# --- torch


@relied_on("mkldnn._reorder_linear_weight and _linear_pointwise", packed, gelu_mlp, x86_linux=True)
def _() -> None:
    schema = torch.ops.mkldnn._linear_pointwise.default._schema
    assert [each.name for each in schema.arguments] == [
        *("X", "W", "B", "attr", "scalars", "algorithm")
    ]
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # of torch
    # oneDNN refuses bfloat16 on processors without AVX512.
    computes = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert packed.PackedLinear.passes_self_test() or not (has_mkldnn and computes)
    assert gelu_mlp.GeluMlp.passes_self_test() or not (has_mkldnn and computes)


@relied_on("aten._weight_int4pack_mm_for_cpu", int4, x86_linux=True)
def _() -> None:
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2")
    assert int4.TorchInt4Linear.passes_self_test() or not capable


@relied_on("_weight_int8pack_mm", int8, x86_linux=True)
def _() -> None:
    assert int8.TorchInt8Linear.passes_self_test()


@relied_on("the CPU's allocator says that it can't allocate memory", memory)
def _() -> None:
    with pytest.raises(MemoryLimitError), memory.as_memory_limit(1):
        torch.empty(2**60, dtype=torch.uint8)


@relied_on("tensors of torch's own lie on 64 bytes", int8)
def _() -> None:
    assert all(torch.empty(size).data_ptr() % int8._ALIGNMENT == 0 for size in range(1, 50))


@relied_on("_is_avx512_bf16_supported and _is_amx_tile_supported", machine)
def _() -> None:
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)


@relied_on("get_cpu_capability", machine, x86_linux=True)
def _() -> None:
    assert torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2", "DEFAULT", "NO AVX")


@relied_on("the layers of Llama and Mistral have these modules, which compute the same", text_step)
def _() -> None:
    for kind, config in (("llama", LlamaConfig), ("mistral", MistralConfig)):
        name = kind.capitalize()
        text = getattr(modeling(kind), f"{name}Model")(config(**tiny_text()))
        assert (text.rotary_emb.rope_type, type(text.norm).__name__) == (
            "default",
            f"{name}RMSNorm",
        )
        (layer, _) = text.layers
        assert type(layer).__name__ == f"{name}DecoderLayer"
        assert {name for name, _ in layer.named_children()} == {
            *("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
        }
        children = ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert [name for name, _ in layer.self_attn.named_children()] == children
        assert (layer.self_attn.head_dim, layer.self_attn.scaling) == (8, 8**-0.5)
        children = ["gate_proj", "up_proj", "down_proj", "act_fn"]
        assert [name for name, _ in layer.mlp.named_children()] == children


@relied_on("libtorch_cpu.so reaches its OpenMP library", jit, openmp, step, x86_linux=True)
def _() -> None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    assert ctypes.CDLL(str(library)).GOMP_parallel
    assert ctypes.CDLL(str(library)).GOMP_barrier
    assert ctypes.CDLL(str(library)).omp_set_num_threads


# --- Pillow, Typer


@relied_on("Image.OPEN makes a picture by its plugin's name", images)
def _() -> None:
    Image.init()
    for name in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        assert callable(Image.OPEN[name][0])


@relied_on("_imaging is a library that can be asked for symbols", pillow_setup)
def _() -> None:
    from PIL import _imaging

    assert Path(_imaging.__file__).is_file()


def ask_command() -> Any:
    """Return the command `idefics ask`."""
    group: Any = typer.main.get_command(app.make_app(["ask"]))
    return group.commands["ask"]


@relied_on("the plain help of Typer, and its formatter", groups, sections)
def _() -> None:
    from typer.core import TyperArgument, TyperOption

    child = ask_command()
    context = typer.Context(child, info_name="ask")
    kinds = [type(parameter) for parameter in child.get_params(context)]
    assert set(kinds) == {TyperArgument, TyperOption}
    formatter = context.make_formatter()
    formatter.width = 40
    with formatter.section("Title"):
        formatter.write_dl([("--name", "one two three four five six")], col_max=0)
    assert formatter.getvalue() == "Title:\n  --name\n    one two three four five six\n"


@relied_on("Typer's errors of usage, by their base and attributes", root)
def _() -> None:
    child = ask_command()
    with pytest.raises(typer.TyperException) as raised:
        child.make_context("ask", ["--no-such-thing"])
    error: Any = raised.value
    assert error.option_name == "--no-such-thing"
    assert error.ctx.command_path == "ask"
    assert "no such option" in str(error).lower()


@relied_on("typer.core's classes", groups, sections, completion_spec)
def _() -> None:
    from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

    ours = {"format_help", "format_options", "get_params"}
    assert ours | {"get_command", "resolve_command", "list_commands"} <= set(dir(TyperGroup))
    assert ours | {"get_short_help_str"} <= set(dir(TyperCommand))
    assert {"get_help_record", "shell_complete"} <= set(dir(TyperOption)) & set(dir(TyperArgument))


@relied_on("the environment of transformers' chat templates", bounded_template)
def _() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment
    assert type(environment) is ImmutableSandboxedEnvironment
    assert (environment.trim_blocks, environment.lstrip_blocks) == (True, True)
    assert {"raise_exception", "strftime_now", "namespace"} <= set(environment.globals)
    assert len(environment.extensions) == 2  # loop controls, and the tag `generation`


@relied_on("the place of a namespace's values in jinja2", bounded_template)
def _() -> None:
    from jinja2.utils import Namespace

    assert object.__getattribute__(Namespace(a=1), "_Namespace__attrs") == {"a": 1}


@relied_on("jinja2 looks intercepted operators up in the environment", bounded_template)
def _() -> None:
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

    assert {"call_binop", "intercepted_binops", "wrap_str_format"} <= set(dir(SandboxedEnvironment))
    assert nodes.EnvironmentAttribute.fields == ("name",)
    assert nodes.Call.fields == ("node", "args", "kwargs", "dyn_args", "dyn_kwargs")


@pytest.mark.parametrize("reliance", _ROWS)
def test_upstream_still_has(reliance: Reliance) -> None:
    try:
        reliance.check()
    except Exception as error:
        error.add_note(f"used by: {', '.join(user.__name__ for user in reliance.used_by)}")
        raise


# Names of private parts of torch and transformers.
_PRIVATE = re.compile(
    r"transformers\.(cache_utils|masking_utils|integrations|utils\.import_utils|quantizers)"
    r"|torch\.ops\b|torch\._\w|torch\.\w+\._\w"
    r"|\b_attn_implementation|hf_device_map|is_loaded_in_[48]bit|past_key_values|layer_class_to"
)


def test_private_parts_of_the_libraries_are_reached_for_in_models_only() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "models"
        for match in _PRIVATE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
