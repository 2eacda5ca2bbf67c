"""Idefics2 (arXiv:2405.02246), and what all families with a chat template share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.families.base import Family, Inputs, as_tensors, raw_text

if TYPE_CHECKING:
    from PIL.Image import Image


class TemplateFamily(Family):
    """A family whose processor has a chat template and takes text and images apart."""

    def render(self, request: GenerationRequest) -> str:
        """Return the prompt as text, with one `<image>` for each image.

        Raises:
            PromptError: If a completion's marks and images differ in number.
        """
        if request.mode == "complete":
            return raw_text(request)
        conversation: list[dict[str, object]] = []
        for message in request.messages:
            # A plain string as content is dropped by these templates without a word.
            content = [
                {"type": "image"} if part is None else {"type": "text", "text": part}
                for part in self._parts(message)
            ]
            conversation.append({"role": message.role, "content": content})
        return self.processor.apply_chat_template(conversation, add_generation_prompt=True)

    def encode(
        self, requests: Sequence[GenerationRequest], images: Sequence[Sequence[Image]]
    ) -> Inputs:
        """See `Family.encode`; adds `pixel_attention_mask` (B, N, H, W) int64."""
        # transformers 5.17 reads the number of channels from the first row's first image.
        order = sorted(range(len(requests)), key=lambda row: not images[row])
        texts = [self.render(requests[row]) for row in order]
        bos = self.tokenizer.bos_token
        # Templates that write the begin token themselves must not get a second one.
        written = bool(bos) and all(text.startswith(str(bos)) for text in texts)
        encoded = self.processor(
            text=texts,
            # An empty list is an error, and [[im], []] is right for a batch that mixes.
            images=[list(images[row]) for row in order] if any(images) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not written,
        )
        back = torch.tensor(order).argsort()
        return {name: tensor[back] for name, tensor in as_tensors(encoded).items()}

    def check(self, request: GenerationRequest) -> None:
        """See `Family.check`."""
        super().check(request)
        if request.mode == "chat":
            for message in request.messages:
                if not message.parts:
                    raise PromptError(f"a {message.role} turn is empty")
        else:
            raw_text(request)


class Idefics2(TemplateFamily):
    """SigLIP, a perceiver with 64 latents per image, and Mistral."""
