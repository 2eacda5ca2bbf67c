"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from idefics_cli.models.kernels import compiler


@pytest.fixture(params=[32, 64])
def width_of_registers(request: pytest.FixtureRequest) -> Iterator[int]:
    """Compile kernels for processors with AVX2, and with AVX512."""
    width: int = request.param
    if width > compiler.widest_vector_bytes():
        pytest.skip("this processor has no AVX512")
    with compiler.compiled_for(width):
        yield width
