"""Every operation of the official Python SDK, blocking."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count

from witness import DIRECT, KEY, TEXT, health, refused, submitted_once_each

import requests
import runpod
from runpod.endpoint import Job

runpod.api_key = KEY
numbers = count()
jobs = []


def work(**script):
    return {"number": next(numbers), "text": TEXT, **script}


def run(endpoint, given):
    job = endpoint.run({"input": given})
    jobs.append(job.job_id)
    return job


def run_sync(endpoint, given):
    # Its id stays in the SDK.
    jobs.append(("runsync", given["number"]))
    return endpoint.run_sync({"input": given}, timeout=60)


def refusal(call):
    """The answer that the SDK raises."""
    try:
        answer = call()
    except requests.HTTPError as error:
        response = error.response
        assert response.json()["status"] == response.status_code, response.text
        return response
    raise AssertionError(f"not refused: {answer}")


def results():
    endpoint = runpod.Endpoint("results")
    given = work(sleep=0.5)
    job = run(endpoint, given)
    assert job.status() in ("IN_QUEUE", "IN_PROGRESS")
    assert job.output(timeout=60) == given
    assert job.output()["text"].encode() == TEXT.encode()
    assert job.status() == "COMPLETED"
    # Input that is not wrapped yet is wrapped by the SDK.
    given = work()
    job = endpoint.run(given)
    jobs.append(job.job_id)
    assert job.output(timeout=60) == given
    given = work(sleep=1.5)
    assert run_sync(endpoint, given) == given
    # FAILED is no exception to this SDK.
    job = run(endpoint, work(fail=TEXT))
    assert job.output(timeout=60) is None
    assert job.status() == "FAILED"
    assert run_sync(endpoint, work(fail=TEXT)) is None
    assert endpoint.health() == health(completed=3, failed=2)


def streams():
    """Complete and in order, also before a failure."""
    endpoint = runpod.Endpoint("streams")
    job = run(endpoint, work(n=10, gap=0.25))
    assert list(job.stream()) == list(range(10))
    assert job.status() == "COMPLETED"
    job = run(endpoint, work(n=3, fail="late"))
    assert list(job.stream()) == [0, 1, 2]
    assert job.status() == "FAILED"


def the_queue():
    """health, and cancel and purge of what waits and of what runs."""
    endpoint = runpod.Endpoint("queue")
    running = run(endpoint, work(sleep=600))
    waiting = [run(endpoint, work()) for _ in range(4)]
    assert running.status() == "IN_PROGRESS"
    assert [job.status() for job in waiting] == ["IN_QUEUE"] * 4
    assert endpoint.health() == health(in_progress=1, in_queue=4)
    cancelled = waiting.pop()
    assert cancelled.cancel() == {"id": cancelled.job_id, "status": "CANCELLED"}
    assert cancelled.status() == "CANCELLED"
    assert cancelled.output(timeout=60) is None
    assert endpoint.health() == health(in_progress=1, in_queue=3)

    assert endpoint.purge_queue() == {"removed": 3, "status": "completed"}
    assert endpoint.health() == health(in_progress=1)
    assert running.status() == "IN_PROGRESS"
    answer = running.cancel()
    assert (answer["id"], answer["status"]) == (running.job_id, "CANCELLED"), answer
    assert running.status() == "CANCELLED"
    assert endpoint.health() == health()
    # Two purges in ten seconds are all there are. The SDK takes no fraction for an answer.
    assert endpoint.purge_queue() == {"removed": 0, "status": "completed"}
    response = refusal(endpoint.purge_queue)
    assert response.status_code == 429
    assert DIRECT or int(response.headers["Retry-After"]) >= 1

    is_unknown(waiting[0])


def is_unknown(job):
    for call in job.status, job.output, job.cancel, lambda: next(job.stream()):
        assert refusal(call).status_code == 404


def strangers():
    """A job that never was, and a key that is not accepted."""
    is_unknown(Job("results", "unknown-u1", runpod.Endpoint("results").rp_client))
    stranger = runpod.Endpoint("results", api_key="another")
    for call in stranger.health, lambda: stranger.run({"input": work()}):
        try:
            call()
        except RuntimeError as error:
            assert "401" in str(error)
        else:
            raise AssertionError("a wrong key was accepted")


with ThreadPoolExecutor() as pool:
    for part in [pool.submit(part) for part in (results, streams, the_queue, strangers)]:
        part.result()
assert refused() == ({("queue", "purge-queue"): {"rate": 1}} if DIRECT else {})
submitted_once_each(jobs)
print(f"{len(jobs)} jobs, each submitted once")
