"""A compiler of kernels for this processor: each is compiled at its first use, within a second.

The kernels read weights in formats for which torch has no kernel, or a slower one. They run in the
threads of torch's OpenMP pool, because a second pool would compete with it for the cores.

They are written with llvmlite, the binding of LLVM that numba uses, for the following reasons. The
figures are times of the seven linear layers of one layer of Mistral 7B for one row, which torch
multiplies in bfloat16 in 19 ms (AMD Zen 5 with AVX512_BF16, 3 threads, torch 2.13).

- torchao 0.18 needs `torch.compile` for its 8-bit kernels: they take 180 to 273 ms without it, and
  with it a first call took 26 s. Its 4-bit kernel (4.1 ms) is no faster than the one in torch
  (3.9 ms), which we use where ours cannot be compiled. Its kernel for 4-bit weights with 8-bit
  activations is not in the wheel.
- A C++ extension of torch needs a compiler on the user's computer, or a wheel of ours for each
  platform. llvmlite's wheel brings the compiler along.
- KleidiAI is a library for ARM processors. These kernels are for x86.
- oneDNN has no format of 12 bits. On processors without bfloat16 instructions it emulates them, in
  up to 4 times the time of float32 (`widened.py`). On processors with these instructions, oneDNN
  (`packed.py`) computes layers that 12 bits do not suit. torch's dynamic 8-bit layers (FBGEMM or
  oneDNN) round a batch of activations with one scale: the error is 27 % when one input is 60 times
  as large as the others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

import torch

from idefics_cli.models.kernels.compiler import CodeTarget, CompiledCode, target
from idefics_cli.models.kernels.openmp import openmp_library

if TYPE_CHECKING:
    from llvmlite import ir

_NAME = "kernel"
# The work of a kernel is divided into this many chunks per thread. If another program delays one
# thread, the others then do its remaining chunks.
_CHUNKS_PER_THREAD = 8


class Body(Protocol):
    """Writes the code for one piece of a kernel's work."""

    def __call__(self, code: Code, piece: ir.Value, arguments: Sequence[ir.Value], /) -> None:
        """Write the code to *code*; *piece* is the number of the piece, from 0."""
        ...


