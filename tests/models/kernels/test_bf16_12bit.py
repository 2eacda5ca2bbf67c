"""bfloat16 weights in 12 bits: nothing is lost, and the products are those of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels import widened
from idefics_cli.models.kernels.bf16_12bit import kernel as compact_kernel
from idefics_cli.models.kernels.bf16_12bit import linear as compact
from idefics_cli.models.kernels.bf16_12bit.linear import CompactLinear, compacted
from idefics_cli.models.kernels.widened import WidenedLinear
from tests.support.kernels import (
    FAULTS,
    compiled_anew,
    needs_kernels,
    relative_error,
    spoil,
    torch_threads,
)

pytestmark = needs_kernels


def weights(outputs: int = 64, width: int = 72) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs, width, generator=generator).to(torch.bfloat16)


def unusual() -> Tensor:
    """Weights of every size that bfloat16 has, zeros of both signs among them."""
    weight = weights()
    weight[1] = 0
    weight[2, 3], weight[2, 4] = 0.0, -0.0
    weight[3] *= 1e-36
    weight[4] *= 1e36
    weight[5, ::9] = 1e-40  # below what bfloat16 keeps all bits of
    weight[6, 7] = 3e38
    weight[7] = -(2.0 ** torch.arange(-36, 36)).to(torch.bfloat16)
    weight[8] = 1e-40
    return weight


def unpacked(packed: compact_kernel.Compact) -> Tensor:
    outputs, width = packed.shape
    wide = torch.empty(width, outputs)
    compact_kernel.unpack(packed, 0, wide)
    return wide.t()


@pytest.mark.parametrize("threads", [1, 3])
def test_every_weight_comes_out_as_it_went_in(
    threads: int, width_of_registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_kernel, "_WEIGHTS_PER_NOTE", 1)
    weight = unusual()
    with torch_threads(threads):
        packed = compact_kernel.pack(weight)
        assert packed is not None
        back = unpacked(packed)
    # Bit by bit, but for the sign of a zero in an output of zeros.
    assert torch.equal(back, weight.float())
    kept = [row for row in range(64) if row != 1]
    as_bits = back.to(torch.bfloat16).view(torch.int16)
    assert torch.equal(as_bits[kept], weight.view(torch.int16)[kept])


def test_12_bits_and_notes_for_few() -> None:
    weight = weights(256, 1024)
    packed = compact_kernel.pack(weight)
    assert packed is not None
    assert packed.shape == (256, 1024)
    assert packed.packed.nbytes == 256 * 1024 * 12 // 8
    # 2^-15 of the largest of a thousand gaussian numbers, and below.
    share = len(packed.values) / weight.numel()
    assert 0 < share < 3e-4
    assert int(packed.starts[-1]) == len(packed.values)


def test_what_12_bits_do_not_suit_is_left_alone() -> None:
    infinite, wild = weights(), weights()
    infinite[2, 3] = torch.inf
    wild[:, ::2] *= 1e-20
    assert compact_kernel.pack(infinite) is None
    assert compact_kernel.pack(wild) is None
    assert not compact_kernel.fits(weights(40, 72))
    assert not compact_kernel.fits(weights(64, 70))
    with torch.no_grad():
        linear = nn.Linear(72, 64, dtype=torch.bfloat16)
        linear.weight.copy_(wild)
    assert compacted(linear) is None
    assert compacted(nn.Linear(72, 40, dtype=torch.bfloat16)) is None
    assert compacted(nn.Linear(72, 64)) is None


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 15, 40])
def test_products_are_those_of_the_weights(
    rows: int, width_of_registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than one tile of rows, the last of them smaller.
    monkeypatch.setattr(compact_kernel, "_TILE_BYTES", 16 * 72 * 4)
    monkeypatch.setattr(compact_kernel, "_WEIGHTS_PER_NOTE", 1)
    weight = unusual()
    weight[4], weight[6] = 0, 1  # what overflows has no product
    packed = compact_kernel.pack(weight)
    assert packed is not None
    given = torch.randn(rows, 72, generator=torch.Generator().manual_seed(2))
    product = compact_kernel.product(given, packed)
    exact = given.double() @ weight.double().t()
    # Each output by itself: they are of very different sizes.
    for output in range(64):
        if weight[output].any():
            assert relative_error(product[:, output], exact[:, output]) < 1e-4
        else:
            assert not product[:, output].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (3, 10)])
def test_every_number_of_rows_gives_what_the_layer_gives(
    shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both ways, and more than one part, the last of them smaller.
    monkeypatch.setattr(compact, "_FEW_ROWS", 8)
    monkeypatch.setattr(compact, "_WIDENED", 48)
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias, dtype=torch.bfloat16)
    # Transposed, so that its rows do not lie side by side.
    states = torch.randn(48, *shape).movedim(0, -1).to(torch.bfloat16)
    ours = compacted(linear)
    assert isinstance(ours, CompactLinear)
    with torch.inference_mode():
        given, wanted = ours(states), linear(states)
    assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
    # One step of bfloat16, where sums are taken in another order.
    torch.testing.assert_close(given, wanted, rtol=2**-7, atol=2**-7)


def test_a_model_that_is_given_another_dtype_keeps_its_12_bits() -> None:
    ours = compacted(nn.Linear(72, 64, bias=False, dtype=torch.bfloat16))
    assert ours is not None
    states = torch.randn(3, 72)
    with torch.inference_mode():
        before = ours(states)
        assert torch.equal(nn.Sequential(ours).double()(states), before)


class _Model(nn.Module):
    """The parts of a model that are told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_model = nn.Module()
        self.model.vision_model.patches = nn.Linear(32, 32, dtype=torch.bfloat16)
        self.model.text = nn.Linear(32, 32, dtype=torch.bfloat16)
        self.model.odd = nn.Linear(32, 20, dtype=torch.bfloat16)
        self.model.embed = nn.Embedding(64, 32, dtype=torch.bfloat16)
        self.head = nn.Linear(32, 64, bias=False, dtype=torch.bfloat16)


