"""Pictures in `data:` URIs."""

from __future__ import annotations

import base64
from urllib.parse import quote, quote_from_bytes

import pytest

from tests.support.sources import PICTURE, is_the_picture, load, load_error

_BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{_BASE64}",
        f"DATA:image/png;BASE64,{_BASE64}",
        f"data:image/png;name=a;base64,{_BASE64}",
        f"data:;base64,{_BASE64}",
        f"data:text/plain;base64,{_BASE64}",
        f"data:image/png;base64,{_BASE64.rstrip('=')}",
        f"data:image/png;base64,{quote(_BASE64)}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PICTURE).decode()}",
        "data:image/png;base64,\n" + "\r\n".join(_BASE64[i : i + 76] for i in range(0, 9999, 76)),
        f"data:image/png,{quote_from_bytes(PICTURE)}",
    ],
    ids=["usual", "caps", "named", "no-type", "type", "pad", "percent", "url", "lines", "plain"],
)
def test_a_data_uri_is_a_picture(uri: str) -> None:
    assert is_the_picture(load(uri))


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("data:image/png;base64", "not_an_image", "no comma"),
        ("data:image/png;base64,####", "not_an_image", "not base64"),
        ("data:image/png;base64,abcde", "not_an_image", "not base64"),
        ("data:image/png;base64,é", "not_an_image", "not base64"),
        ("data:image/png;base64,", "not_an_image", "an empty file"),
        ("data:,hello", "not_an_image", "text"),
        ("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E", "unsupported", "SVG"),
        (f"data:image/png;base64,{_BASE64[:100]}", "truncated", "cut off"),
    ],
)
def test_a_bad_data_uri_is_told_what_is_wrong(uri: str, kind: str, message: str) -> None:
    error = load_error(uri)

    assert error.kind == kind
    assert message in str(error)


@pytest.mark.parametrize(
    "uri", [f"data:image/png;base64,{_BASE64}", f"data:image/png,{quote_from_bytes(PICTURE)}"]
)
def test_the_byte_limit_of_a_data_uri_is_that_of_its_bytes(uri: str) -> None:
    assert is_the_picture(load(uri, max_bytes=len(PICTURE)))
    assert load_error(uri, max_bytes=len(PICTURE) - 1).kind == "too_large"


def test_a_huge_data_uri_is_neither_decoded_nor_repeated() -> None:
    error = load_error("data:image/png;base64," + "#" * 1_000_000, max_bytes=1000)

    assert error.kind == "too_large"
    assert "#" not in str(error)
