"""The layout of 4-bit weights in memory, and the code for steps that all their kernels share.

A group of 32 weights of an output shares a step and a zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.jit import Code, Variable

if TYPE_CHECKING:
    from llvmlite import ir

# This many weights along the width share a step and a zero. Smaller groups would be more exact, but
# take more memory.
GROUP = 32
# The weights of this many outputs are stored side by side: a register of 64 bytes holds 16 sums of
# 32 bits, one for each output.
LANES = 16
# Layout of a block of 16 outputs: the scale of each output in float32, then the groups. A group has
# 4 bits for each weight, then 8 bits for each output's step, then 8 bits for each output's zero.
# That makes 4.5 bits for a weight.
HEAD_BYTES = 4 * LANES
WEIGHT_BYTES = LANES * GROUP // 2
GROUP_BYTES = WEIGHT_BYTES + 2 * LANES
# A step is a float with 4 bits of exponent and 4 of fraction, because some groups of an output have
# weights that are far larger than those of others.
_FRACTION_BITS = 23 - 4
_EXPONENT_OF_0 = 127 - 15
SMALLEST_STEP, LARGEST_STEP = 2.0 ** (_EXPONENT_OF_0 - 127), 1.9375
# The zero, the number that stands for a weight of 0, is counted in parts of a step.
ZERO_PARTS = 16
# The kernels need two float32 values for each group of a row: the scale of the row's numbers, and
# the sum of its values, which they multiply by the lowest value of the weights.
SCALE_BYTES = 8


def bytes_of_block(width: int) -> int:
    """Return how many bytes 16 outputs of *width* weights take."""
    return HEAD_BYTES + width // GROUP * GROUP_BYTES


def step_codes(steps: Tensor) -> Tensor:
    """Return *steps*, float32 up to `LARGEST_STEP`, rounded to the nearest codes, uint8."""
    nearest = (steps.view(torch.int32) + (1 << _FRACTION_BITS - 1)) >> _FRACTION_BITS
    return (nearest - (_EXPONENT_OF_0 << 4)).clamp_(0, 255).to(torch.uint8)


def steps_of(codes: Tensor) -> Tensor:
    """Return the steps, float32, that *codes* from `step_codes` stand for."""
    return (codes.int() + (_EXPONENT_OF_0 << 4) << _FRACTION_BITS).view(torch.float32)


def pack(numbers: Tensor, codes: Tensor, zeros: Tensor, scale: Tensor) -> Tensor:
    """Return weights as the kernels read them.

    Args:
        numbers: (out, in) uint8 from 0 to 15; *out* a multiple of 16, *in* of 32.
        codes: (out, in / 32) uint8, the steps, from `step_codes`.
        zeros: (out, in / 32) uint8, in sixteenths of a step.
        scale: (out,) float32. A weight is (number - zero / 16) * step * scale.

    Returns:
        (out / 16, `bytes_of_block`) uint8. Of a group, four consecutive numbers of each of 16
        outputs are in the lower halves of 64 bytes, the next four in the upper halves of the same
        bytes.
    """
    outputs, width = numbers.shape
    shape = (outputs // LANES, LANES, width // GROUP)
    halves = numbers.reshape(*shape, 4, 2, 4).permute(0, 2, 3, 1, 5, 4)
    weights = (halves[..., 0] | halves[..., 1] << 4).reshape(shape[0], shape[2], WEIGHT_BYTES)
    others = torch.stack((codes, zeros)).reshape(2, *shape).permute(1, 3, 0, 2).flatten(2)
    head = scale.float().contiguous().view(torch.uint8).reshape(shape[0], HEAD_BYTES)
    return torch.cat((head, torch.cat((weights, others), 2).flatten(1)), 1)


def unpack(packed: Tensor) -> Tensor:
    """Return the weights (out, in) float32 that `pack` made *packed* from."""
    blocks = len(packed)
    scale = packed[:, :HEAD_BYTES].contiguous().view(torch.float32)
    body = packed[:, HEAD_BYTES:].reshape(blocks, -1, GROUP_BYTES)
    groups = body.shape[1]
    weights = body[..., :WEIGHT_BYTES].reshape(blocks, groups, 4, LANES, 4)
    numbers = torch.stack((weights & 15, weights >> 4), 3).permute(0, 4, 1, 2, 3, 5)
    others = body[..., WEIGHT_BYTES:].reshape(blocks, groups, 2, LANES).permute(2, 0, 3, 1)
    codes, zeros = others[..., None]
    steps = numbers.reshape(blocks, LANES, groups, GROUP) - zeros.float() / ZERO_PARTS
    wide: Tensor = steps * (steps_of(codes) * scale[:, :, None, None])
    return wide.reshape(blocks * LANES, groups * GROUP)


def step_and_lowest(
    code: Code, groups: ir.Value, offset: ir.Value, part: int
) -> tuple[ir.Value, ir.Value]:
    """Return the steps of one group, and the values that its number 0 stands for.

    Args:
        code: Where the code is written.
        groups: Pointer to the groups of a block.
        offset: Where the group starts, in bytes after *groups*.
        part: Number of the register with 32-bit values of outputs, from 0.
    """
    build, lanes = code.builder, vector_bytes() // 4
    f32 = code.vector(code.f32, lanes)
    steps, zeros = (
        _outputs_bytes(code, groups, offset, WEIGHT_BYTES + start + lanes * part)
        for start in (0, LANES)
    )
    bits = build.shl(steps, code.same(code.i32, lanes, _FRACTION_BITS))
    exponent = code.same(code.i32, lanes, _EXPONENT_OF_0 << 23)
    step = build.bitcast(build.add(bits, exponent), f32)
    part_of_step = code.same(code.f32, lanes, -1 / ZERO_PARTS)
    lowest = build.fmul(build.fmul(build.uitofp(zeros, f32), part_of_step), step)
    return step, lowest


def add_group(
    code: Code,
    total: Variable,
    dots: ir.Value,
    row: tuple[ir.Value, ir.Value],
    weights: tuple[ir.Value, ir.Value],
) -> None:
    """Add the products of one group of a row to *total*, float32.

    All kernels add in this order, so that their results are equal bit for bit.

    Args:
        code: Where the code is written.
        total: The products so far, for the outputs of a register.
        dots: The dot products of the rounded numbers with the weights, whole numbers of 32 bits.
        row: The scale of the row's numbers, and the sum of its values; see `SCALE_BYTES`.
        weights: The steps and the lowest values; see `step_and_lowest`.
    """
    build, kind = code.builder, total.get().type
    scale, whole = (code.spread(each, kind.count) for each in row)
    step, lowest = weights
    now = code.fused(build.fmul(build.sitofp(dots, kind), scale), step, total.get())
    total.set(code.fused(whole, lowest, now))


def _outputs_bytes(code: Code, groups: ir.Value, offset: ir.Value, start: int) -> ir.Value:
    """Return a byte for each output of a register, as 32-bit numbers."""
    lanes = vector_bytes() // 4
    place = code.builder.add(offset, code.number(start))
    loaded = code.load(groups, place, code.vector(code.i8, lanes))
    return code.builder.zext(loaded, code.vector(code.i32, lanes))
