"""A step of the text model in one call of compiled code: a token of each row, or a short prompt.

transformers computes a step of a small model in some thousand calls of torch, which together take
longer than the products themselves. Here each thread of torch's pool runs the whole step, and the
threads wait for each other five times in a layer.

The tokens of a short prompt, such as the next question of a conversation, run in the same way: each
is a row, and all write to one row of the KV states.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.bf16_12bit.linear import CompactLinear
from idefics_cli.models.kernels.compiler import CodeTarget, target
from idefics_cli.models.kernels.int4.compiled import CompiledInt4Linear
from idefics_cli.models.kernels.int4.layout import GROUP
from idefics_cli.models.kernels.int8.linear import CompiledInt8Linear
from idefics_cli.models.kernels.int8.rounding import EXTRA_BYTES
from idefics_cli.models.kernels.jit import CompiledModule
from idefics_cli.models.kernels.openmp import openmp_library
from idefics_cli.models.kernels.text_step.functions import BARRIER, StepKind
from idefics_cli.models.kernels.text_step.layout import (
    COUNTER_BYTES,
    FIELDS,
    LAYER_FIELDS,
    LINEAR_FIELDS,
    STAGES,
    Format,
    LayerField,
    StepField,
)
from idefics_cli.models.kernels.text_step.products import LANES
from idefics_cli.models.kernels.text_step.program import write_module
from idefics_cli.models.kernels.widened import WidenedLinear

_NAME = "text_step"
_DTYPES = (torch.float32, torch.bfloat16)


class States(Protocol):
    """The KV states of one layer, (rows, KV heads, positions, width)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class TextLayer:
    """The modules of one layer of a text model."""

    input_norm: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    output_norm: nn.Module
    gate: nn.Module
    up: nn.Module
    down: nn.Module

    @property
    def linears(self) -> tuple[nn.Module, ...]:
        """The linear layers, in the order of `LayerField`."""
        return (self.query, self.key, self.value, self.output, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text model of Llama's structure.

    Attributes:
        layers: Its layers.
        norm: The last norm.
        head: The layer that computes the logits.
        rotary: Returns cosines and sines (1, T, width) of positions (1, T).
        heads: Number of attention heads.
        kv_heads: Number of KV heads.
        head_width: Width of a head.
        epsilon: The number that the norms add to the mean square.
        scaling: Factor of the scores.
        window: Number of tokens to which a token attends; None for all.
        dtype: Dtype of the states.
    """

    layers: Sequence[TextLayer]
    norm: nn.Module
    head: nn.Module
    rotary: nn.Module
    heads: int
    kv_heads: int
    head_width: int
    epsilon: float
    scaling: float
    window: int | None
    dtype: torch.dtype


class TextStep:
    """Runs one new token of each row, or the last tokens of a prompt, through a text model.

    Args:
        text: On the CPU; `problem` returns None for it.

    Raises:
        RuntimeError: If the code cannot be compiled.
    """

    MOST_ROWS: ClassVar[int] = 32
    """With more rows, torch's products of matrices are faster."""

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the code can be compiled here."""
        return jit.passes(
            lambda: _compiled(StepKind((Format.FLOAT32,), 16, False), target()) is not None
        )

    @staticmethod
    def problem(text: TextModel) -> str | None:
        """Return why this class cannot compute *text*, or None."""
        if text.dtype not in _DTYPES:
            return f"the model is in {str(text.dtype).removeprefix('torch.')}"
        if text.head_width % 2:
            return "the width of its heads is odd"
        for layer in text.layers:
            for linear in layer.linears:
                if (found := _linear_problem(linear)) is not None:
                    return found
                if _shape(linear)[0] % LANES:
                    return "the width of a layer is no multiple of 16"
        return _linear_problem(text.head)

    def __init__(self, text: TextModel) -> None:
        self._text = text
        linears = [linear for layer in text.layers for linear in layer.linears]
        formats = {_format(linear) for linear in (*linears, text.head)}
        kind = StepKind(tuple(sorted(formats)), text.head_width, text.dtype == torch.bfloat16)
        self._code = _compiled(kind, target())
        # The tables hold addresses of these tensors, which must stay alive.
        self._kept: list[Tensor] = []
        self._fields = (ctypes.c_int64 * FIELDS)()
        self._layers = (ctypes.c_int64 * (LAYER_FIELDS * len(text.layers)))()
        self._hidden = _shape(text.layers[0].query)[1]
        self._intermediate = _shape(text.layers[0].down)[1]
        self._fill_tables()
        self._rows = self._threads = self._capacity = 0
        self._cosines = self._sines = torch.empty(0, text.head_width)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._text.layers)

    @property
    def empty_states(self) -> Tensor:
        """The keys or values of no token of one row, (1, KV heads, 0, width)."""
        text = self._text
        return torch.empty(1, text.kv_heads, 0, text.head_width, dtype=text.dtype)

    def __call__(
        self, states: Tensor, positions: Sequence[int], layers: Sequence[States]
    ) -> Tensor:
        """Run one token of each row; its KV states are written to *layers*.

        Args:
            states: (rows, hidden) the embeddings of the tokens.
            positions: The position of each token. A token attends to the positions before it.
            layers: The KV states of each layer, of more rows than *states* or as many,
                contiguous, with room for all *positions*.

        Returns:
            Logits (rows, V), in the dtype of the model.
        """
        return self._run(states, positions, layers, is_prompt=False)

    def run_prompt(self, states: Tensor, position: int, layers: Sequence[States]) -> Tensor:
        """Run successive tokens of one prompt; their KV states are written to *layers*.

        Args:
            states: (T, hidden) the embeddings of up to `MOST_ROWS` tokens.
            position: The position of the first of them. The KV states before it are known.
            layers: The KV states of each layer, whose first row is that of the prompt, contiguous,
                with room for all tokens.

        Returns:
            Logits (1, V) of the last token, in the dtype of the model.
        """
        positions = range(position, position + len(states))
        # The next step overwrites its logits, and the caller may keep those of a prompt.
        return self._run(states, positions, layers, is_prompt=True).clone()

    def _run(
        self,
        states: Tensor,
        positions: Sequence[int],
        layers: Sequence[States],
        *,
        is_prompt: bool,
    ) -> Tensor:
        rows, threads = len(states), torch.get_num_threads()
        wanted = 1 if is_prompt else rows
        capacity = layers[0].keys.shape[2]
        if rows > self._rows or threads > self._threads or capacity > self._capacity:
            # The room for the largest step is kept, because rows end one after the other.
            most = (max(rows, self._rows), max(threads, self._threads))
            self._make_room(*most, max(capacity, self._capacity))
        fields = self._fields
        fields[StepField.ROWS], fields[StepField.THREADS] = rows, threads
        fields[StepField.CAPACITY], fields[StepField.IS_PROMPT] = capacity, is_prompt
        fields[StepField.HEAD_FROM] = rows - wanted
        self._turn_to(max(positions))
        self._states[:rows] = states
        self._positions[:rows] = torch.tensor(positions)
        for index, layer in enumerate(layers):
            at = index * LAYER_FIELDS
            self._layers[at + LayerField.KEYS] = layer.keys.data_ptr()
            self._layers[at + LayerField.VALUES] = layer.values.data_ptr()
        self._counters.zero_()
        fields[StepField.THREADS_BEGUN] = 0
        self._code.run(_NAME, ctypes.addressof(fields), threads)
        return self._logits[:wanted, : _shape(self._text.head)[0]].to(self._text.dtype)

    def _fill_tables(self) -> None:
        text, fields = self._text, self._fields
        for number, layer in enumerate(text.layers):
            at = number * LAYER_FIELDS
            self._layers[at + LayerField.INPUT_NORM] = self._norm(layer.input_norm)
            self._layers[at + LayerField.OUTPUT_NORM] = self._norm(layer.output_norm)
            for index, linear in enumerate(layer.linears):
                first = at + LayerField.QUERY + index * LINEAR_FIELDS
                _write(self._layers, first, self._linear(linear))
        _write(fields, StepField.HEAD, self._linear(text.head))
        fields[StepField.LAYERS] = len(text.layers)
        fields[StepField.LAYER_TABLE] = ctypes.addressof(self._layers)
        fields[StepField.HIDDEN], fields[StepField.INTERMEDIATE] = self._hidden, self._intermediate
        fields[StepField.HEADS], fields[StepField.KV_HEADS] = text.heads, text.kv_heads
        fields[StepField.WINDOW] = text.window or 2**62
        fields[StepField.EPSILON], fields[StepField.SCALING] = (
            _bits(text.epsilon),
            _bits(text.scaling),
        )
        fields[StepField.FINAL_NORM] = self._norm(text.norm)
        self._counters = torch.zeros(
            (STAGES * len(text.layers) + 1) * COUNTER_BYTES, dtype=torch.uint8
        )
        fields[StepField.COUNTERS] = self._counters.data_ptr()

    def _norm(self, norm: nn.Module) -> int:
        weight = cast("Tensor", norm.weight).detach().float().contiguous()
        self._kept.append(weight)
        return weight.data_ptr()

    def _linear(self, linear: nn.Module) -> list[int]:
        _, width = _shape(linear)
        outputs, tensors = _stored_outputs(linear), _tensors(linear)
        self._kept += tensors
        addresses = [tensor.data_ptr() for tensor in tensors]
        numbers = [_format(linear), width, outputs, *addresses]
        return numbers + [0] * (LINEAR_FIELDS - len(numbers))

    def _make_room(self, rows: int, threads: int, capacity: int) -> None:
        """Allocate the buffers for *rows* rows, *threads* threads and *capacity* positions."""
        text, fields = self._text, self._fields
        self._rows, self._threads, self._capacity = rows, threads, capacity
        heads, kv = text.heads * text.head_width, text.kv_heads * text.head_width
        widths = {
            StepField.STATES: self._hidden,
            StepField.QUERIES: heads,
            StepField.NEW_KEYS: kv,
            StepField.NEW_VALUES: kv,
            StepField.ATTENDED: heads,
            StepField.GATES: self._intermediate,
            StepField.UPS: self._intermediate,
            StepField.SUMS: self._hidden,
            StepField.LOGITS: _stored_outputs(text.head),
        }
        buffers = {each: torch.zeros(rows, width) for each, width in widths.items()}
        for each, buffer in buffers.items():
            fields[each] = buffer.data_ptr()
        self._buffers = buffers
        self._states, self._logits = buffers[StepField.STATES], buffers[StepField.LOGITS]
        self._positions = torch.zeros(rows, dtype=torch.int64)
        fields[StepField.POSITIONS] = self._positions.data_ptr()
        self._make_scratch(rows, threads, capacity)

    def _make_scratch(self, rows: int, threads: int, capacity: int) -> None:
        """Allocate the memory of each thread."""
        text, fields = self._text, self._fields
        widest = max(self._hidden, self._intermediate, text.heads * text.head_width)
        sharing = text.heads // text.kv_heads
        sizes = {
            StepField.NORMED_AT: 4 * rows * self._hidden,
            StepField.NUMBERS_AT: rows * (2 * widest + EXTRA_BYTES),
            StepField.SCALES_AT: 8 * rows * -(-widest // GROUP),
            StepField.SCORES_AT: 4 * sharing * (capacity + 16),
            StepField.TURNED_AT: 8 * sharing * text.head_width,
        }
        at = 0
        for each, size in sizes.items():
            fields[each] = at
            at += -(-size // COUNTER_BYTES) * COUNTER_BYTES
        self._scratch = torch.zeros(threads * at, dtype=torch.uint8)
        fields[StepField.SCRATCH], fields[StepField.SCRATCH_BYTES] = self._scratch.data_ptr(), at

    def _turn_to(self, position: int) -> None:
        """Compute the rotary embedding of all positions up to *position*, if it is not known."""
        if position < len(self._cosines):
            return
        count = max(self._capacity, position + 1)
        like = torch.empty(1, 1, 1, dtype=self._text.dtype)
        turned = self._text.rotary(like, torch.arange(count)[None])
        self._cosines, self._sines = (part[0].float().contiguous() for part in turned)
        self._fields[StepField.COSINES] = self._cosines.data_ptr()
        self._fields[StepField.SINES] = self._sines.data_ptr()


@cache
def _compiled(kind: StepKind, _: CodeTarget) -> CompiledModule:
    barrier = ctypes.cast(openmp_library().GOMP_barrier, ctypes.c_void_p).value
    return CompiledModule(
        repr(kind), lambda: write_module(kind, _NAME), symbols={BARRIER: barrier or 0}
    )


def _write(table: ctypes.Array[ctypes.c_int64], first: int, numbers: Sequence[int]) -> None:
    for index, number in enumerate(numbers, start=first):
        table[index] = number


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def _format(linear: nn.Module) -> Format:
    if isinstance(linear, CompiledInt4Linear):
        return Format.INT4
    if isinstance(linear, CompiledInt8Linear):
        return Format.INT8
    if isinstance(linear, CompactLinear):
        return Format.BFLOAT16_12BIT
    if type(linear) is nn.Linear and linear.weight.dtype == torch.float32:
        return Format.FLOAT32
    if type(linear) in (nn.Linear, WidenedLinear) and linear.weight.dtype == torch.bfloat16:
        return Format.BFLOAT16
    return Format.NOTHING


def _shape(linear: nn.Module) -> tuple[int, int]:
    """Return the numbers of outputs and of inputs."""
    return cast("int", linear.out_features), cast("int", linear.in_features)


def _stored_outputs(linear: nn.Module) -> int:
    """Return the number of outputs with those that fill up the last block."""
    return linear.compact.shape[0] if isinstance(linear, CompactLinear) else _shape(linear)[0]


def _tensors(linear: nn.Module) -> list[Tensor]:
    """Return the tensors of *linear* whose addresses `products.py` lists."""
    if isinstance(linear, CompiledInt4Linear):
        return [linear.packed]
    if isinstance(linear, CompiledInt8Linear):
        return [linear.weight, linear.scale]
    if isinstance(linear, CompactLinear):
        compact = linear.compact
        return [compact.packed, compact.scale, compact.starts, compact.positions, compact.values]
    return [cast("Tensor", linear.weight).detach()]


def _linear_problem(linear: nn.Module) -> str | None:
    name = type(linear).__name__
    if _format(linear) is Format.NOTHING:
        return f"no code for the layer `{name}`"
    if getattr(linear, "bias", None) is not None:
        return "a layer has a bias"
    outputs, width = _shape(linear)
    if outputs < LANES or width % LANES:
        return f"the layer `{name}` has {outputs} outputs of width {width}"
    return None
