"""Every operation of the official Python SDK in asyncio."""

import asyncio
from itertools import count

from witness import DIRECT, KEY, TEXT, health, refused, submitted_once_each

import runpod
from runpod import AsyncioEndpoint, AsyncioJob
from runpod.http_client import AsyncClientSession

runpod.api_key = KEY
numbers = count()
jobs = []


def work(**script):
    return {"number": next(numbers), "text": TEXT, **script}


async def run(endpoint, given):
    job = await endpoint.run(given)
    jobs.append(job.job_id)
    return job


async def results(session):
    endpoint = AsyncioEndpoint("results", session)
    given = work(sleep=0.5)
    job = await run(endpoint, given)
    assert await job.status() in ("IN_QUEUE", "IN_PROGRESS")
    output = await job.output(timeout=60)
    assert output == given
    assert output["text"].encode() == TEXT.encode()
    assert await job.status() == "COMPLETED"
    # FAILED is no exception to this SDK.
    job = await run(endpoint, work(fail=TEXT))
    assert await job.output(timeout=60) is None
    assert await job.status() == "FAILED"
    assert await endpoint.health() == health(completed=1, failed=1)


async def chunks(job):
    return [chunk async for chunk in job.stream()]


async def streams(session):
    """Complete and in order, also before a failure."""
    endpoint = AsyncioEndpoint("streams", session)
    job = await run(endpoint, work(n=10, gap=0.25))
    assert await chunks(job) == list(range(10))
    assert await job.status() == "COMPLETED"
    job = await run(endpoint, work(n=3, fail="late"))
    assert await chunks(job) == [0, 1, 2]
    assert await job.status() == "FAILED"


async def the_queue(session):
    """health, and cancel and purge of what waits and of what runs."""
    endpoint = AsyncioEndpoint("queue", session)
    running = await run(endpoint, work(sleep=600))
    waiting = [await run(endpoint, work()) for _ in range(4)]
    assert await running.status() == "IN_PROGRESS"
    assert [await job.status() for job in waiting] == ["IN_QUEUE"] * 4
    assert await endpoint.health() == health(in_progress=1, in_queue=4)
    cancelled = waiting.pop()
    assert await cancelled.cancel() == {"id": cancelled.job_id, "status": "CANCELLED"}
    assert await cancelled.status() == "CANCELLED"
    assert await cancelled.output(timeout=60) is None
    assert await endpoint.health() == health(in_progress=1, in_queue=3)

    assert await endpoint.purge_queue() == {"removed": 3, "status": "completed"}
    assert await endpoint.health() == health(in_progress=1)
    assert await running.status() == "IN_PROGRESS"
    answer = await running.cancel()
    assert (answer["id"], answer["status"]) == (running.job_id, "CANCELLED"), answer
    assert await running.status() == "CANCELLED"
    assert await endpoint.health() == health()
    # Two purges in ten seconds are all there are.
    assert await endpoint.purge_queue() == {"removed": 0, "status": "completed"}
    answer = await endpoint.purge_queue()
    assert answer["status"] == 429, answer

    await is_unknown(waiting[0])


async def is_unknown(job):
    """This SDK takes the number in the answer for the job's state, which is not final."""
    assert await job.status() == 404
    assert (await job.cancel())["status"] == 404
    try:
        await job.output(timeout=1)
    except TimeoutError:
        return
    raise AssertionError("a job that is not there has an output")


async def strangers(session):
    """A job that never was, and a key that is not accepted."""
    headers = AsyncioEndpoint("results", session).headers
    await is_unknown(AsyncioJob("results", "unknown-u1", session, headers))
    stranger = AsyncioEndpoint("results", session, api_key="another")
    assert (await stranger.health())["status"] == 401
    try:
        await stranger.run(work())
    except KeyError as error:
        assert error.args == ("id",)
        return
    raise AssertionError("a wrong key was accepted")


async def main():
    async with AsyncClientSession() as session:
        parts = results, streams, the_queue, strangers
        await asyncio.gather(*(part(session) for part in parts))


asyncio.run(main())
assert refused() == ({("queue", "purge-queue"): {"rate": 1}} if DIRECT else {})
submitted_once_each(jobs)
print(f"{len(jobs)} jobs, each submitted once")
