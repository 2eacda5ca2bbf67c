"""Requests that start together are alike, and the number of slots follows the memory."""

from __future__ import annotations

import pytest

from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling
from idefics_cli.engine.batching import choose_group, cost
from idefics_cli.engine.local.serving.schedule import RequestSchedule, Ticket
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.picture import PreparedPicture


def prepared(*tiles: tuple[int, int], prompt: str = "What?", limit: int = 256) -> Prepared:
    message = Message("user", (Attachment("a.jpg"), prompt))
    request = GenerationRequest((message,), Sampling(max_new_tokens=limit))
    return Prepared(request, (PreparedPicture(b"", (9, 9), tiles),))


SMALL, HUGE = prepared((224, 224)), prepared((980, 980))


def groups(waiting: list[Prepared], most: int) -> list[list[int]]:
    """Return the indices of the requests that start together, one group after the other."""
    numbered = list(enumerate(waiting))
    found = []
    while numbered:
        chosen = set(choose_group([prepared for _, prepared in numbered], most))
        found.append([index for place, (index, _) in enumerate(numbered) if place in chosen])
        numbered = [pair for place, pair in enumerate(numbered) if place not in chosen]
    return found


def test_the_cost_grows_with_the_pixels_the_tiles_the_prompt_and_the_reply() -> None:
    # 16x16 patches, 64 image tokens, one token of text, and the usual reply.
    assert cost(SMALL) == 256 + 64 + 1 + 64
    assert cost(prepared((980, 980))) == 4900 + 64 + 1 + 64
    assert cost(prepared((490, 980), (490, 980))) == 4900 + 2 * 64 + 1 + 64
    assert cost(prepared((224, 224), prompt="word " * 80)) == cost(SMALL) + 99
    assert cost(prepared((224, 224), limit=5)) == cost(SMALL) - 59


def test_a_huge_picture_among_many_small_ones_begins_alone() -> None:
    waiting = [SMALL] * 3 + [HUGE] + [SMALL] * 9 + [HUGE, HUGE] + [SMALL] * 2
    assert groups(waiting, 8) == [
        [0, 1, 2, 4, 5, 6, 7, 8],
        [3],
        [9, 10, 11, 12, 15, 16],
        [13, 14],  # only huge pictures are left
    ]


def test_pictures_of_one_size_begin_together_however_large_they_are() -> None:
    assert groups([HUGE] * 16, 8) == [[*range(8)], [*range(8, 16)]]


def test_pictures_of_the_shape_of_the_first_come_before_those_that_cost_as_much() -> None:
    wide, high = prepared((300, 400)), prepared((400, 300))
    assert groups([wide, high, wide, high, wide], 3) == [[0, 2, 4], [1, 3]]
    assert groups([wide, high, prepared((300, 800)), high], 3) == [[0, 1, 3], [2]]


def test_prompts_of_other_lengths_do_not_begin_together() -> None:
    split = prepared(*[(224, 224)] * 2)
    assert groups([SMALL, split, SMALL, split], 4) == [[0, 2], [1, 3]]


def test_no_request_waits_for_ever() -> None:
    waiting = [HUGE, *[SMALL] * 50]
    assert choose_group(waiting, 4) == [0]
    assert choose_group([SMALL, HUGE, *[SMALL] * 50], 1) == [0]


def tickets(count: int, of: Prepared = SMALL, first: int = 0) -> list[Ticket]:
    return [Ticket(index, of) for index in range(first, first + count)]


def numbers(chosen: list[Ticket]) -> list[int]:
    return [ticket.index for ticket in chosen]


def test_requests_come_in_when_a_quarter_of_the_slots_is_free() -> None:
    schedule: RequestSchedule[Ticket] = RequestSchedule(8)
    schedule.add(tickets(20))
    assert numbers(schedule.choose(0)) == [*range(8)]
    assert schedule.choose(8) == schedule.choose(7) == []
    # The next two requests can be prepared already.
    assert numbers(schedule.upcoming()) == [8, 9]
    assert numbers(schedule.choose(6)) == [8, 9]


def test_a_request_that_starts_alone_is_prepared_alone() -> None:
    schedule: RequestSchedule[Ticket] = RequestSchedule(8)
    assert schedule.upcoming() == []
    schedule.add(tickets(4))
    assert schedule.retry_singly(schedule.choose(0), tried=4) is None
    assert numbers(schedule.upcoming()) == [0]


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8])
def test_the_slots_are_halved_until_the_memory_is_enough_and_stay_so(fits: int) -> None:
    schedule: RequestSchedule[Ticket] = RequestSchedule(8)
    schedule.add(tickets(20))
    ended: list[int] = []
    reported = [8]
    while group := schedule.choose(0):
        if len(group) > fits:
            assert schedule.retry_with_fewer(group) is None
            continue
        for ticket in group:
            schedule.end(ticket)
            assert ticket.at_a_time == (schedule.slots if fits < 8 and ticket.index < 8 else None)
            ended.append(ticket.index)
            reported += [schedule.settled] if schedule.settled != reported[-1] else []
    assert ended == [*range(20)]
    assert reported == ([8] if fits == 8 else [8, {1: 1, 2: 2, 3: 2, 5: 4}[fits]])


def test_a_request_that_does_not_fit_alone_changes_nothing_for_the_others() -> None:
    schedule: RequestSchedule[Ticket] = RequestSchedule(8)
    schedule.add([*tickets(3), *tickets(1, HUGE, 3), *tickets(12, first=4)])
    failed, sizes = [], []
    while group := schedule.choose(0):
        if any(ticket.prepared is HUGE for ticket in group):
            if (alone := schedule.retry_with_fewer(group)) is not None:
                schedule.end(alone, fits=False)
                failed.append(alone.index)
            continue
        sizes.append(len(group))
        for ticket in group:
            schedule.end(ticket)
    assert failed == [3]
    assert sizes == [8, 7]
    assert schedule.slots == schedule.settled == 8


def test_those_that_go_on_keep_their_slots_when_another_has_no_room() -> None:
    schedule: RequestSchedule[Ticket] = RequestSchedule(8)
    schedule.add(tickets(8))
    first = schedule.choose(0)
    schedule.add(tickets(2, first=8))
    late = schedule.choose(6)
    assert schedule.retry_with_fewer(late, active=6) is None
    assert (schedule.slots, schedule.settled) == (4, 8)
    assert schedule.choose(6) == schedule.choose(4) == []
    assert numbers(schedule.choose(3)) == [8]
    for ticket in [*first, late[0]]:
        schedule.end(ticket)
    assert schedule.settled == 8, "the other request has not ended"
    schedule.end(late[1])
    assert schedule.settled == 4


def test_those_that_failed_together_are_tried_one_by_one() -> None:
    schedule: RequestSchedule[Ticket] = RequestSchedule(4)
    schedule.add(tickets(5))
    assert schedule.retry_singly(schedule.choose(0), tried=4) is None
    alone = [numbers(schedule.choose(0)) for _ in range(5)]
    assert alone == [[0], [1], [2], [3], [4]]
    (ticket,) = tickets(1)
    assert schedule.retry_singly([ticket], tried=1) is ticket
