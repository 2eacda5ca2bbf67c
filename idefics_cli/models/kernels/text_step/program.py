"""Code of a step: all threads run it, and wait for each other between its stages.

The stages of a layer are: norm, queries, keys and values; attention; output projection; norm,
gate and up projection; down projection. Each thread computes the norms of all rows for itself,
because that takes less time than waiting for another thread's.

The rows are the newest tokens of several texts, or successive tokens of one prompt. The tokens of a
prompt attend to each other, so one more stage stores their keys and values before the attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from idefics_cli.models.kernels.blocks import first_output
from idefics_cli.models.kernels.jit import Code
from idefics_cli.models.kernels.text_step.attention import Attention
from idefics_cli.models.kernels.text_step.functions import StepFunctions, StepKind
from idefics_cli.models.kernels.text_step.layout import (
    COUNTER_BYTES,
    FIELD_BYTES,
    LAYER_FIELDS,
    STAGES,
    LayerField,
    LinearField,
    StepField,
)
from idefics_cli.models.kernels.text_step.maths import exponential
from idefics_cli.models.kernels.text_step.products import (
    LANES,
    field,
)
from idefics_cli.models.kernels.text_step.rounding import Rounding

if TYPE_CHECKING:
    from llvmlite import ir

# If another program delays one thread, the others do its remaining chunks.
_CHUNKS_PER_THREAD = 8


def write_module(kind: StepKind, name: str) -> str:
    """Return the module of a step in LLVM's assembly language; *name* is that of its function."""
    from llvmlite import ir

    module = ir.Module()
    pointer = ir.PointerType()
    functions = StepFunctions(module, kind)
    step = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), name=name)
    code = Code(step)
    writer = StepWriter(code, code.builder.ptrtoint(step.args[0], code.i64), functions, kind)
    writer.write()
    code.builder.ret_void()
    return str(module)


