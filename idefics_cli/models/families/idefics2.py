"""Idefics2 (arXiv:2405.02246), and what all families with a chat template share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError

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
        try:
            return self.processor.apply_chat_template(conversation, add_generation_prompt=True)
        except TemplateError as error:
            # Templates of fine-tuned checkpoints may refuse a role or an order of turns.
            raise PromptError(f"the model's chat template refuses this: {error}") from error

    def encode(
        self, requests: Sequence[GenerationRequest], images: Sequence[Sequence[Image]]
    ) -> Inputs:
        """See `Family.encode`; adds `pixel_attention_mask` (B, N, H, W) int64."""
        # transformers 5.17 reads the number of channels from the first row's first image.
        order = sorted(range(len(requests)), key=lambda row: not images[row])
        texts = [self._once_begun(self.render(requests[row])) for row in order]
        encoded = self.processor(
            text=texts,
            # An empty list is an error, and [[im], []] is right for a batch that mixes.
            images=[list(images[row]) for row in order] if any(images) else None,
            padding=True,
            return_tensors="pt",
        )
        back = torch.tensor(order).argsort()
        return {name: tensor[back] for name, tensor in as_tensors(encoded).items()}

    def _once_begun(self, text: str) -> str:
        """Return *text* without the begin token that a tokenizer would write a second time."""
        bos = self.tokenizer.bos_token
        if not bos or not text.startswith(bos):
            return text
        written = self.tokenizer("", add_special_tokens=True)["input_ids"]
        return text.removeprefix(bos) if written else text

    def check(self, request: GenerationRequest) -> None:
        """See `Family.check`."""
        super().check(request)
        if request.mode == "chat":
            for message in request.messages:
                if not message.parts:
                    raise PromptError(f"a {message.role} turn is empty")


class Idefics2(TemplateFamily):
    """SigLIP, a perceiver with 64 latents per image, and Mistral."""
