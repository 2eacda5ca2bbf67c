"""The evaluation passes the built-in model, and fails models that do not see."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from idefics_cli.core.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USAGE
from idefics_cli.demo.build import build_model
from idefics_cli.demo.training import evaluate
from idefics_cli.demo.training.evaluate import ALL, WEIGHTS, Result, failures, table
from idefics_cli.demo.training.exam import Dialogue, Exam, ExaminedModel, Marks, take_exam
from idefics_cli.demo.training.worker import save
from tests.support.reference import auto_processor

SMALL = Exam(scenes=16)


@pytest.fixture(scope="module")
def shipped() -> ExaminedModel:
    return ExaminedModel(WEIGHTS, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def marks(shipped: ExaminedModel) -> Marks:
    return take_exam(SMALL, shipped)


def total(marks: Marks) -> tuple[int, int]:
    rows = [counts for row, counts in marks.rows.items() if ":" not in row]
    return sum(right for right, _ in rows), sum(asked for _, asked in rows)


def test_the_shipped_model_answers_about_unseen_scenes(marks: Marks) -> None:
    right, asked = total(marks)

    assert asked >= 70
    assert right >= 0.95 * asked, marks.mistakes


def test_marks_come_back_from_another_process(marks: Marks) -> None:
    returned = pickle.loads(pickle.dumps(marks))

    assert (returned.rows, returned.mistakes) == (marks.rows, marks.mistakes)


class Parrot:
    """Gives one answer to every question, and keeps the dialogues.

    Attributes:
        dialogues: Messages of every dialogue that it answered.
    """

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self.dialogues: list[list[dict[str, Any]]] = []

    def answer(self, dialogues: Sequence[Dialogue]) -> list[str]:
        self.dialogues += [list(dialogue.messages) for dialogue in dialogues]
        return [self._answer] * len(dialogues)


def test_the_parts_of_an_exam_join_to_the_whole() -> None:
    whole, joined = take_exam(SMALL, Parrot("Yes.")), Marks()
    for part in range(3):
        joined.add(take_exam(SMALL, Parrot("Yes."), part=part, parts=3))

    assert 0 < total(whole)[0] < total(whole)[1]
    assert joined.rows == whole.rows
    assert set(joined.mistakes) == set(whole.mistakes)


def test_only_the_right_answer_to_the_letter_counts() -> None:
    assert total(take_exam(SMALL, Parrot("x")))[0] == 0
    yes, capitals = (take_exam(Exam(60), Parrot(text)) for text in ("Yes.", "YES."))

    assert yes.rows["exists: yes"][0] == yes.rows["exists: yes"][1] > 0
    assert yes.rows["exists: no"][0] == 0
    assert total(capitals)[0] == 0
    assert total(yes)[0] + len(yes.mistakes) == total(yes)[1]


def test_later_turns_contain_the_models_own_answers() -> None:
    parrot = Parrot("x")
    take_exam(SMALL, parrot)
    said = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    lengths = {len(messages) for messages in parrot.dialogues}

    assert lengths == {1, 3, 5}
    for messages in parrot.dialogues:
        assert messages[1::2] == [said] * (len(messages) // 2)
        contents = [message["content"] for message in messages]
        images = [sum(part["type"] == "image" for part in content) for content in contents]
        assert images[0] in (1, 2)
        assert not any(images[1:])


def test_every_task_is_asked_and_neither_yes_nor_no_is_always_right() -> None:
    # One picture, two pictures, turns of a conversation.
    asked = take_exam(Exam(200), Parrot("Yes.")).rows
    tasks = {row for row in asked if ":" not in row}

    assert len(tasks) == 13 + 7 + 3
    for row in ("exists", "pair_same_background"):
        right, count = asked[row]
        assert 0.25 < right / count < 0.75


def result(rows: dict[str, list[int]], exam: Exam = SMALL) -> Result:
    return Result(exam, Marks(dict(rows)), seconds=1.0)


@pytest.mark.parametrize(
    ("exam", "rows", "expected"),
    [
        (SMALL, {ALL: [98, 100], "caption": [98, 100], "color": [95, 100]}, []),
        (
            SMALL,
            {ALL: [979, 1000], "caption": [100, 100]},
            ["all: 97.9 % is under 98"],
        ),
        (
            SMALL,
            {ALL: [100, 100], "caption": [97, 100]},
            ["caption: 97.0 % is under 98"],
        ),
        (
            SMALL,
            {ALL: [100, 100], "caption": [100, 100], "turn 2": [94, 100], "x: detail": [0, 9]},
            ["turn 2: 94.0 % is under 95"],
        ),
        (Exam(9, "pair"), {ALL: [94, 100], "caption": [50, 100]}, []),
        (Exam(9, "pair"), {ALL: [93, 100]}, ["never-seen pairs: 93.0 % is under 94"]),
        (Exam(9, is_blind=True), {ALL: [24, 100]}, []),
        (
            Exam(9, is_blind=True),
            {ALL: [25, 100]},
            ["blind: 25.0 % is not under 25: pictures are not needed"],
        ),
    ],
)
def test_failures_name_what_is_below_the_mark(
    exam: Exam, rows: dict[str, list[int]], expected: list[str]
) -> None:
    assert list(failures(result(rows, exam))) == expected


def test_tables_show_percent_and_number_with_a_dash_for_what_was_not_asked() -> None:
    results = [
        result({ALL: [1999, 2000], "pair_text": [1, 3]}),
        result({ALL: [0, 7]}, Exam(9, "pair", quantization="4bit")),
    ]

    assert table(results, is_markdown=True) == (
        "| task | held-out combinations | never-seen pairs, 4bit |\n"
        "| --- | ---: | ---: |\n"
        "| all | 100.0 (2,000) | 0.0 (7) |\n"
        "| pair text | 33.3 (3) | - |\n"
    )
    assert table(results, is_markdown=False) == (
        "task       held-out combinations  never-seen pairs, 4bit\n"
        "all        100.0 (2,000)          0.0 (7)\n"
        "pair text  33.3 (3)               -\n"
    )


def test_an_untrained_model_fails_and_json_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    processor = auto_processor(WEIGHTS, "idefics2")
    save(build_model(processor.tokenizer), processor, tmp_path)
    capsys.readouterr()
    arguments = [str(tmp_path), "--scenes", "4", "--split", "combo", "--processes", "1", "--json"]
    code = evaluate.main([*arguments, "--device", "cpu"])
    described = json.loads(capsys.readouterr().out)

    assert code == EXIT_FAILURE
    assert "all: 0.0 % is under 98" in described["failures"]
    (exam,) = described["exams"]
    assert exam["marks"][ALL]["right"] == 0
    assert len(exam["mistakes"]) == exam["marks"][ALL]["asked"]
    assert (exam["scenes"], exam["split"], exam["is_blind"]) == (4, "combo", False)


def test_the_blind_control_alone_passes_with_a_table_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = evaluate.main(["--blind", "--scenes", "16", "--processes", "1", "--markdown"])
    out, err = capsys.readouterr()

    assert code == EXIT_DONE
    assert out.startswith("| task | blind (gray pictures) |\n")
    assert err.startswith("blind (gray pictures): ")


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (["nowhere"], EXIT_FAILURE, "error: `nowhere` holds no model"),
        (["--scenes", "3"], EXIT_USAGE, "error: 3 scenes are too few"),
        (["--processes", "0"], EXIT_USAGE, "error: `--processes` must be at least 1"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line_and_a_hint(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: int, message: str
) -> None:
    code = evaluate.main([*arguments, "--device", "cpu"])
    out, err = capsys.readouterr()

    assert (code, out) == (expected, "")
    assert err.startswith(message)
    assert "\nhint: " in err
    assert err.count("\n") == 2