class StepWriter:
    """Writes the code of a step.

    Args:
        code: Where the code is written.
        table: Address of the fields of the step; see `layout.StepField`.
        functions: The functions that it calls.
        kind: What the code depends on.
    """

    def __init__(
        self, code: Code, table: ir.Value, functions: StepFunctions, kind: StepKind
    ) -> None:
        self._code, self._table, self._functions, self._kind = code, table, functions, kind
        build = code.builder
        self._given: dict[StepField, ir.Value] = {
            each: field(code, table, each) for each in StepField
        }
        number = build.atomic_rmw("add", code.pointer(table), code.number(1), "monotonic")
        self._scratch = build.add(
            self._given[StepField.SCRATCH], build.mul(number, self._given[StepField.SCRATCH_BYTES])
        )

    def write(self) -> None:
        """Write the code."""
        code, build, given = self._code, self._code.builder, self._given
        with code.loop(code.number(0), given[StepField.LAYERS]) as index:
            offset = build.mul(index, code.number(FIELD_BYTES * LAYER_FIELDS))
            layer = build.add(given[StepField.LAYER_TABLE], offset)
            first = build.mul(index, code.number(STAGES * COUNTER_BYTES))
            self._write_layer(layer, build.add(given[StepField.COUNTERS], first))
        done = build.mul(given[StepField.LAYERS], code.number(STAGES * COUNTER_BYTES))
        head = build.add(self._table, code.number(FIELD_BYTES * StepField.HEAD))
        first = given[StepField.HEAD_FROM]
        rows = build.sub(given[StepField.ROWS], first)
        normed = self._own(StepField.NORMED_AT)
        self._write_norm(given[StepField.FINAL_NORM], first=first)
        self._write_rounding(head, normed, rows)
        outputs = field(code, head, LinearField.OUTPUTS)
        with self._pieces(
            build.add(given[StepField.COUNTERS], done), _blocks(code, outputs)
        ) as block:
            self._multiply(head, block, normed, given[StepField.LOGITS], rows)

    def _write_layer(self, layer: ir.Value, counters: ir.Value) -> None:
        code, build, given = self._code, self._code.builder, self._given

        def counter(stage: int) -> ir.Value:
            return build.add(counters, code.number(COUNTER_BYTES * stage))

        self._write_norm(field(code, layer, LayerField.INPUT_NORM))
        self._write_projections(layer, counter(0))
        self._wait()
        self._write_attention(layer, counter(1), counter(5))
        self._wait()
        self._write_added(
            self._linear(layer, LayerField.OUTPUT), given[StepField.ATTENDED], counter(2)
        )
        self._wait()
        self._write_norm(field(code, layer, LayerField.OUTPUT_NORM))
        self._write_gated(layer, counter(3))
        self._wait()
        self._write_added(self._linear(layer, LayerField.DOWN), given[StepField.GATES], counter(4))
        self._wait()

    def _linear(self, layer: ir.Value, which: LayerField) -> ir.Value:
        return self._code.builder.add(layer, self._code.number(FIELD_BYTES * which))

    def _own(self, which: StepField) -> ir.Value:
        """Return the address of a part of this thread's own memory."""
        return self._code.builder.add(self._scratch, self._given[which])

    def _wait(self) -> None:
        self._code.builder.call(self._functions.barrier, [])

    @contextmanager
    def _pieces(self, counter: ir.Value, count: ir.Value) -> Iterator[ir.Value]:
        """Divide the numbers below *count* among the threads; repeat the code for each."""
        code, build = self._code, self._code.builder
        shares = build.mul(self._given[StepField.THREADS], code.number(_CHUNKS_PER_THREAD))
        chunk = build.udiv(count, shares)
        one = code.number(1)
        chunk = build.select(build.icmp_signed("<", chunk, one), one, chunk)
        head, work, end = (build.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        first = build.atomic_rmw("add", code.pointer(counter), chunk, "monotonic")
        build.cbranch(build.icmp_signed("<", first, count), work, end)
        build.position_at_end(work)
        last = code.smaller(build.add(first, chunk), count)
        with code.loop(first, last) as piece:
            yield piece
        build.branch(head)
        build.position_at_end(end)

    def _multiply(
        self,
        linear: ir.Value,
        block: ir.Value,
        rows: ir.Value,
        out: ir.Value,
        count: ir.Value | None = None,
    ) -> None:
        numbers, scales = self._own(StepField.NUMBERS_AT), self._own(StepField.SCALES_AT)
        count = self._given[StepField.ROWS] if count is None else count
        arguments = (block, count, linear, rows, numbers, scales, out)
        self._code.builder.call(self._functions.product, arguments)

    def _write_rounding(
        self, linear: ir.Value, rows: ir.Value, count: ir.Value | None = None
    ) -> None:
        """Write the code that rounds *count* *rows*, or all, as the layer needs them."""
        count = self._given[StepField.ROWS] if count is None else count
        numbers, scales = self._own(StepField.NUMBERS_AT), self._own(StepField.SCALES_AT)
        given = Rounding(linear, count, rows, numbers, scales)
        self._code.builder.call(self._functions.rounding, list(given))

    def _write_norm(self, weight: ir.Value, *, first: ir.Value | None = None) -> None:
        """Write the code that puts the normed states into this thread's own memory.

        Those of the row *first* come first; None takes row 0.
        """
        code, build, given = self._code, self._code.builder, self._given
        kind = code.vector(code.f32, LANES)
        width = given[StepField.HIDDEN]
        weights, out = code.pointer(weight), code.pointer(self._own(StepField.NORMED_AT))
        first = code.number(0) if first is None else first
        skipped = build.mul(build.mul(first, width), code.number(4))
        states = code.pointer(build.add(given[StepField.STATES], skipped))
        with code.loop(code.number(0), build.sub(given[StepField.ROWS], first)) as row:
            line = build.mul(build.mul(row, width), code.number(4))
            squares = code.variable(code.same(code.f32, LANES, 0.0))
            with code.loop(code.number(0), width, LANES) as place:
                at = build.add(line, build.mul(place, code.number(4)))
                value = code.load(states, at, kind)
                squares.set(code.fused(value, value, squares.get()))
            mean = build.fdiv(code.total(squares.get()), build.sitofp(width, code.f32))
            root = code.call(
                "llvm.sqrt.f32", code.f32, build.fadd(mean, self._float(StepField.EPSILON))
            )
            factor = code.spread(build.fdiv(code.ir.Constant(code.f32, 1.0), root), LANES)
            with code.loop(code.number(0), width, LANES) as place:
                offset = build.mul(place, code.number(4))
                at = build.add(line, offset)
                value = self._round(build.fmul(code.load(states, at, kind), factor))
                value = build.fmul(value, code.load(weights, offset, kind))
                code.store(self._round(value), out, at)

    def _float(self, which: StepField) -> ir.Value:
        build = self._code.builder
        return build.bitcast(build.trunc(self._given[which], self._code.i32), self._code.f32)

    def _round(self, values: ir.Value) -> ir.Value:
        return self._code.rounded(values) if self._kind.is_bfloat16 else values

    def _write_projections(self, layer: ir.Value, counter: ir.Value) -> None:
        """Write the code for queries, keys and values; their blocks are numbered on."""
        code, build, given = self._code, self._code.builder, self._given
        rows = self._own(StepField.NORMED_AT)
        parts = [
            (self._linear(layer, which), given[out])
            for which, out in (
                (LayerField.QUERY, StepField.QUERIES),
                (LayerField.KEY, StepField.NEW_KEYS),
                (LayerField.VALUE, StepField.NEW_VALUES),
            )
        ]
        for linear, _ in parts:
            # Rounding the same rows again changes nothing. The formats of the three layers differ
            # only if the shape of one does not suit 4 bits.
            self._write_rounding(linear, rows)
        counts = [_blocks(code, field(code, linear, LinearField.OUTPUTS)) for linear, _ in parts]
        with self._pieces(counter, build.add(build.add(counts[0], counts[1]), counts[2])) as piece:
            first = code.number(0)
            for (linear, out), count in zip(parts, counts, strict=True):
                block, stop = build.sub(piece, first), build.add(first, count)
                inside = build.and_(
                    build.icmp_signed(">=", piece, first), build.icmp_signed("<", piece, stop)
                )
                with build.if_then(inside):
                    self._multiply(linear, block, rows, out)
                first = stop

    def _write_attention(self, layer: ir.Value, counter: ir.Value, other: ir.Value) -> None:
        """Write the code for the KV states of all rows and the attention to them.

        Args:
            layer: The fields of the layer.
            counter: Counts the pieces of the attention.
            other: Counts the pieces of the KV states of a prompt.
        """
        code, build, given = self._code, self._code.builder, self._given
        pieces = build.mul(given[StepField.ROWS], given[StepField.KV_HEADS])
        is_prompt = build.icmp_signed("==", given[StepField.IS_PROMPT], code.number(1))
        with build.if_then(is_prompt):
            with self._pieces(other, pieces) as piece:
                build.call(self._functions.store_state, self._attention(layer, piece))
            self._wait()
        with self._pieces(counter, pieces) as piece:
            arguments = self._attention(layer, piece)
            with build.if_then(build.not_(is_prompt)):
                build.call(self._functions.store_state, arguments)
            build.call(self._functions.attention, arguments)

    def _attention(self, layer: ir.Value, piece: ir.Value) -> list[ir.Value]:
        """Return the arguments for a piece: a KV head of a row, whose heads are numbered on."""
        code, build, given = self._code, self._code.builder, self._given
        size = code.number(4 * self._kind.head_width)
        row = build.udiv(piece, given[StepField.KV_HEADS])
        sharing = build.udiv(given[StepField.HEADS], given[StepField.KV_HEADS])
        query = build.mul(build.mul(piece, sharing), size)
        state = build.mul(piece, size)
        position = code.load(
            code.pointer(given[StepField.POSITIONS]), build.mul(row, code.number(8)), code.i64
        )
        first = build.sub(build.add(position, code.number(1)), given[StepField.WINDOW])
        first = build.select(build.icmp_signed(">", first, code.number(0)), first, code.number(0))
        state_bytes = (2 if self._kind.is_bfloat16 else 4) * self._kind.head_width
        # All tokens of a prompt share the first row of the KV states.
        head = build.urem(piece, given[StepField.KV_HEADS])
        is_prompt = build.icmp_signed("==", given[StepField.IS_PROMPT], code.number(1))
        held = build.select(is_prompt, head, piece)
        held = build.mul(build.mul(held, given[StepField.CAPACITY]), code.number(state_bytes))
        turn = build.mul(position, size)
        attention = Attention(
            sharing=sharing,
            position=position,
            first=first,
            capacity=given[StepField.CAPACITY],
            scaling=given[StepField.SCALING],
            queries=build.add(given[StepField.QUERIES], query),
            new_key=build.add(given[StepField.NEW_KEYS], state),
            new_value=build.add(given[StepField.NEW_VALUES], state),
            cosines=build.add(given[StepField.COSINES], turn),
            sines=build.add(given[StepField.SINES], turn),
            keys=build.add(field(code, layer, LayerField.KEYS), held),
            values=build.add(field(code, layer, LayerField.VALUES), held),
            scores=self._own(StepField.SCORES_AT),
            turned=self._own(StepField.TURNED_AT),
            out=build.add(given[StepField.ATTENDED], query),
        )
        return list(attention)

    def _write_added(self, linear: ir.Value, rows: ir.Value, counter: ir.Value) -> None:
        """Write the code that multiplies *rows* and adds the products to the states."""
        code, build, given = self._code, self._code.builder, self._given
        self._write_rounding(linear, rows)
        outputs, sums = field(code, linear, LinearField.OUTPUTS), given[StepField.SUMS]
        with self._pieces(counter, _blocks(code, outputs)) as block:
            self._multiply(linear, block, rows, sums)
            for at in self._each_row(block, outputs):
                state = self._load(given[StepField.STATES], at)
                added = build.fadd(state, self._round(self._load(sums, at)))
                code.store(self._round(added), code.pointer(given[StepField.STATES]), at)

    def _write_gated(self, layer: ir.Value, counter: ir.Value) -> None:
        code, build, given = self._code, self._code.builder, self._given
        rows, gates, ups = (
            self._own(StepField.NORMED_AT),
            given[StepField.GATES],
            given[StepField.UPS],
        )
        gate, up = (self._linear(layer, which) for which in (LayerField.GATE, LayerField.UP))
        for linear in (gate, up):
            self._write_rounding(linear, rows)
        outputs = given[StepField.INTERMEDIATE]
        one = code.same(code.f32, LANES, 1.0)
        with self._pieces(counter, _blocks(code, outputs)) as block:
            self._multiply(gate, block, rows, gates)
            self._multiply(up, block, rows, ups)
            for at in self._each_row(block, outputs):
                value = self._round(self._load(gates, at))
                below = build.fadd(one, exponential(code, build.fneg(value)))
                value = self._round(build.fdiv(value, below))
                value = build.fmul(value, self._round(self._load(ups, at)))
                code.store(self._round(value), code.pointer(gates), at)

    def _load(self, base: ir.Value, at: ir.Value) -> ir.Value:
        return self._code.load(
            self._code.pointer(base), at, self._code.vector(self._code.f32, LANES)
        )

    def _each_row(self, block: ir.Value, outputs: ir.Value) -> Iterator[ir.Value]:
        """Repeat the code for each row, with the offset in bytes of its outputs of *block*."""
        code, build = self._code, self._code.builder
        first = build.mul(first_output(code, block, outputs, LANES), code.number(4))
        with code.loop(code.number(0), self._given[StepField.ROWS]) as row:
            yield build.add(build.mul(build.mul(row, outputs), code.number(4)), first)


def _blocks(code: Code, outputs: ir.Value) -> ir.Value:
    build = code.builder
    return build.udiv(build.add(outputs, code.number(LANES - 1)), code.number(LANES))
