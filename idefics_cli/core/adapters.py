"""What is known of an adapter: its name, its files, and how it was trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter: small matrices that change the weights of a model.

    Attributes:
        name: The name that the user gave: a folder or a Hub id.
        folder: Absolute path of the folder with its files.
        digest: SHA-256 of its files, in hexadecimal.
        base: Hub id or path of the model for which it was made, as its files say; "" if unknown.
        base_config: SHA-256 of config.json of that model; None if unknown, as the next three.
        splitting: Whether large pictures were cut into tiles in the training.
        longest_edge: Length in pixels to which the longer side of a picture was scaled.
        prompt: The question about a picture.
        is_whole: Whether its training has ended, as far as its files say.
    """

    name: str
    folder: str
    digest: str
    base: str = ""
    base_config: str | None = None
    splitting: bool | None = None
    longest_edge: int | None = None
    prompt: str | None = None
    is_whole: bool = True