@pytest.mark.parametrize("tied", [True, False])
def test_large_layers_for_few_rows_are_kept_so_and_the_others_as_before(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "_LARGE_WEIGHT", 32 * 20)
    model = _Model()
    if tied:
        model.head.weight = model.model.embed.weight
    widened.widen(model, many_rows_in=("model.vision_model",))
    assert type(model.model.vision_model.patches) is WidenedLinear
    assert type(model.model.text) is CompactLinear
    assert type(model.model.odd) is WidenedLinear
    # Its numbers are those of the table of words, which is needed as it is.
    assert type(model.head) is (WidenedLinear if tied else CompactLinear)


@pytest.mark.parametrize("fault", FAULTS)
def test_where_the_kernels_cannot_be_trusted_they_are_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiled_anew():
        spoil(compact_kernel, fault, monkeypatch)
        assert compacted(nn.Linear(48, 80, dtype=torch.bfloat16)) is None


def test_the_built_in_model_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from idefics_cli.core.types import LoadSpec
    from idefics_cli.models.loading.loader import load

    monkeypatch.setattr(cpu_attention, "has_native_bf16", lambda: False)
    spec = LoadSpec(repo="demo", family="idefics2", dtype="bfloat16")
    ids = torch.arange(5, 45)[None]
    plain = load(spec).model
    monkeypatch.setattr(widened, "_LARGE_WEIGHT", 0)
    ours = load(spec).model
    assert isinstance(ours, nn.Module)
    assert any(isinstance(part, CompactLinear) for part in ours.modules())
    with torch.inference_mode():
        wanted, given = (model(input_ids=ids).logits for model in (plain, ours))  # type: ignore[operator]
    torch.testing.assert_close(given, wanted, rtol=0.05, atol=0.25)
    assert torch.equal(given.argmax(-1)[0, -1], wanted.argmax(-1)[0, -1])
