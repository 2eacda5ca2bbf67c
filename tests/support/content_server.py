"""A server whose answers are digests of the pictures; it runs as `python -m` with a port."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from pathlib import Path

from idefics_cli.core.types import GenerationRequest, ImageLimits, LoadSpec
from idefics_cli.server.run import Lifetime, RunningServer, open_socket
from idefics_cli.server.service import ServerOptions
from tests.support.fakes import FakeEngine

_SECONDS = 0.01


def content_answer(request: GenerationRequest) -> str:
    """Answer with a digest of the bytes of the picture, wherever they are."""
    (picture,) = request.attachments
    if picture.source.startswith("data:"):
        data = base64.b64decode(picture.source.partition(",")[2])
    else:
        data = Path(picture.source).read_bytes()
    time.sleep(_SECONDS)
    return f"a picture {hashlib.sha256(data).hexdigest()[:16]}"


def _tell_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the end of the process."""
    limits = ImageLimits(sources=frozenset({"data"}))
    spec = LoadSpec(repo="fake/model", family="idefics2", name="fake", limits=limits)
    with open_socket("127.0.0.1", int(sys.argv[1])) as listener:
        RunningServer(
            ServerOptions(spec, names=("fake", "fake/model")),
            lambda progress=None: FakeEngine(content_answer),
            listener,
            tell=lambda line: None,
            lifetime=Lifetime(ready=_tell_ready),
        ).run()


if __name__ == "__main__":
    main()
