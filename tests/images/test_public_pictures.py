"""Folders of public pictures, against a second decoder and through `idefics caption`.

The folders are not part of this repository: `PUBLIC_PICTURES` names them, see CONTRIBUTING.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.second_decoder import distance, seen_by_vips, vips

pytestmark = pytest.mark.slow

MOST = 12  # of 255
# A file can be cut off or of a rare kind; it must not meet a bug.
EXPECTED_KINDS = {"truncated", "unsupported", "not_an_image", "too_large"}

# Pattern of the path -> why libvips sees another picture.
KNOWN = {
    # What we show is what browsers or the standard say.
    "*/apng/*": "the default image is not a frame of the animation, and libvips shows it",
    "*xmp_tags_orientation*": "the orientation is in XMP only; we apply it, as Windows does",
    "*bench_oriented_brg/ref.png": "libvips ignores the orientation of eXIf",
    "*border_touching_layers.gif": "libvips fills the canvas around the first frame",
    "*hdr*": "high dynamic range; libvips does not tone-map it",
    "*HDR*": "high dynamic range; libvips does not tone-map it",
    "*p3pq*": "high dynamic range; libvips does not tone-map it",
    "*monochrome*.avif": "libvips does not stretch the limited range of grey",
    "*alpha-limited*.avif": "libvips does not stretch the limited range of alpha",
    "*profile_gray*.avif": "libvips applies no profile of grey to colours",
    "*indexed-unspecified-extrasamples*": "an unspecified sample is not transparency",
    "*/16_bit_binary_pgm.tiff": "32-bit integers; we show their range",
    "*/geotiff.tif": "measured values; we show their range",
    "*/part.tif": "measured values; we show their range",
    # libvips is wrong.
    "*ojpeg*": "libvips cannot decode JPEG in TIFF of the old kind",
    "*zackthecat*": "libvips cannot decode JPEG in TIFF of the old kind",
    "*lzma*": "libvips cannot decode LZMA in TIFF",
    "*ycbcr_lzw*": "libvips does not convert YCbCr in TIFF",
    "*planar-yuv444*": "libvips does not convert YCbCr in TIFF",
    "*color_irot_alpha_NOirot*": "libvips turns alpha twice",
    # We are wrong.
    "*crop*.avif": "we show what is cropped away (`clap`), as Firefox does",
    "*/extended_pixi.avif": "an extension of AVIF that libavif does not have yet",
    "*/clop_irot_imor.avif": "an extension of AVIF that libavif does not have yet",
    "*/a33.tif": "an orientation with the type of a byte is ignored; the text is upright so",
    "*mch-*bits*.tif": "more channels than CMYK are left out before the profile is applied",
    "*/read/jp2/testcard_cmyk*.tif": "libvips applies a profile with black point compensation",
    "*cmyk-with-non-alpha-extra-channel*": "more channels than CMYK, without a profile",
    "*jfif-cmyk-invalid-icc-profile-srgb*": "CMYK with a profile for RGB, which is ignored",
}


def pictures() -> Path:
    folder = os.environ.get("PUBLIC_PICTURES")
    if not folder:
        pytest.skip("needs a folder of pictures in PUBLIC_PICTURES")
    return Path(folder)


def test_no_public_picture_differs_from_what_libvips_sees_without_being_known() -> None:
    vips()
    loader = ImageLoader(ImageLimits())
    compared, unknown = 0, []
    for path in sorted(path for path in pictures().rglob("*") if path.is_file()):
        try:
            ours = np.asarray(loader.open(Attachment(str(path))))
        except ImageError:
            continue
        theirs = seen_by_vips(str(path))
        if theirs is None:
            continue
        compared += 1
        far = distance(ours, theirs)
        if far > MOST and not any(fnmatch(str(path), pattern) for pattern in KNOWN):
            unknown.append(f"{path}: {far:.0f}")

    sys.stdout.write(f"{compared} pictures compared\n")
    assert compared
    assert unknown == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit of memory is of Linux")
def test_every_public_picture_has_a_row_within_two_gigabytes(tmp_path: Path) -> None:
    import resource

    output = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "idefics_cli", "caption", "-r", str(pictures()), "-m", "demo"]

    done = subprocess.run(
        [*command, "-o", str(output)], capture_output=True, text=True, timeout=3600, check=False
    )

    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    end = re.search(r"captioned ([\d,]+) of ([\d,]+)", done.stderr)
    assert end is not None, done.stderr[-2000:]
    captioned, listed = (int(number.replace(",", "")) for number in end.groups())
    failed = [row for row in rows if row["error_kind"]]
    sys.stdout.write(f"{end[0]}, {Counter(row['error_kind'] for row in failed)}\n")
    assert (len(rows), len(rows) - len(failed)) == (listed, captioned)
    assert len({row["file_name"] for row in rows}) == listed
    assert {row["error_kind"] for row in failed} <= EXPECTED_KINDS
    assert "Traceback" not in done.stderr
    assert done.returncode == (3 if failed else 0)
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    sys.stdout.write(f"{peak_bytes / 1e9:.2f} GB\n")
    assert peak_bytes < 2e9
