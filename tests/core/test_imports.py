"""Faster imports of torch and transformers, and the classes that they give."""

from __future__ import annotations

import gc
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from idefics_cli.core.imports import quick_imports
from idefics_cli.models.families.spec import FAMILIES


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    gc.enable() if was_on else gc.disable()


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_rests_in_the_body_and_is_as_before_after_it(was_on: bool) -> None:
    gc.enable() if was_on else gc.disable()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled() == was_on
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled() == was_on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handled_after_the_body_and_a_second_one_at_once(
    number: signal.Signals,
) -> None:
    steps: list[str] = []

    def interrupt(signals: int) -> None:
        with quick_imports(), quick_imports():
            for _ in range(signals):
                signal.raise_signal(number)
                steps.append("imported")

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt(1)
        assert steps == ["imported"]
        with pytest.raises(KeyboardInterrupt):
            interrupt(2)
        assert steps == ["imported"] * 2
        assert signal.getsignal(number) is stop
        interrupt(0)
    finally:
        signal.signal(number, former)


def test_a_signal_without_a_handler_of_python_stays_as_it_is() -> None:
    program = (
        "import os, signal; from idefics_cli.core.imports import quick_imports\n"
        "with quick_imports(): os.kill(os.getpid(), signal.SIGTERM); print('alive', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")


def test_only_what_a_body_imports_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_once_here.py").write_text("kept = [[i] for i in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    with quick_imports():
        pass
    assert gc.get_freeze_count() == before
    with quick_imports():
        importlib.import_module("imported_once_here")
    assert gc.get_freeze_count() >= before + 1000
    del sys.modules["imported_once_here"]


def test_transformers_looks_through_its_files_once_and_finds_the_same() -> None:
    program = """
import json
import transformers
from transformers.utils import import_utils
look = import_utils.create_import_structure_from_path
read = look.cache_info().misses
from idefics_cli.core.imports import import_transformers
import_transformers()
more = look.cache_info().misses - read
import transformers.models as quick
assert import_utils.create_import_structure_from_path is look
file, define = quick.__file__, import_utils.define_import_structure.__wrapped__
slow = import_utils._LazyModule("slow", file, define(file))
assert slow._class_to_module and slow._class_to_module == quick._class_to_module
assert sorted(slow._modules) == sorted(quick._modules)
again = look.cache_info().misses - read - more
print(json.dumps([read, more, again]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    read, more, again = json.loads(done.stdout)
    assert (read > 100, more, again > 100) == (True, 0, True)


def test_bitsandbytes_compiles_a_function_at_its_first_call_and_not_before() -> None:
    pytest.importorskip("bitsandbytes")
    program = """
import sys
import torch
calls, compile_now = [], torch.compile
def compile_here(function, **options):
    calls.append((function.__name__, options))
    return function
torch.compile = compile_here
from idefics_cli.core.imports import import_bitsandbytes
import_bitsandbytes()
assert torch.compile is compile_here and not calls
assert "torch._inductor.compile_fx" not in sys.modules
from bitsandbytes.backends.default import ops
numbers = torch.zeros(1, 4), torch.ones(1), torch.arange(256.0), 4, torch.float32
first = ops._dequantize_blockwise_compute(*numbers)
assert torch.equal(first, ops._dequantize_blockwise_compute(*numbers))
print(calls)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[('_dequantize_blockwise_compute', {'dynamic': False})]\n", done.stderr


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_classes_of_a_model_type_are_those_that_the_library_chooses(model_type: str) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    from idefics_cli.models.families.classes import config_class, model_class

    config = AutoConfig.for_model(model_type)
    assert type(config) is config_class(model_type)
    mapping = AutoModelForImageTextToText._model_mapping
    assert mapping[type(config)] is model_class(model_type)
