"""Compare captions, `path<TAB>caption` lines of a log, with the truth in a folder of samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

REQUIRED_SHARE = 0.98


def main() -> int:
    """Print how many captions are right; 1 if fewer than required, or if one is missing."""
    folder, log = Path(sys.argv[1]), Path(sys.argv[2])
    rows = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    truth = {row["file_name"]: row["caption"] for row in map(json.loads, rows)}
    said: dict[str, str] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        path, tab, caption = line.partition("\t")
        if tab and Path(path).name in truth:
            said[Path(path).name] = caption
    right = sum(said.get(name) == caption for name, caption in truth.items())
    for name, caption in truth.items():
        if said.get(name) != caption:
            print(f"{name}: {said.get(name, '(no caption)')!r}, not {caption!r}")
    print(f"{right} of {len(truth)} captions are true")
    return 0 if truth and right >= REQUIRED_SHARE * len(truth) else 1


if __name__ == "__main__":
    sys.exit(main())
