"""The instruction that multiplies bytes, and adds four products to a number of 32 bits.

AVX512-VNNI has it for registers of 64 bytes, AVX-VNNI for those of 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.models.kernels.compiler import has_feature, vector_bytes
from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir

# The keys are numbers of bytes of a register.
_DOTS = {64: "llvm.x86.avx512.vpdpbusd.512", 32: "llvm.x86.avx512.vpdpbusd.256"}
_FEATURES = {64: "avx512vnni", 32: "avxvnni"}


def has_dots() -> bool:
    """Whether this processor has the instruction."""
    return has_feature(_FEATURES[vector_bytes()])


def add_dots(code: Code, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Return *total* plus the products of *unsigned* bytes with *signed* bytes.

    Each is a register; only *total* must be a vector of 32-bit numbers.
    """
    build, kind = code.builder, total.type
    one, two = build.bitcast(unsigned, kind), build.bitcast(signed, kind)
    return code.call(_DOTS[vector_bytes()], kind, total, one, two)
