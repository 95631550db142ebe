"""Batches: requests that wait together are answered together, each with its own answer."""

import asyncio
import threading

import pytest

from mmret_tf.serving.web import batching
from mmret_tf.serving.web.batching import Batcher


async def ask_in_rounds(answer, *rounds, gone=()):
    """The answers, and the sizes of the batches.

    The first batch is held until every round was asked; each round is asked after the one before
    had the time to begin. Requests in `gone` are given up while they wait.
    """
    sizes, gate = [], threading.Event()

    def held(requests):
        gate.wait()
        return answer(requests)

    batcher = Batcher(held, sizes.append)
    task = asyncio.create_task(batcher.run())
    asked = {}
    for requests in rounds:
        asked |= {each: asyncio.create_task(batcher.ask(each)) for each in requests}
        await asyncio.sleep(0.05)
    for each in gone:
        asked[each].cancel()
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(*asked.values(), return_exceptions=True)
    task.cancel()
    return answers, sizes


def squares(numbers):
    return [number**2 for number in numbers]


def test_requests_gather_while_a_batch_is_computed():
    answers, sizes = asyncio.run(ask_in_rounds(squares, [1], range(2, 6)))
    assert answers == [1, 4, 9, 16, 25] and sizes == [1, 4]


def test_a_batch_has_a_limit():
    answers, sizes = asyncio.run(ask_in_rounds(squares, [0], range(1, batching.MOST + 11)))
    assert answers == squares(range(batching.MOST + 11)) and sizes == [1, batching.MOST, 10]


def test_an_answer_that_is_an_exception_is_raised_alone():
    def roots(numbers):
        return [ValueError(f"{n} is negative") if n < 0 else n**0.5 for n in numbers]

    answers, _ = asyncio.run(ask_in_rounds(roots, [1], [4, -4, 9]))
    assert answers[0] == 1 and answers[1] == 2 and answers[3] == 3
    assert str(answers[2]) == "-4 is negative"


def test_a_fault_reaches_all_of_its_batch_and_none_of_the_next():
    def fail_once(numbers):
        if 1 in numbers:
            raise RuntimeError("a fault")
        return numbers

    answers, _ = asyncio.run(ask_in_rounds(fail_once, [1], [2, 3]))
    assert isinstance(answers[0], RuntimeError) and answers[1:] == [2, 3]


def test_requests_that_were_given_up_are_not_computed():
    seen = []

    def note(numbers):
        seen.extend(numbers)
        return numbers

    answers, _ = asyncio.run(ask_in_rounds(note, [1], [2, 3, 4], gone=[3]))
    assert seen == [1, 2, 4] and isinstance(answers[2], asyncio.CancelledError)


def test_too_many_waiting_requests_are_refused(monkeypatch):
    monkeypatch.setattr(batching, "WAITING", 2)
    answers, _ = asyncio.run(ask_in_rounds(squares, [1], [2, 3, 4]))
    assert answers[:3] == [1, 4, 9] and isinstance(answers[3], asyncio.QueueFull)


def test_one_request_waits_for_no_other():
    async def ask():
        batcher = Batcher(squares)
        task = asyncio.create_task(batcher.run())
        answer = await asyncio.wait_for(batcher.ask(3), 5)
        task.cancel()
        return answer

    assert asyncio.run(ask()) == 9
    with pytest.raises(TimeoutError):  # nothing runs
        asyncio.run(asyncio.wait_for(Batcher(squares).ask(1), 0.05))
