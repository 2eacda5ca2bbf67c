"""A watch distinguishes trained weights from fresh ones."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from idefics_cli.demo.build import build_model
from idefics_cli.demo.training.dataset import Pictures
from idefics_cli.demo.training.encoding import Encoder
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.demo.training.watch import WATCHED, share_right, watch
from idefics_cli.models.families.protocols import Processor


def test_the_watch_finds_the_shipped_weights_good_and_fresh_ones_bad(
    data: Path, processor: Processor
) -> None:
    trained = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    torch.manual_seed(0)
    fresh = build_model(processor.tokenizer)
    pictures = Pictures(data, "combo")
    encoder = Encoder(processor)
    good, bad = (watch(m, encoder, pictures, range(24), seed=0) for m in (trained, fresh))

    assert share_right(good) > 0.95
    assert share_right(bad) < 0.05
    assert good[:, 1].tolist() == bad[:, 1].tolist()
    assert good[WATCHED.index("caption"), 1] > 10
    assert trained.training
