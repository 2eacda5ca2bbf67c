"""Both sides of the scenario `tune`: the steps of this tool, and those of plain transformers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, cast

from idefics_cli.bench.plain import Plain
from idefics_cli.bench.tuning.order import LEARNING_RATE, SEED, CaptionPair, TuneOrder
from idefics_cli.core.types import Attachment, GenerationRequest, Message
from idefics_cli.models.families.spec import END_OF_UTTERANCE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from idefics_cli.training.examples import TrainingExample
    from idefics_cli.training.targets import LoraChoice


class Training(Protocol):
    """A loaded model in training."""

    def step(self, number: int) -> tuple[float, int]:
        """Update the weights once; return the loss before that, and the number of labels."""
        ...


class OurTraining:
    """Trains as `idefics tune` does, without its evaluations and files.

    The rows of a step are prepared when the step is done for the first time. In the first epoch,
    each picture is opened twice, as in a run: to prepare its row, and for its features.

    Args:
        order: What to train.
    """

    def __init__(self, order: TuneOrder) -> None:
        import torch

        from idefics_cli.models.loading.training import load_for_training
        from idefics_cli.training.picture_files import TrainingPictures
        from idefics_cli.training.pictures import KeptFeatures
        from idefics_cli.training.steps import TrainingSteps
        from idefics_cli.training.targets import enable_checkpointing, insert_lora
        from idefics_cli.training.tuning.estimate import micro_tokens_on

        spec = order.spec
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        loaded = load_for_training(spec)
        model = cast("nn.Module", loaded.model)
        torch.manual_seed(SEED)
        targets = insert_lora(model, loaded.family.spec, _lora_choice())
        if order.checkpointing:
            enable_checkpointing(model)
        self._order, self._family = order, loaded.family
        self._pictures = TrainingPictures(loaded.family, order.scratch, offline=True)
        self._examples: dict[int, Sequence[TrainingExample]] = {}
        self._steps = TrainingSteps(
            loaded.model,
            loaded.family,
            targets,
            KeptFeatures(
                loaded.model, loaded.family, self._pictures.preprocess, folder=order.scratch
            ),
            autocast=_autocast(order),
            micro_tokens=micro_tokens_on(spec.device),
        )

    def step(self, number: int) -> tuple[float, int]:
        """See `Training`."""
        if number not in self._examples:
            self._examples[number] = self._prepare(self._order.steps[number])
        outcome = self._steps.step(
            self._examples[number], number=number, learning_rate=LEARNING_RATE
        )
        return outcome.loss, outcome.labelled

    def _prepare(self, pairs: Sequence[CaptionPair]) -> Sequence[TrainingExample]:
        from idefics_cli.training.data.row import TrainingRow
        from idefics_cli.training.preparing import prepare_examples

        rows = [TrainingRow(str(pair.picture), _messages(pair), (False, True)) for pair in pairs]
        prepared = prepare_examples(
            rows, self._family, self._pictures, threads=self._order.spec.threads
        )
        prepared.check("the rows of the benchmark", skips_bad=False)
        return prepared.examples


class PlainTraining:
    """Trains as the notebooks of the models do: the processor, PEFT, and the model's own loss.

    All rows of a step go through the model at once, and all their tokens get logits. Settings that
    do not change the speed are the careful ones: user turns have no label, activation checkpointing
    is of the kind that loses no gradients, and the adapter is in float32. The loss of IDEFICS-1 in
    transformers 5.23 fails, so its loss is computed here, from all its logits.

    Args:
        order: What to train.
    """

    def __init__(self, order: TuneOrder) -> None:
        import torch

        from idefics_cli.training.targets import (
            enable_checkpointing,
            import_peft,
            layer_pattern,
            lora_config,
        )

        self._order = order
        self._plain = Plain(order.spec, order.folder, time.perf_counter)
        self._plain.family.tokenizer.padding_side = "right"
        model = cast("nn.Module", self._plain.model)
        if order.checkpointing:
            enable_checkpointing(model)
        torch.manual_seed(SEED)
        pattern = layer_pattern(self._plain.family.spec, ("text",))
        self._model: nn.Module = import_peft().get_peft_model(
            model, lora_config(pattern, _lora_choice())
        )
        self._model.train()
        self._learned = [each for each in self._model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(self._learned, lr=LEARNING_RATE, weight_decay=0.0)
        self._turn = self._count_turn_tokens()

    def step(self, number: int) -> tuple[float, int]:
        """See `Training`."""
        import torch

        requests = [GenerationRequest(_messages(pair)) for pair in self._order.steps[number]]
        inputs = self._plain.inputs(requests)
        labels = self._labels(inputs["input_ids"])
        with _precision(self._order):
            loss = self._loss(inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation
        torch.nn.utils.clip_grad_norm_(self._learned, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach()), int((labels != -100).sum())

    def _loss(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        import torch.nn.functional as F

        if self._plain.family.spec.prompt != "interleaved":
            loss: Tensor = self._model(**inputs, labels=labels, use_cache=False).loss
            return loss
        logits = self._model(**inputs, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    def _labels(self, ids: Tensor) -> Tensor:
        """Return the labels (B, T): the ids of each answer and its end token, otherwise -100."""
        labels = ids.new_full(ids.shape, -100)
        end_id = self._plain.family.tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)
        for row, own in zip(ids, labels, strict=True):
            asked, answered = (row == end_id).nonzero()[:, 0].tolist()
            learned = slice(asked + 1 + self._turn, answered + 1)
            own[learned] = row[learned]
        return labels

    def _count_turn_tokens(self) -> int:
        """Return the number of tokens between the end of a question and its answer."""
        tokenizer = self._plain.family.tokenizer
        text = f"{END_OF_UTTERANCE}\nAssistant:"
        ids: Sequence[int | None] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(ids) - 1 - ids.index(tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE))


def _messages(pair: CaptionPair) -> tuple[Message, Message]:
    asked = Message("user", (Attachment(str(pair.picture)), pair.question))
    return asked, Message("assistant", (pair.answer,))


def _lora_choice() -> LoraChoice:
    from idefics_cli.training.targets import LoraChoice

    # Without dropout, both sides have the same losses.
    return LoraChoice(dropout=0.0)


def _autocast(order: TuneOrder) -> torch.dtype | None:
    import torch

    return torch.bfloat16 if order.computed == "bfloat16" else None


def _precision(order: TuneOrder) -> AbstractContextManager[object]:
    import torch

    dtype = _autocast(order)
    if dtype is None:
        return nullcontext()
    return torch.autocast(order.spec.device.partition(":")[0], dtype=dtype)
