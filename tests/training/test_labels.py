"""The labels of answers, of other tokens and of padding."""

from __future__ import annotations

import torch

from idefics_cli.training.labels import IGNORED, LabelledTokens, pad_batch


def test_only_answers_have_labels() -> None:
    tokens = LabelledTokens.learning([1, 5, 6, 7, 2, 8, 9, 2], [slice(3, 5), slice(6, 8)])

    assert tokens.token_ids == [1, 5, 6, 7, 2, 8, 9, 2]
    assert tokens.labels == [IGNORED, IGNORED, IGNORED, 7, 2, IGNORED, 9, 2]


def test_padding_is_on_the_right_masked_and_not_learned() -> None:
    rows = [LabelledTokens.learning(ids, [slice(1, len(ids))]) for ids in ([4, 5], [6, 7, 8])]
    batch = pad_batch(rows, pad_id=3)

    assert batch.input_ids.tolist() == [[4, 5, 3], [6, 7, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORED, 5, IGNORED], [IGNORED, 7, 8]]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}


def test_torch_gives_ignored_labels_no_loss() -> None:
    logits = torch.randn(2, 5)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([2, IGNORED]))

    assert torch.equal(loss, torch.nn.functional.cross_entropy(logits[:1], torch.tensor([2])))
