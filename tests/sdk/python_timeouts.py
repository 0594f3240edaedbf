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
    # Every submission takes a tenth of a second.
    faults(latency_ms=100, group="run")
    brief = ClientSession(timeout=ClientTimeout(1))
    plain, agent, few, sync = await asyncio.gather(
        asyncio.to_thread(in_threads, 100, run, "slow"),
        # It says who it is, and is not kept for as long as the last of these would need.
        in_tasks(150, AsyncClientSession(), "slow-and-patient"),
        in_tasks(60, brief, "few"),
        asyncio.to_thread(in_threads, 20, run_sync, 1),
    )
    print(plain, agent, few, sync)
    for outcomes in plain, agent:
        assert outcomes["submitted"] > 0 and outcomes["refused"] > 0, outcomes
        assert outcomes["given up"] == 0, outcomes
    for outcomes in few, sync:
        assert outcomes["submitted"] >= 5 and outcomes["given up"] > 0, outcomes
    # One more caller each, who has patience: everybody before it has got a turn or is gone.
    async with ClientSession() as session:
        for endpoint in "few", "slow", "slow-and-patient":
            assert await run_in_asyncio(session, endpoint) == "submitted"
    assert run_sync(60) == "submitted"


asyncio.run(main())
assert refused() == {}
submitted_once_each(jobs)
print(f"{len(jobs)} jobs, each known to its caller")