class CompiledKernel:
    """A compiled function that many threads run together.

    Args:
        body: Writes the code for one piece of the work.
        arguments: Number of arguments of the kernel.

    Raises:
        RuntimeError: If it cannot be compiled.
    """

    def __init__(self, body: Body, *, arguments: int) -> None:
        self._engine = _compiled(body, arguments)
        address = self._engine.get_function_address(_NAME)
        self._address = address
        # If only one thread is used, it calls the function directly, without OpenMP.
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        # The memory that all threads share: the next piece, the number of pieces, the pieces of a
        # chunk, and the arguments.
        self._buffer = ctypes.c_int64 * (3 + arguments)

    def __call__(self, pieces: int, *arguments: int) -> None:
        """Do *pieces* pieces of work in as many threads as torch uses; return when all are done.

        Args:
            pieces: Number of pieces.
            arguments: Numbers, and addresses of tensors. The caller keeps these tensors alive
                until the call returns.
        """
        threads = max(1, min(torch.get_num_threads(), pieces))
        chunk = max(1, pieces // (threads * _CHUNKS_PER_THREAD))
        shared = self._buffer(0, pieces, chunk, *arguments)
        if threads == 1:
            self._alone(ctypes.addressof(shared))
        else:
            _openmp()(self._address, ctypes.addressof(shared), threads, 0)


class CompiledModule:
    """Compiled functions that all threads of torch's pool run at the same time.

    Args:
        key: What *write* depends on, in any form.
        write: Returns the functions in LLVM's assembly language. Each takes an address.
        symbols: Addresses of the functions of other libraries that they call, by name.

    Raises:
        RuntimeError: If they cannot be compiled.
    """

    def __init__(self, key: str, write: Callable[[], str], *, symbols: Mapping[str, int]) -> None:
        import llvmlite.binding as llvm

        for name, address in symbols.items():
            llvm.add_symbol(name, address)
        self._engine = CompiledCode(key, write)
        self._addresses: dict[str, int] = {}

    def run(self, name: str, data: int, threads: int) -> None:
        """Call the function *name* with the address *data* in each of *threads* threads."""
        if (address := self._addresses.get(name)) is None:
            address = self._addresses[name] = self._engine.get_function_address(name)
        _openmp()(address, data, threads, 0)


class LazyKernel:
    """A kernel that is compiled at its first call, once for each target.

    Args:
        body: See `CompiledKernel`.
        arguments: See `CompiledKernel`.
    """

    def __init__(self, body: Body, *, arguments: int) -> None:
        self._body, self._arguments = body, arguments
        self._kernels: dict[CodeTarget, CompiledKernel] = {}

    def __call__(self, pieces: int, *arguments: int) -> None:
        """Run the kernel, compiled if it is not yet; see `CompiledKernel.__call__`.

        Raises:
            RuntimeError: If it cannot be compiled.
        """
        kernel = self._kernels.get(now := target())
        if kernel is None:
            kernel = self._kernels[now] = CompiledKernel(self._body, arguments=self._arguments)
        kernel(pieces, *arguments)


class Code:
    """A writer of LLVM instructions, with methods for those that kernels use most.

    Args:
        function: The function to which the instructions are added.
    """

    def __init__(self, function: ir.Function) -> None:
        from llvmlite import ir

        self.ir = ir
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f32 = ir.FloatType()
        self._function = function

    def number(self, value: int) -> ir.Value:
        """Return a constant of 64 bits."""
        return self.ir.Constant(self.i64, value)

    def smaller(self, one: ir.Value, two: ir.Value) -> ir.Value:
        """Return the smaller of two whole numbers."""
        return self.builder.select(self.builder.icmp_signed("<", one, two), one, two)

    def same(self, kind: ir.Type, count: int, value: float) -> ir.Value:
        """Return a constant vector that holds *value* *count* times."""
        return self.ir.Constant(self.vector(kind, count), [value] * count)

    def vector(self, kind: ir.Type, count: int) -> ir.Type:
        """Return the type of *count* values of *kind*."""
        return self.ir.VectorType(kind, count)

    def pointer(self, address: ir.Value) -> ir.Value:
        """Return *address*, a number, as a pointer."""
        return self.builder.inttoptr(address, self.ir.PointerType())

    def load(self, base: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """Return the value at *offset* bytes after *base*, aligned or not."""
        return self.builder.load(self._at(base, offset), typ=kind, align=1)

    def store(self, value: ir.Value, base: ir.Value, offset: ir.Value | int) -> None:
        """Write *value* to *offset* bytes after *base*."""
        self.builder.store(value, self._at(base, offset), align=1)

    def variable(self, value: ir.Value) -> Variable:
        """Return a variable that holds *value*."""
        return Variable(self, value)

    def transposed(self, rows: Sequence[ir.Value]) -> list[ir.Value]:
        """Return the columns of a square matrix, given by its rows; its size is a power of two."""
        build, size = self.builder, len(rows)
        kind, rows = self.vector(self.i32, size), list(rows)
        half = size // 2
        # Each pass interleaves row n with row n + half. Indices from *size* on name the second one.
        places = [place for index in range(size) for place in (index, index + size)]
        for _ in range(size.bit_length() - 1):
            rows = [
                build.shuffle_vector(
                    rows[number],
                    rows[number + half],
                    self.ir.Constant(kind, places[part * size : (part + 1) * size]),
                )
                for number in range(half)
                for part in range(2)
            ]
        return rows

    def room(self, size: int) -> ir.Value:
        """Return the address of *size* bytes on the stack, aligned to a cache line."""
        kind = self.ir.ArrayType(self.i8, size)
        with self.builder.goto_entry_block():
            place = self.builder.alloca(kind)
        place.align = 64
        return self.pointer(self.builder.ptrtoint(place, self.i64))

    def spread(self, value: ir.Value, count: int) -> ir.Value:
        """Return a vector that holds *value* *count* times."""
        kind, ir_ = self.vector(value.type, count), self.ir
        nothing = ir_.Constant(kind, ir_.Undefined)
        first = self.builder.insert_element(nothing, value, ir_.Constant(self.i32, 0))
        return self.builder.shuffle_vector(first, nothing, self.same(self.i32, count, 0))

    def call(self, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
        """Call one of LLVM's intrinsic functions."""
        ir_, module = self.ir, self._function.module
        function = module.globals.get(name)
        if function is None:
            kind = ir_.FunctionType(result, [value.type for value in values])
            function = ir_.Function(module, kind, name=name)
        return self.builder.call(function, values)

    def prefetch(self, base: ir.Value, offset: ir.Value) -> None:
        """Fetch the cache line at *offset* bytes after *base*; the address may be invalid."""
        void, read, keep, data = self.ir.VoidType(), 0, 3, 1
        hints = (self.ir.Constant(self.i32, hint) for hint in (read, keep, data))
        self.call("llvm.prefetch.p0", void, self._at(base, offset), *hints)

    def fused(self, one: ir.Value, two: ir.Value, plus: ir.Value) -> ir.Value:
        """Return one * two + plus, for vectors of float32, rounded once."""
        return self.call(f"llvm.fma.v{one.type.count}f32", one.type, one, two, plus)

    def total(self, values: ir.Value) -> ir.Value:
        """Return the sum of the elements of a vector of float32; their number is a power of two."""
        build, count = self.builder, values.type.count
        # The halves are added. LLVM's own sum adds one element after the other.
        while count > 1:
            count //= 2
            kind = self.vector(self.i32, count)
            lower, upper = (
                build.shuffle_vector(
                    values, values, self.ir.Constant(kind, list(range(first, first + count)))
                )
                for first in (0, count)
            )
            values = build.fadd(lower, upper)
        return build.extract_element(values, self.ir.Constant(self.i32, 0))

    def from_bfloat16(self, halves: ir.Value) -> ir.Value:
        """Return a vector of bfloat16, given as 16-bit integers, as float32."""
        count, build = halves.type.count, self.builder
        wide = build.zext(halves, self.vector(self.i32, count))
        wide = build.shl(wide, self.same(self.i32, count, 16))
        return build.bitcast(wide, self.vector(self.f32, count))

    def rounded(self, values: ir.Value) -> ir.Value:
        """Return a vector of float32, rounded to bfloat16, as float32; halves go to even."""
        build, count = self.builder, values.type.count
        kind = self.vector(self.i32, count)
        bits = build.bitcast(values, kind)
        odd = build.lshr(bits, self.same(self.i32, count, 16))
        odd = build.and_(odd, self.same(self.i32, count, 1))
        bits = build.add(bits, build.add(odd, self.same(self.i32, count, 0x7FFF)))
        bits = build.and_(bits, self.same(self.i32, count, 0xFFFF0000 - 2**32))
        return build.bitcast(bits, values.type)

    def to_bfloat16(self, values: ir.Value) -> ir.Value:
        """Return a vector of float32 that bfloat16 holds exactly, as 16-bit integers."""
        count, build = values.type.count, self.builder
        bits = build.bitcast(values, self.vector(self.i32, count))
        bits = build.lshr(bits, self.same(self.i32, count, 16))
        return build.trunc(bits, self.vector(self.i16, count))

    @contextmanager
    def loop(self, start: ir.Value, stop: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """Repeat the code of the `with` block for each number from *start* to below *stop*."""
        build = self.builder
        number = self.variable(start)
        head, body, end = (self._function.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        value = number.get()
        build.cbranch(build.icmp_signed("<", value, stop), body, end)
        build.position_at_end(body)
        yield value
        number.set(build.add(value, self.number(step)))
        build.branch(head)
        build.position_at_end(end)

    def portions(self, total: ir.Value, sizes: Sequence[int]) -> Iterator[tuple[ir.Value, int]]:
        """Divide the numbers below *total* into portions; yield the first number and size of each.

        The caller writes code once for each of *sizes*. The code for a size is repeated as often
        as the size fits into what the sizes before it have left.
        """
        first = self.number(0)
        for size in sizes:
            count = self.builder.udiv(self.builder.sub(total, first), self.number(size))
            stop = self.builder.add(first, self.builder.mul(count, self.number(size)))
            with self.loop(first, stop, size) as number:
                yield number, size
            first = stop

    def _at(self, base: ir.Value, offset: ir.Value | int) -> ir.Value:
        offset = self.number(offset) if isinstance(offset, int) else offset
        return self.builder.gep(base, [offset], source_etype=self.i8)


class Variable:
    """A value that changes; LLVM keeps it in a register.

    Args:
        code: The code that uses it.
        value: The first value.
    """

    def __init__(self, code: Code, value: ir.Value) -> None:
        self._code, self._kind = code, value.type
        # `alloca` stands at the entry of the function: in a loop, each pass would grow the stack.
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(value.type)
        self.set(value)

    def get(self) -> ir.Value:
        """Return the value."""
        return self._code.builder.load(self._place, typ=self._kind)

    def set(self, value: ir.Value) -> None:
        """Change the value."""
        self._code.builder.store(value, self._place)


def passes(check: Callable[[], bool]) -> bool:
    """Whether *check*, which compiles and runs kernels, returns True and raises nothing.

    `table.compiler_problem` says what a machine needs. Two more conditions show only in a trial:
    the compiler knows the processor, and torch's library offers its thread pool.
    """
    try:
        return check()
    except (ImportError, RuntimeError, OSError, AttributeError, TypeError):
        return False


@cache
def _openmp() -> Callable[[int, int, int, int], None]:
    """Return `GOMP_parallel`, which runs a function in threads of torch's OpenMP pool.

    Its arguments are the address of the function, the address of its data, the number of threads
    and flags. GCC's libgomp defines it; the OpenMP libraries of LLVM and Intel have it too.
    """
    function = openmp_library().GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return cast("Callable[[int, int, int, int], None]", function)


def _compiled(body: Body, arguments: int) -> CompiledCode:
    from llvmlite import ir

    pointer = ir.PointerType()
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), name=_NAME)
    code = Code(function)
    build, shared = code.builder, function.args[0]
    pieces, chunk, *values = (
        code.load(shared, 8 * (1 + number), code.i64) for number in range(2 + arguments)
    )
    next_chunk, work, end = (function.append_basic_block() for _ in range(3))
    build.branch(next_chunk)
    build.position_at_end(next_chunk)
    # A thread that has finished a chunk takes the next one.
    first = build.atomic_rmw("add", shared, chunk, "monotonic")
    build.cbranch(build.icmp_signed("<", first, pieces), work, end)
    build.position_at_end(work)
    last = code.smaller(build.add(first, chunk), pieces)
    with code.loop(first, last) as piece:
        body(code, piece, values)
    build.branch(next_chunk)
    build.position_at_end(end)
    build.ret_void()
    text = str(module)
    return CompiledCode(text, lambda: text)
