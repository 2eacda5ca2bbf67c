"""What transformers gives, called as its documentation shows: one side of equalities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
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
    legacy = kind.startswith(("idefics2", "idefics-")) or kind == "idefics"
    processor = auto_processor(folder, kind, **({"legacy": True} if legacy else {}))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(kind, processor, model)


def auto_processor(folder: Path, kind: str, **options: object) -> object:
    """Return what `AutoProcessor` gives, or its parts by hand where it wants torchvision."""
    try:
        return AutoProcessor.from_pretrained(folder, **options)
    except (ImportError, ValueError):
        # SmolVLM2, and every family in transformers 5.17.
        pixels, text = BY_HAND[kind.partition("-")[0]]
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    arguments = {}
    if kind.partition("-")[0] != "idefics":
        arguments["image_seq_len"] = json.loads((folder / "processor_config.json").read_text())[
            "image_seq_len"
        ]
        template = folder / "chat_template.json"
        newer = folder / "chat_template.jinja"
        if newer.exists():
            arguments["chat_template"] = newer.read_text()
        elif template.exists():
            arguments["chat_template"] = json.loads(template.read_text())["chat_template"]
    image_processor = load_class(pixels).from_pretrained(folder)
    return load_class(text)(image_processor=image_processor, tokenizer=tokenizer, **arguments)


def load_class(path: str) -> type:
    module, name = path.split(":")
    return getattr(import_module(f"transformers.models.{module}"), name)


BY_HAND = {
    "idefics": (
        "idefics.image_processing_pil_idefics:IdeficsImageProcessorPil",
        "idefics.processing_idefics:IdeficsProcessor",
    ),
    "idefics2": (
        "idefics2.image_processing_pil_idefics2:Idefics2ImageProcessorPil",
        "idefics2.processing_idefics2:Idefics2Processor",
    ),
    "idefics3": (
        "idefics3.image_processing_pil_idefics3:Idefics3ImageProcessorPil",
        "idefics3.processing_idefics3:Idefics3Processor",
    ),
    "smolvlm": (
        "idefics3.image_processing_pil_idefics3:Idefics3ImageProcessorPil",
        "idefics3.processing_idefics3:Idefics3Processor",
    ),
    "smolvlm2": (
        "smolvlm.image_processing_pil_smolvlm:SmolVLMImageProcessorPil",
        "idefics3.processing_idefics3:Idefics3Processor",
    ),
}
