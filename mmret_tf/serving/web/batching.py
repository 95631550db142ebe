"""Batches (批处理): requests that wait at the same time are answered together.

While one batch is computed, the next one gathers. A single request never waits for others.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Requests that are answered at once, and requests that may wait.
MOST, WAITING = 64, 1000


class Batcher:
    """Answers requests in batches, in a thread of its own.

    Args:
        answer: Function from a list of requests to a list of answers. It runs in one thread, and an
            answer that is an exception is raised where the request was made.
        measure: Is told the size of each batch.

    >>> async def ask_all(*requests):
    ...     batcher = Batcher(lambda numbers: [n * n for n in numbers], sizes.append)
    ...     task = asyncio.create_task(batcher.run())
    ...     answers = await asyncio.gather(*map(batcher.ask, requests))
    ...     task.cancel()
    ...     return answers
    >>> sizes = []
    >>> asyncio.run(ask_all(1, 2, 3)), sizes
    ([1, 4, 9], [3])
    """

    def __init__(
        self,
        answer: Callable[[list], Sequence[Any]],
        measure: Callable[[int], None] = lambda size: None,
    ):
        self._answer = answer
        self._measure = measure
        self._waiting: asyncio.Queue = asyncio.Queue(WAITING)

    async def ask(self, request: Any) -> Any:
        """The answer to a request.

        Args:
            request: For the function `answer`.

        Raises:
            asyncio.QueueFull: Too many requests wait.
            Exception: The answer, if it is one.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((request, future))
        return await future

    async def run(self) -> None:
        """Answer requests until the task is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "batches") as thread:
            while True:
                batch = [await self._waiting.get()]
                while len(batch) < MOST and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                batch = [(request, future) for request, future in batch if not future.done()]
                if batch:
                    requests = [request for request, _ in batch]
                    self._measure(len(batch))
                    answers = await loop.run_in_executor(thread, self._answers, requests)
                    for (_, future), answer in zip(batch, answers, strict=True):
                        _settle(future, answer)

    def _answers(self, requests: list) -> Sequence[Any]:
        try:
            return self._answer(requests)
        except Exception as error:  # a fault of ours: every request of the batch hears of it
            return [error] * len(requests)


def _settle(future: asyncio.Future, answer: Any) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
