"""The compiler of kernels: it makes machine code for this processor, by LLVM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import NamedTuple

from idefics_cli import __version__
from idefics_cli.models.kernels.code_store import find_code, keep_code


class CodeTarget(NamedTuple):
    """What kernels are compiled for: the width in bytes of registers, and LLVM's feature names."""

    vector_bytes: int
    features: frozenset[str]


# What `compiled_for` chose; None is this processor.
_target: ContextVar[CodeTarget | None] = ContextVar("target", default=None)


class CompiledCode:
    """The owner of compiled code: the code is freed with this object.

    Args:
        key: What *write* depends on, in any form.
        write: Returns the code in LLVM's assembly language. It is not called if an earlier start
            kept the compiled code.
    """

    def __init__(self, key: str, write: Callable[[], str]) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        processor = llvm.get_host_cpu_name()
        features = llvm.get_host_cpu_features().flatten()
        if vector_bytes() == 64:
            # By default LLVM avoids 512-bit registers, because they lowered the clock of older
            # processors. This line switches that default off.
            features += ",-prefer-256-bit"
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=processor, features=features, opt=3
        )
        versions = f"{__version__} {llvm.llvm_version_info}"
        used = " ".join(sorted(target().features))
        key = "\n".join((key, processor, features, used, versions, _sources()))
        code = find_code(key)
        if code is None:
            module = llvm.parse_assembly(write())
            module.verify()
            options = llvm.create_pipeline_tuning_options(speed_level=3)
            builder = llvm.create_pass_builder(machine, options)
            builder.getModulePassManager().run(module, builder)
            code = machine.emit_object(module)
            keep_code(key, code)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def get_function_address(self, name: str) -> int:
        """Return the address of the function *name*."""
        return int(self._engine.get_function_address(name))


@cache
def _sources() -> str:
    """Return a digest of the modules that write code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def target() -> CodeTarget:
    """Return what kernels are compiled for now."""
    return _target.get() or _this_processor()


def vector_bytes() -> int:
    """Return the width in bytes of the registers for which kernels are compiled."""
    return target().vector_bytes


def widest_vector_bytes() -> int:
    """Return the width in bytes of the widest registers of this processor."""
    return _this_processor().vector_bytes


def has_feature(name: str) -> bool:
    """Return whether kernels may use the feature that LLVM calls *name*."""
    return name in target().features


@contextmanager
def compiled_for(width: int, *, without: Collection[str] = ()) -> Iterator[None]:
    """Compile kernels for registers of *width* bytes, 32 or 64, in the `with` block.

    They do not use the features *without*, by LLVM's names, even if this processor has them.
    """
    token = _target.set(CodeTarget(width, _this_processor().features.difference(without)))
    try:
        yield
    finally:
        _target.reset(token)


@cache
def _this_processor() -> CodeTarget:
    import llvmlite.binding as llvm

    features = frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)
    return CodeTarget(64 if {"avx512f", "avx512bw", "avx512vl"} <= features else 32, features)
