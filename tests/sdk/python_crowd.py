"""Two hundred callers at once on one endpoint, in threads and then in asyncio; meanwhile one more does
the rest of the operations there."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from witness import DIRECT, KEY, TEXT, refused, submitted_once_each

import runpod
from runpod import AsyncioEndpoint
from runpod.http_client import AsyncClientSession

runpod.api_key = KEY
# By itself the API takes 200 submissions at once, the one more's among them, and 200 polls a second.
# Through a gateway they want more, but not for the 7.5 s after which a full burst has its pause.
CALLERS, PAUSE, WORK = (199, 1, 2) if DIRECT else (200, 0.2, 4)
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

numbers = count()
jobs = []


def work(**script):
    return {"number": next(numbers), "text": TEXT, **script}


class Crowd:
    """Callers that begin together, and whether they are still at it."""

    def __init__(self):
        self.begin = threading.Barrier(CALLERS + 1)
        self.done = threading.Event()

    def in_a_thread(self, _):
        endpoint = runpod.Endpoint("crowd")
        self.begin.wait()
        given = work(sleep=1)
        jobs.append(given["number"])
        assert endpoint.run_sync({"input": given}, timeout=60) == given
        given = work(sleep=WORK)
        job = endpoint.run({"input": given})
        jobs.append(job.job_id)
        polls = threading.Event()
        while job.status() not in FINAL:
            polls.wait(PAUSE)
        assert job.output() == given

    def the_rest(self):
        endpoint = runpod.Endpoint("crowd")
        self.begin.wait()
        for turn in count():
            health = endpoint.health()
            assert (health["jobs"]["failed"], health["jobs"]["inQueue"]) == (0, 0), health
            streaming = endpoint.run({"input": work(n=3, gap=0.1)})
            running = endpoint.run({"input": work(sleep=600)})
            jobs.extend([streaming.job_id, running.job_id])
            assert list(streaming.stream()) == [0, 1, 2]
            assert running.cancel()["status"] == "CANCELLED"
            assert running.status() == "CANCELLED"
            # As often as there is a budget for.
            if turn < 2:
                assert endpoint.purge_queue() == {"removed": 0, "status": "completed"}
            if self.done.is_set():
                return


def in_threads():
    crowd = Crowd()
    with ThreadPoolExecutor(CALLERS + 1) as pool:
        rest = pool.submit(crowd.the_rest)
        try:
            list(pool.map(crowd.in_a_thread, range(CALLERS)))
        finally:
            crowd.done.set()
        rest.result()


async def in_a_task(session):
    given = work(sleep=WORK)
    job = await AsyncioEndpoint("tasks", session).run(given)
    jobs.append(job.job_id)
    while await job.status() not in FINAL:
        await asyncio.sleep(PAUSE)
    assert await job.output(timeout=60) == given


async def the_rest(session, done):
    endpoint = AsyncioEndpoint("tasks", session)
    for turn in count():
        health = await endpoint.health()
        assert (health["jobs"]["failed"], health["jobs"]["inQueue"]) == (0, 0), health
        streaming = await endpoint.run(work(n=3, gap=0.1))
        running = await endpoint.run(work(sleep=600))
        jobs.extend([streaming.job_id, running.job_id])
        assert [chunk async for chunk in streaming.stream()] == [0, 1, 2]
        assert (await running.cancel())["status"] == "CANCELLED"
        assert await running.status() == "CANCELLED"
        if turn < 2:
            assert await endpoint.purge_queue() == {"removed": 0, "status": "completed"}
        if done.is_set():
            return


async def in_tasks():
    done = asyncio.Event()
    # The SDK's own session: aiohttp's default has a hundred connections.
    async with AsyncClientSession() as session:
        rest = asyncio.create_task(the_rest(session, done))
        try:
            await asyncio.gather(*(in_a_task(session) for _ in range(CALLERS)))
        finally:
            done.set()
        await rest


in_threads()
asyncio.run(in_tasks())
assert refused() == {}
submitted_once_each(jobs)
print(f"{len(jobs)} jobs, each submitted once")
