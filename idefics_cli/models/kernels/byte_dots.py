"""Instructions that multiply small whole numbers, and add the products up.

`add_dots` multiplies bytes, and adds four products to a number of 32 bits. AVX512-VNNI has it for
registers of 64 bytes, AVX-VNNI for those of 32. `add_byte_pairs` multiplies bytes, too, and adds
two products to a number of 16 bits; `add_pairs` multiplies 16-bit numbers. Every processor for
which there are kernels has these two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.models.kernels.compiler import has_feature, vector_bytes
from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir

# The keys are numbers of bytes of a register.
_DOTS = {64: "llvm.x86.avx512.vpdpbusd.512", 32: "llvm.x86.avx512.vpdpbusd.256"}
_PAIRS = {64: "llvm.x86.avx512.pmaddw.d.512", 32: "llvm.x86.avx2.pmadd.wd"}
_BYTE_PAIRS = {64: "llvm.x86.avx512.pmaddubs.w.512", 32: "llvm.x86.avx2.pmadd.ub.sw"}
_FEATURES = {64: "avx512vnni", 32: "avxvnni"}


def has_dots() -> bool:
    """Whether this processor has the instruction of `add_dots`."""
    return has_feature(_FEATURES[vector_bytes()])


def add_dots(code: Code, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Return *total* plus the products of *unsigned* bytes with *signed* bytes.

    Each is a register; only *total* must be a vector of 32-bit numbers.
    """
    build, kind = code.builder, total.type
    one, two = build.bitcast(unsigned, kind), build.bitcast(signed, kind)
    return code.call(_DOTS[vector_bytes()], kind, total, one, two)


def add_byte_pairs(code: Code, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Return *total* plus the products of *unsigned* bytes with *signed* bytes, pair by pair.

    *unsigned* is a register of bytes, *signed* any register, and *total* a vector of 16-bit
    numbers. The sum of two products must fit into 16 bits.
    """
    build, size = code.builder, vector_bytes()
    signed = build.bitcast(signed, code.vector(code.i8, size))
    return build.add(total, code.call(_BYTE_PAIRS[size], total.type, unsigned, signed))


def sum_pairs(code: Code, numbers: ir.Value) -> ir.Value:
    """Return the sum of each pair of 16-bit numbers of a register, in 32 bits."""
    count = vector_bytes() // 4
    ones = code.same(code.i16, 2 * count, 1)
    return add_pairs(code, code.same(code.i32, count, 0), numbers, ones)


def add_pairs(code: Code, total: ir.Value, one: ir.Value, two: ir.Value) -> ir.Value:
    """Return *total* plus the products of the 16-bit numbers of *one* and *two*, pair by pair.

    Each is a register; *total* is a vector of 32-bit numbers.
    """
    return code.builder.add(total, code.call(_PAIRS[vector_bytes()], total.type, one, two))
