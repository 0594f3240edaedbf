"""Callers who do not wait for ever, on endpoints that have less than they want: nobody's timeout leaves
a job that nobody knows of."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from witness import KEY, faults, refused, submitted_once_each

import requests
import runpod
from aiohttp import ClientSession, ClientTimeout
from runpod import AsyncioEndpoint
from runpod.http_client import AsyncClientSession

runpod.api_key = KEY
numbers = count()
jobs = []


def run(endpoint):
    """The SDK gives a submission ten seconds."""
    try:
        jobs.append(runpod.Endpoint(endpoint).run({"number": next(numbers)}).job_id)
    except requests.HTTPError as error:
        assert error.response.status_code == 429, error
        return "refused"
    return "submitted"


def run_sync(timeout):
    given = {"number": next(numbers)}
    try:
        assert runpod.Endpoint("few").run_sync(given, timeout) == given
    except requests.ReadTimeout:
        return "given up"
    jobs.append(("runsync", given["number"]))
    return "submitted"


async def run_in_asyncio(session, endpoint):
    """Nothing but the session bounds it; an answer without an id is a KeyError of this SDK."""
    try:
        job = await AsyncioEndpoint(endpoint, session).run({"number": next(numbers)})
    except KeyError as error:
        assert error.args == ("id",)
        return "refused"
    except TimeoutError:
        return "given up"
    jobs.append(job.job_id)
    return "submitted"


def in_threads(callers, call, argument):
    with ThreadPoolExecutor(callers) as pool:
        return Counter(pool.map(call, [argument] * callers))


async def in_tasks(callers, session, endpoint):
    async with session:
        calls = (run_in_asyncio(session, endpoint) for _ in range(callers))
        return Counter(await asyncio.gather(*calls))


async def main():
    # Who is not among the first gives up long before there is room for it.
    brief = 2
    outcomes = await asyncio.gather(
        in_tasks(60, ClientSession(timeout=ClientTimeout(brief)), "few"),
        asyncio.to_thread(in_threads, 20, run_sync, brief),
    )
    print(*outcomes)
    for ended in outcomes:
        assert ended["submitted"] >= 5 and ended["given up"] > 0, ended

    # Every submission takes a tenth of a second, and some do not get their turn.
    faults(latency_ms=100, group="run")
    outcomes = await asyncio.gather(
        asyncio.to_thread(in_threads, 150, run, "slow"),
        # It says who it is, and is not kept for as long as the last of these would need.
        in_tasks(150, AsyncClientSession(), "slow-and-patient"),
    )
    print(*outcomes)
    for ended in outcomes:
        assert ended["submitted"] > 0 and ended["refused"] > 0, ended
        assert ended["submitted"] + ended["refused"] == ended.total(), ended

    # One more caller each, who has patience: everybody before it has got a turn or is gone.
    async with ClientSession() as session:
        for endpoint in "few", "slow", "slow-and-patient":
            assert await run_in_asyncio(session, endpoint) == "submitted"
    assert run_sync(60) == "submitted"


asyncio.run(main())
assert refused() == {}
submitted_once_each(jobs)
print(f"{len(jobs)} jobs, each known to its caller")
