"""The compiler of kernels: it makes machine code for this processor, by LLVM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from idefics_cli import __version__
from idefics_cli.models.kernels.code_store import find_code, keep_code

# Width of the registers that `compiled_for` chose; None is the widest of this processor.
_vector_bytes: ContextVar[int | None] = ContextVar("vector_bytes", default=None)


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
        key = "\n".join((key, processor, features, versions, _sources()))
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


def vector_bytes() -> int:
    """Return the width in bytes of the registers for which kernels are compiled."""
    return _vector_bytes.get() or widest_vector_bytes()


@cache
def widest_vector_bytes() -> int:
    """Return the width in bytes of the widest registers of this processor."""
    return 64 if {"avx512f", "avx512bw", "avx512vl"} <= _features() else 32


def has_feature(name: str) -> bool:
    """Return whether the processor has the feature that LLVM calls *name*."""
    return name in _features()


@contextmanager
def compiled_for(width: int) -> Iterator[None]:
    """Let kernels be compiled for registers of *width* bytes, 32 or 64, in the `with` block."""
    token = _vector_bytes.set(width)
    try:
        yield
    finally:
        _vector_bytes.reset(token)


@cache
def _features() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)
