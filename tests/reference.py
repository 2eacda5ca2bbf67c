"""What transformers gives, called as its documentation shows: one side of equalities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Idefics3Processor,
)

# One turn: its role, its images and its text.
Turn = tuple[str, Sequence[Image.Image], str]


@dataclass(frozen=True)
class Reference:
    """The library's processor and model for one checkpoint."""

    kind: str
    processor: object
    model: object

    def inputs(self, turns: Sequence[Turn]) -> dict[str, torch.Tensor]:
        """Return the model inputs of one conversation that ends with a user turn."""
        if self.kind.startswith("idefics-") or self.kind == "idefics":
            return dict(self._interleaved(turns))
        return dict(self._templated(turns))

    def raw_inputs(self, text: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the model inputs of a prompt that is taken as it is."""
        if self.kind.startswith("idefics-") or self.kind == "idefics":
            items: list[object] = []
            queue = list(images)
            for index, piece in enumerate(text.split("<image>")):
                items += [queue.pop(0)] if index else []
                items += [piece] if piece else []
            return dict(
                self.processor(text=[items], return_tensors="pt", add_end_of_utterance_token=False)
            )
        return dict(
            self.processor(
                text=text, images=[list(images)] if images else None, return_tensors="pt"
            )
        )

    def generate(self, inputs: dict[str, torch.Tensor], *, max_new_tokens: int) -> list[int]:
        """Return the greedy tokens after the prompt."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids
        vocabulary = tokenizer.get_vocab()
        rows = sum(
            getattr(self.model.get_input_embeddings(), name, 0)
            for name in ("num_embeddings", "num_additional_embeddings")
        )
        end = ["<end_of_utterance>", tokenizer.eos_token, "<|end_of_text|>"]
        inputs = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
        out = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=[ids(t) for t in end if t in vocabulary and ids(t) < rows],
            bad_words_ids=[
                [i]
                for token, i in vocabulary.items()
                if token in ("<image>", "<fake_token_around_image>", "<global-img>")
                or token.startswith("<row_")
            ],
            pad_token_id=tokenizer.pad_token_id,
        )
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def _interleaved(self, turns: Sequence[Turn]) -> dict[str, torch.Tensor]:
        prompt: list[object] = []
        for role, images, text in turns:
            start = "\n" if prompt else ""
            if images:
                prompt += [f"{start}{role.capitalize()}:", *images, f"{text}<end_of_utterance>"]
            else:
                prompt += [f"{start}{role.capitalize()}: {text}<end_of_utterance>"]
        prompt += ["\nAssistant:"]
        return self.processor(text=[prompt], return_tensors="pt", add_end_of_utterance_token=False)

    def _templated(self, turns: Sequence[Turn]) -> dict[str, torch.Tensor]:
        messages = [
            {
                "role": role,
                "content": [
                    *({"type": "image", "image": image} for image in images),
                    {"type": "text", "text": text},
                ],
            }
            for role, images, text in turns
        ]
        return self.processor.apply_chat_template(
            messages,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )


def load_reference(folder: Path, kind: str) -> Reference:
    """Load the checkpoint of *kind* in *folder* by plain calls of the library."""
    if kind == "smolvlm2":
        # Its own processor class needs torchvision; this is what it does with images.
        processor = Idefics3Processor(
            image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            image_seq_len=1,
            chat_template=json.loads((folder / "chat_template.json").read_text())["chat_template"],
        )
    elif kind.startswith(("idefics2", "idefics-")) or kind == "idefics":
        processor = AutoProcessor.from_pretrained(folder, legacy=True)
    else:
        processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(kind, processor, model)
