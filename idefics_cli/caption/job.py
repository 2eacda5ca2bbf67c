"""What a captioning run does to each picture, decided before the model loads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from idefics_cli.caption.discover import Picture
from idefics_cli.core.types import GenerationRequest, Message, Mode, Sampling
from idefics_cli.engine import Prepared


@dataclass(frozen=True, slots=True)
class CaptionJob:
    """The pictures of a run and what is asked about each.

    Attributes:
        pictures: In the order of the output; no key twice.
        prompt: What is asked; for *mode* "complete", the beginning that the model goes on with.
        mode: "chat", or "complete" for base models.
        sampling: A seed in it is that of the run: see `with_content_seed`.
        batch_size: Most pictures answered at a time.
        readers: Threads that open pictures ahead of the model.
    """

    pictures: tuple[Picture, ...]
    prompt: str
    mode: Mode = "chat"
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 8
    readers: int = 4

    def items(self) -> Iterator[tuple[str, GenerationRequest]]:
        """Yield the key of each picture and the request for its caption, in order."""
        # The space keeps the text apart from the image tokens, as the model card of
        # idefics2-8b-base writes it; chat templates put their own.
        text = f" {self.prompt}" if self.mode == "complete" else self.prompt
        for picture in self.pictures:
            message = Message("user", (picture.attachment, text))
            yield picture.key, GenerationRequest((message,), self.sampling, self.mode)


def automatic_batch_size(device: str, parameters: int) -> int:
    """Return how many pictures to answer at a time when the user leaves it open.

    Decoding reads all weights once per token, whatever the batch, so more pictures are almost
    free until arithmetic or memory ends it. Running out of memory is caught and the batch
    halved, but only where the device says so.

    Args:
        device: "cuda", "cuda:1", "mps" or "cpu".
        parameters: Number of weights of the model.
    """
    if device.startswith("cuda"):
        return 16
    # Out of memory, a Mac swaps and Linux ends the process: neither can be caught. Pictures of
    # a model of 8e9 weights take 0.1 to 0.4 GB each. Small models gain 4.5 times by 8 at a time
    # (159 against 35 tokens per second for smolvlm-256m on 4 cores), large ones less.
    return 8 if parameters < 4_000_000_000 else 4


def with_content_seed(prepared: Prepared) -> Prepared:
    """Return *prepared* with a seed made from its own seed and the pixels of its pictures.

    So a sampled caption depends on the picture and the run's seed, and neither on the order of
    the pictures nor on their batches. Greedy and unseeded requests are returned as they are.
    """
    sampling = prepared.request.sampling
    if sampling.temperature == 0 or sampling.seed is None:
        return prepared
    digest = hashlib.sha256(str(sampling.seed).encode())
    for image in prepared.images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    # Torch takes seeds of 63 bits without a sign.
    seed = int.from_bytes(digest.digest()[:8]) >> 1
    request = replace(prepared.request, sampling=replace(sampling, seed=seed))
    return replace(prepared, request=request)
