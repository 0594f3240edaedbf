"""The official Python SDK through a gateway: submits and polls jobs, in threads and in asyncio.

Usage: python_sdk.py GATEWAY_URL EMULATOR_URL. Exits 0 if every job came back right, the emulated
API refused nothing, and every submission reached it exactly once.
"""

import asyncio
import json
import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

gateway, emulator = sys.argv[1:]
# Read by the SDK when it is imported.
os.environ["RUNPOD_ENDPOINT_BASE_URL"] = f"{gateway}/v2"

import aiohttp  # noqa: E402
import runpod  # noqa: E402
from runpod import AsyncioEndpoint  # noqa: E402

runpod.api_key = "sdk-test-key"

THREADS = 16
JOBS_EACH = 4
TASKS = 40


def work(number):
    return {"case": number, "text": "naïve – 日本語", "sleep": 0.05}


def in_a_thread(thread):
    endpoint = runpod.Endpoint("sdk")
    for job in range(JOBS_EACH):
        given = work(f"thread {thread} job {job}")
        running = endpoint.run({"input": given})
        assert running.status() in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
        assert running.output(timeout=60) == given, given
        assert running.status() == "COMPLETED"


async def in_a_task(session, task):
    given = work(f"task {task}")
    running = await AsyncioEndpoint("sdk", session).run(given)
    assert await running.output(timeout=60) == given, given
    assert await running.status() == "COMPLETED"


async def in_tasks():
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(in_a_task(session, task) for task in range(TASKS)))


with ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(in_a_thread, range(THREADS)))
asyncio.run(in_tasks())

with urllib.request.urlopen(f"{emulator}/__emulator/stats") as answer:
    stats = json.load(answer)
for group, seen in stats["endpoints"]["sdk"].items():
    assert not any(seen["refused"].values()), (group, seen)
submissions = stats["submissions"]
assert submissions == {"distinct": THREADS * JOBS_EACH + TASKS, "repeated": 0}, submissions
print(f"{submissions['distinct']} jobs, each submitted once, none refused")
