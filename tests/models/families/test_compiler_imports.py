"""The stand-in for torch's compiler, and what else asks for the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Each case runs in a fork of one process, because the compiler is imported once in a process.
PROGRAM = """
import inspect, json, os, sys
import torch
from idefics_cli.models.families.compiler_imports import without_compiler

for case in sys.argv[1:]:
    child = os.fork()
    if not child:
        before = list(sys.meta_path)
        with without_compiler():
            said = {}
            exec(case)
        said["left"] = sys.meta_path != before
        print(json.dumps(said), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
KNOWN = """
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
assert inspect.getmodule(len)  # asks each module for its file
@torch._dynamo.allow_in_graph
@torch.compiler.allow_in_graph
@torch.compiler.disable
@torch.compiler.disable(recursive=False)
@torch._dynamo.assume_constant_result
def decorated(x): return -x
said["answer"] = decorated(2)
said["before"] = "torch._dynamo.eval_frame" in sys.modules
with TransformGetItemToIndex() as mode:
    said["mode"] = type(mode).__module__
"""
OTHER_SUBMODULE = """
import torch._dynamo
import torch._dynamo.config as config
said["one"] = config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
said["spec"] = type(config.__spec__.loader).__name__
"""
OTHER_NAME = """
@torch.compile(backend="eager")
def doubled(x): return x * 2
said["doubled"] = doubled(torch.ones(1)).tolist()
said["name"] = torch._dynamo.OptimizedModule.__module__
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_known_names_import_no_compiler_and_others_import_the_real_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, KNOWN, OTHER_SUBMODULE, OTHER_NAME],
        capture_output=True,
        text=True,
        check=True,
    )
    wrapped = "torch._dynamo._trace_wrapped_higher_order_op"
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"answer": -2, "before": False, "mode": wrapped, "left": False},
        {"one": True, "spec": "SourceFileLoader", "left": False},
        {"doubled": [2.0], "name": "torch._dynamo.eval_frame", "left": False},
    ]
