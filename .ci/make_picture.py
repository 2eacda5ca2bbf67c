"""Draw the picture of README from a real run: sample scenes and the captions of the model."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parent.parent / ".github" / "idefics.svg"
THUMBNAIL = 150
COLUMNS = 100
COMMANDS = (
    "idefics demo pictures --count 5",
    "idefics caption pictures -m demo",
    "idefics ask 'How many shapes are there?' -m demo -i pictures/scene-001.png",
    "echo 'Where is the star?' | idefics chat -m demo -i pictures/scene-001.png",
)


def main() -> None:
    """Run the commands and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        for index, command in enumerate(COMMANDS):
            # The first command only writes the pictures, which the drawing shows.
            said = _run(command, Path(folder))
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=True)
            if index:
                console.print(Text(said), soft_wrap=False)
        svg = console.export_svg(title="idefics")
        # rich loads fonts from the network; the fonts of the reader are enough.
        svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
        svg = _with_pictures(svg, sorted(Path(folder, "pictures").glob("*.png")))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(svg, encoding="utf-8")


def _run(command: str, folder: Path) -> str:
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", f"PATH={bin_folder}:$PATH; {command}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("\t", "  ")


def _with_pictures(svg: str, paths: list[Path]) -> str:
    """Return *svg* with a row of thumbnails above its content."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if not found:
        raise ValueError("rich's SVG has no viewBox")
    width, height = float(found[1]), float(found[2])
    band = THUMBNAIL + 40
    step = width / len(paths)
    row = []
    for index, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        image.thumbnail((THUMBNAIL * 3 // 2, THUMBNAIL * 3 // 2))
        data = io.BytesIO()
        image.save(data, "JPEG", quality=80)
        scale = THUMBNAIL / max(image.size)
        w, h = image.width * scale, image.height * scale
        x = step * (index + 0.5)
        row.append(
            f'<image x="{x - w / 2:.1f}" y="{(THUMBNAIL - h) / 2 + 8:.1f}" width="{w:.1f}" '
            f'height="{h:.1f}" href="data:image/jpeg;base64,'
            f'{base64.b64encode(data.getvalue()).decode()}"/>'
            f'<text x="{x:.1f}" y="{THUMBNAIL + 30}" text-anchor="middle" fill="#777777" '
            f'font-family="monospace" font-size="14">{path.name}</text>'
        )
    inner = svg.replace("<svg ", f'<svg y="{band}" width="{width}" height="{height}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + band}">\n'
        f"{''.join(row)}\n{inner}\n</svg>\n"
    )


if __name__ == "__main__":
    main()
