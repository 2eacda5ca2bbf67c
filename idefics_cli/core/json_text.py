"""Safe parsing of JSON from files that anybody may have written."""

from __future__ import annotations

import json


def parse_json(content: bytes) -> object:
    """Return the value of *content*, which is JSON in UTF-8.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
