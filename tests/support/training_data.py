"""The same captions in every shape of training data."""

from __future__ import annotations

import csv
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from idefics_cli.core.types import Attachment
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.read import read_rows
from idefics_cli.training.data.row import LeftOut, TrainingRow
from tests.support.prompts import picture

PROMPT = "Describe this image."
CAPTIONS = (
    "A red block.",
    "Zwei Blöcke, 漢字 🙂",
    'He said "no", then; left',
    "An <image> of </s>",
    "It's 50 % grey",
    "= a formula",
    "a, b\tand c",
    "A  gradient",
)
Write = Callable[[Path], Path]


def name_of(number: int) -> str:
    """Return the name of picture *number*."""
    return f"sub/{number}.png" if number % 3 == 2 else f"{number}.png"


def write_pictures(folder: Path) -> Path:
    """Write the pictures of `CAPTIONS` into *folder*."""
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(len(CAPTIONS)):
        picture(number).save(folder / name_of(number))
    return folder


def write_lines(path: Path, *rows: object) -> Path:
    """Write *rows* as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _metadata(folder: Path) -> Path:
    rows = ({"file_name": name_of(n), "text": text} for n, text in enumerate(CAPTIONS))
    write_lines(write_pictures(folder) / "metadata.jsonl", *rows)
    return folder


def _table(folder: Path, name: str, delimiter: str) -> Path:
    write_pictures(folder)
    with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "Image", "caption"])
        writer.writerows([n, name_of(n), text] for n, text in enumerate(CAPTIONS))
    return folder / name


def _csv_folder(folder: Path) -> Path:
    return _table(folder, "metadata.csv", ",").parent


def _excel(folder: Path) -> Path:
    return _table(folder, "table.csv", ";")


def _tsv(folder: Path) -> Path:
    return _table(folder, "table.tsv", "\t")


def _parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    write_pictures(folder)
    images = [
        {"bytes": (folder / name_of(n)).read_bytes(), "path": f"of another machine {n}"}
        for n in range(len(CAPTIONS))
    ]
    table = pyarrow.table({"image": images, "text": list(CAPTIONS)})
    parquet.write_table(table, folder / "train.parquet")
    return folder / "train.parquet"


def _parquet_paths(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    write_pictures(folder)
    images = [{"bytes": None, "path": name_of(n)} for n in range(len(CAPTIONS))]
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("caption", pyarrow.string()),
        ]
    )
    table = pyarrow.table({"image": images, "caption": list(CAPTIONS)}, schema=schema)
    parquet.write_table(table, folder / "metadata.parquet")
    return folder


def _sidecars(folder: Path, ending: Callable[[Path], Path]) -> Path:
    write_pictures(folder)
    for number, text in enumerate(CAPTIONS):
        ending(folder / name_of(number)).write_bytes(f"\n{text}\r\n".encode())
    return folder


def _txt(folder: Path) -> Path:
    return _sidecars(folder, lambda path: path.with_suffix(".txt"))


def _caption(folder: Path) -> Path:
    return _sidecars(folder, lambda path: path.with_suffix(".caption"))


def _full_names(folder: Path) -> Path:
    return _sidecars(folder, lambda path: path.with_name(f"{path.name}.txt"))


def _openai(folder: Path) -> Path:
    write_pictures(folder)
    rows = []
    for number, text in enumerate(CAPTIONS):
        data = b64encode((folder / name_of(number)).read_bytes()).decode()
        url = name_of(number) if number % 2 else f"data:image/png;base64,{data}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": PROMPT},
        ]
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": text, "weight": 1},
        ]
        rows.append({"messages": messages})
    return write_lines(folder / "chats.jsonl", *rows)


def _llava_rows() -> list[object]:
    return [
        {
            "id": str(number),
            "image": name_of(number),
            "conversations": [
                {"from": "human", "value": f"<image>\n{PROMPT}"},
                {"from": "gpt", "value": text},
            ],
        }
        for number, text in enumerate(CAPTIONS)
    ]


def _llava(folder: Path) -> Path:
    write_pictures(folder)
    (folder / "llava.json").write_text(json.dumps(_llava_rows(), indent=1), encoding="utf-8")
    return folder / "llava.json"


def _llava_lines(folder: Path) -> Path:
    write_pictures(folder)
    return write_lines(folder / "llava.jsonl", *_llava_rows())


def _sharegpt(folder: Path) -> Path:
    write_pictures(folder)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"<image>{PROMPT}"},
                {"role": "assistant", "content": text},
            ],
            "images": [name_of(number)],
        }
        for number, text in enumerate(CAPTIONS)
    ]
    (folder / "mllm.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder / "mllm.json"


def _trl(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    write_pictures(folder)
    rows = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"index": 0, "text": "", "type": "image"},
                        {"index": None, "text": PROMPT, "type": "text"},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [{"index": None, "text": text, "type": "text"}],
                },
            ],
            "images": [{"bytes": (folder / name_of(number)).read_bytes(), "path": None}],
        }
        for number, text in enumerate(CAPTIONS)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "trl.parquet")
    return folder / "trl.parquet"


def _questions(folder: Path) -> Path:
    write_pictures(folder)
    rows = (
        {"image": name_of(n), "question": PROMPT, "answer": text} for n, text in enumerate(CAPTIONS)
    )
    return write_lines(folder / "questions.jsonl", *rows)


SHAPES: Mapping[str, Write] = {
    "metadata.jsonl": _metadata,
    "metadata.csv": _csv_folder,
    "metadata.parquet": _parquet_paths,
    "parquet with bytes": _parquet,
    "csv of Excel": _excel,
    "tsv": _tsv,
    "txt": _txt,
    "caption": _caption,
    "full names": _full_names,
    "OpenAI": _openai,
    "LLaVA": _llava,
    "LLaVA lines": _llava_lines,
    "ShareGPT": _sharegpt,
    "TRL": _trl,
    "questions": _questions,
}
"""Writes the captions in each shape into a folder, and returns what `idefics tune` gets."""
CHATS = ("OpenAI", "LLaVA", "LLaVA lines", "ShareGPT", "TRL")
"""The shapes that only a model that chats can learn from."""


def read(data: Path, options: ReadOptions | None = None) -> list[TrainingRow]:
    """Return the rows of *data*, of which none may be left out."""
    rows, left_out = read_all(data, options)
    assert not left_out
    return rows


def read_all(
    data: Path, options: ReadOptions | None = None
) -> tuple[list[TrainingRow], list[LeftOut]]:
    """Return the rows of *data*, and those that are left out."""
    results = list(read_rows(data, options or ReadOptions(PROMPT)))
    rows = [row for row in results if isinstance(row, TrainingRow)]
    return rows, [row for row in results if isinstance(row, LeftOut)]


def content_of(row: TrainingRow) -> list[tuple[str, list[str]]]:
    """Return the roles and parts of *row*, with digests in place of pictures."""
    return [
        (m.role, [p if isinstance(p, str) else _digest(p) for p in m.parts]) for m in row.messages
    ]


def _digest(attachment: Attachment) -> str:
    from idefics_cli.core.types import ImageLimits
    from idefics_cli.images.sources import ImageSources

    with ImageSources(ImageLimits(), offline=True, stdin=None).open(attachment.source) as file:
        return sha256(file.read()).hexdigest()
