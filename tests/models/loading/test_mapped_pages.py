"""Pages of mapped weights leave the memory once a kernel holds the weights in its own form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from idefics_cli.core.types import KernelChoice
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.kernels.packed import PackedLinear
from idefics_cli.models.loading.layers import ChosenKernels, install
from idefics_cli.models.loading.mapped_pages import MappedPages
from tests.support import machines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 1024


def resident_bytes(file: Path) -> int:
    """Return how much of the mapping of *file* is in the memory of this process."""
    found = total = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split()[0].count("-") == 1 and not line.split()[0].endswith(":"):
            found = line.endswith(str(file))
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def mapped(tmp_path: Path, *names: str) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """Write tensors to a file; return the file, the tensors, and the same tensors mapped."""
    torch.manual_seed(0)
    tensors = {name: torch.randn(SIZE, SIZE).to(torch.bfloat16) for name in names}
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    with safe_open(file, framework="pt") as opened:
        return file, tensors, {name: opened.get_tensor(name) for name in names}


def test_pages_of_a_file_leave_the_memory_and_other_memory_stays(tmp_path: Path) -> None:
    file, tensors, found = mapped(tmp_path, "first", "second")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    before = resident_bytes(file)
    assert before >= 2 * 2 * SIZE**2
    pages = MappedPages()
    pages.give_back(found["first"])
    assert before - resident_bytes(file) == pytest.approx(2 * SIZE**2, abs=2**14)
    own = tensors["second"].clone()
    for tensor in (own, own[:, 3], torch.empty(0)):
        pages.give_back(tensor)
    assert torch.equal(own, tensors["second"])
    # A page that is needed after all is read from the file again.
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_system_without_a_list_gives_nothing_back(tmp_path: Path) -> None:
    _, tensors, found = mapped(tmp_path, "first")
    MappedPages(tmp_path / "maps").give_back(found["first"])
    assert torch.equal(found["first"], tensors["first"])


@pytest.mark.skipif(not PackedLinear.passes_self_test(), reason="torch packs no weights here")
def test_weights_that_a_kernel_copies_are_not_in_memory_twice(tmp_path: Path) -> None:
    file, tensors, found = mapped(tmp_path, "embed", "text", "vision")
    model = nn.Module()
    model.model = nn.Module()
    model.model.vision_model = nn.Module()
    layers = {name: nn.Linear(1, 1, bias=False) for name in ("text", "vision", "head")}
    for name, layer in layers.items():
        layer.weight = nn.Parameter(found.get(name, found["embed"]), requires_grad=False)
    model.model.text, model.model.vision_model.patches = layers["text"], layers["vision"]
    # The head shares its weight with the embedding, so its pages stay.
    model.model.embed = nn.Embedding(1, 1)
    model.model.embed.weight = model.lm_head_weight = layers["head"].weight
    model.lm_head = layers["head"]
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    before = resident_bytes(file)
    choice = KernelChoice(text=("bf16_packed",), head=("bf16_packed",))
    machine = machines.cpu(64, "fma", "avx512f", "avx512_bf16")
    install(model, ChosenKernels(choice, machine), find_family("idefics2"))
    assert before - resident_bytes(file) == pytest.approx(2 * SIZE**2, abs=2**14)
    rows = torch.randn(3, SIZE).to(torch.bfloat16)
    expected = rows.float() @ tensors["text"].float().t()
    torch.testing.assert_close(model.model.text(rows).float(), expected, rtol=0.02, atol=0.5)
