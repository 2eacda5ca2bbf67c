"""Code for the attention of a step: the new token of a row attends to its KV states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.jit import Code, Variable
from idefics_cli.models.kernels.text_step.maths import exponential, highest

if TYPE_CHECKING:
    from llvmlite import ir

# The values of so many keys are added to the sums of one head before those of the next head, so
# that the heads that share them read them from the cache of the processor.
_KEYS_TOGETHER = 128
_SCORE_LANES = 16
# The sum of the exponentials of a head is stored behind them, where no vector of scores reaches.
_WHOLE_AT = 4 * (_SCORE_LANES - 1)


class Attention(NamedTuple):
    """Arguments of the functions for the heads that share one KV head.

    Attributes:
        sharing: Number of heads that share it.
        position: Position of the new token.
        first: Position of the first key to which it attends.
        capacity: Positions of a row of the KV states.
        scaling: Factor of the scores, float32.
        queries: Address of the queries of the row (heads, width), float32.
        new_key: Address of the new key of the KV head (width,), float32, without its position.
        new_value: Address of its new value.
        cosines: Address of the cosines of the position (width,), float32.
        sines: Address of the sines.
        keys: Address of the keys of the row and the KV head (capacity, width).
        values: Address of the values.
        scores: Memory for (sharing, capacity + 16) float32.
        turned: Memory for (2 * sharing, width) float32.
        out: Address of the outputs of the row (heads, width), float32.
    """

    sharing: ir.Value
    position: ir.Value
    first: ir.Value
    capacity: ir.Value
    scaling: ir.Value
    queries: ir.Value
    new_key: ir.Value
    new_value: ir.Value
    cosines: ir.Value
    sines: ir.Value
    keys: ir.Value
    values: ir.Value
    scores: ir.Value
    turned: ir.Value
    out: ir.Value


class AttentionWriter:
    """Writes the code of one KV head of one row: first its new state, then the attention.

    Args:
        code: Where the code is written.
        given: The arguments.
        width: Width of a head, even.
        is_bfloat16: Whether the KV states are in bfloat16, and results are rounded to it.
    """

    def __init__(self, code: Code, given: Attention, width: int, *, is_bfloat16: bool) -> None:
        self._code, self._given = code, given
        self._width, self._is_bfloat16 = width, is_bfloat16
        self._lanes = max(
            lanes for lanes in (1, 2, 4, 8, vector_bytes() // 4) if width // 2 % lanes == 0
        )
        build = code.builder
        self._state_bytes = code.number(width * (2 if is_bfloat16 else 4))
        self._line = build.mul(build.add(given.capacity, code.number(_SCORE_LANES)), code.number(4))
        self._count = build.sub(build.add(given.position, code.number(1)), given.first)

    def write_state(self) -> None:
        """Write the code that stores the new key and the new value."""
        code, given, build = self._code, self._given, self._code.builder
        key, value = code.pointer(given.new_key), code.pointer(given.new_value)
        at = build.mul(given.position, self._state_bytes)
        self._turn(key, lambda place, part: self._store_state(given.keys, at, place, part))
        for place in range(0, self._width, self._lanes):
            self._store_state(given.values, at, place, self._round(self._load(value, place)))

    def write_attention(self) -> None:
        """Write the code that attends to the stored states."""
        code, given, build = self._code, self._given, self._code.builder
        with code.loop(code.number(0), given.sharing) as head:
            query = code.pointer(build.add(given.queries, self._head_bytes(head)))
            turned = code.pointer(build.add(given.turned, self._head_bytes(head)))
            self._turn(query, lambda place, part: code.store(part, turned, 4 * place))
        self._write_scores()
        with code.loop(code.number(0), given.sharing) as head:
            self._write_weights(head)
        self._write_sums()
        with code.loop(code.number(0), given.sharing) as head:
            self._write_output(head)

    def _head_bytes(self, head: ir.Value) -> ir.Value:
        return self._code.builder.mul(head, self._code.number(4 * self._width))

    def _load(self, base: ir.Value, place: int) -> ir.Value:
        return self._code.load(base, 4 * place, self._code.vector(self._code.f32, self._lanes))

    def _round(self, values: ir.Value) -> ir.Value:
        return self._code.rounded(values) if self._is_bfloat16 else values

    def _turn(self, source: ir.Value, store: Callable[[int, ir.Value], object]) -> None:
        """Write the code that adds the position to a query or key (rotary embedding)."""
        code, build, half = self._code, self._code.builder, self._width // 2
        cosines, sines = code.pointer(self._given.cosines), code.pointer(self._given.sines)
        for place in range(0, half, self._lanes):
            lower, upper = (self._round(self._load(source, place + more)) for more in (0, half))
            for at, one, other in (
                (place, lower, build.fneg(upper)),
                (place + half, upper, lower),
            ):
                kept = self._round(build.fmul(one, self._load(cosines, at)))
                moved = self._round(build.fmul(other, self._load(sines, at)))
                store(at, self._round(build.fadd(kept, moved)))

    def _store_state(self, states: ir.Value, at: ir.Value, place: int, part: ir.Value) -> None:
        code, build = self._code, self._code.builder
        size = 2 if self._is_bfloat16 else 4
        offset = build.add(at, code.number(size * place))
        if self._is_bfloat16:
            part = code.to_bfloat16(part)
        code.store(part, code.pointer(states), offset)

    def _load_state(self, states: ir.Value, at: ir.Value, place: int) -> ir.Value:
        code, size = self._code, 2 if self._is_bfloat16 else 4
        offset = code.builder.add(at, code.number(size * place))
        if not self._is_bfloat16:
            return code.load(states, offset, code.vector(code.f32, self._lanes))
        return code.from_bfloat16(code.load(states, offset, code.vector(code.i16, self._lanes)))

    @contextmanager
    def _blocks(self) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Repeat the code for each block of keys, counted from the first key that is seen."""
        code, build = self._code, self._code.builder
        with code.loop(code.number(0), self._count, _KEYS_TOGETHER) as start:
            yield start, code.smaller(build.add(start, code.number(_KEYS_TOGETHER)), self._count)

    def _state_at(self, index: ir.Value) -> ir.Value:
        build = self._code.builder
        return build.mul(build.add(index, self._given.first), self._state_bytes)

    def _scores_of(self, head: ir.Value) -> ir.Value:
        build = self._code.builder
        return self._code.pointer(build.add(self._given.scores, build.mul(head, self._line)))

    def _write_scores(self) -> None:
        code, build, given = self._code, self._code.builder, self._given
        keys = code.pointer(given.keys)
        lowest = code.same(code.f32, _SCORE_LANES, float("-inf"))
        with code.loop(code.number(0), given.sharing) as head:
            # The last vector of scores is filled up.
            code.store(lowest, self._scores_of(head), build.mul(self._count, code.number(4)))
        with self._blocks() as (start, stop), code.loop(code.number(0), given.sharing) as head:
            turned = code.pointer(build.add(given.turned, self._head_bytes(head)))
            places = range(0, self._width, self._lanes)
            query = [self._load(turned, place) for place in places]
            scores = self._scores_of(head)
            with code.loop(start, stop) as index:
                at, sums = self._state_at(index), [None, None]
                for number, place in enumerate(places):
                    key, so_far = self._load_state(keys, at, place), sums[number % 2]
                    sums[number % 2] = (
                        build.fmul(query[number], key)
                        if so_far is None
                        else code.fused(query[number], key, so_far)
                    )
                both = [part for part in sums if part is not None]
                whole = both[0] if len(both) == 1 else build.fadd(*both)
                score = build.fmul(code.total(whole), given.scaling)
                code.store(score, scores, build.mul(index, code.number(4)))

    def _write_weights(self, head: ir.Value) -> None:
        """Write the code that replaces the scores of *head* by their exponentials."""
        code, build = self._code, self._code.builder
        scores, kind = self._scores_of(head), code.vector(code.f32, _SCORE_LANES)
        zero = code.number(0)
        most = code.variable(code.same(code.f32, _SCORE_LANES, float("-inf")))
        with code.loop(zero, self._count, _SCORE_LANES) as index:
            found = code.load(scores, build.mul(index, code.number(4)), kind)
            most.set(code.call(f"llvm.maxnum.v{_SCORE_LANES}f32", kind, most.get(), found))
        top = code.spread(highest(code, most.get()), _SCORE_LANES)
        whole = code.variable(code.same(code.f32, _SCORE_LANES, 0.0))
        with code.loop(zero, self._count, _SCORE_LANES) as index:
            at = build.mul(index, code.number(4))
            weight = exponential(code, build.fsub(code.load(scores, at, kind), top))
            code.store(weight, scores, at)
            whole.set(build.fadd(whole.get(), weight))
        place = build.mul(self._count, code.number(4))
        code.store(code.total(whole.get()), scores, build.add(place, code.number(_WHOLE_AT)))

    def _write_sums(self) -> None:
        code, build, given = self._code, self._code.builder, self._given
        values, places = code.pointer(given.values), range(0, self._width, self._lanes)
        nothing = code.same(code.f32, self._lanes, 0.0)
        with code.loop(code.number(0), given.sharing) as head:
            for place in places:
                code.store(nothing, self._sums_of(head), 4 * place)
        with self._blocks() as (start, stop), code.loop(code.number(0), given.sharing) as head:
            sums, scores = self._sums_of(head), self._scores_of(head)
            totals: list[Variable] = [code.variable(self._load(sums, place)) for place in places]
            with code.loop(start, stop) as index:
                at = self._state_at(index)
                weight = code.load(scores, build.mul(index, code.number(4)), code.f32)
                wide = code.spread(weight, self._lanes)
                for place, so_far in zip(places, totals, strict=True):
                    value = self._load_state(values, at, place)
                    so_far.set(code.fused(wide, value, so_far.get()))
            for place, so_far in zip(places, totals, strict=True):
                code.store(so_far.get(), sums, 4 * place)

    def _sums_of(self, head: ir.Value) -> ir.Value:
        build = self._code.builder
        number = build.add(head, self._given.sharing)
        return self._code.pointer(build.add(self._given.turned, self._head_bytes(number)))

    def _write_output(self, head: ir.Value) -> None:
        code, build = self._code, self._code.builder
        place = build.mul(self._count, code.number(4))
        at = build.add(place, code.number(_WHOLE_AT))
        whole = code.spread(code.load(self._scores_of(head), at, code.f32), self._lanes)
        out = code.pointer(build.add(self._given.out, self._head_bytes(head)))
        for place in range(0, self._width, self._lanes):
            mean = build.fdiv(self._load(self._sums_of(head), place), whole)
            code.store(self._round(mean), out, 4 * place)
