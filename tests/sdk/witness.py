"""The emulated API as a witness, and what every script of this folder is given.

Usage of each of them: SCRIPT BASE_URL EMULATOR_URL. The SDK is pointed at the first; the second is
asked what it saw. They are the same where the emulator is tried by itself.
"""

import json
import os
import sys
import urllib.request

KEY = "sdk-test-key"
# Latin, an escape or two, a combining mark, right to left, beyond the BMP, and a joined emoji.
TEXT = 'naïve "\\" \t\u0000 e\u0301 日本語 עברית 𝒳 👩‍🔬 \u2028'

BASE_URL, EMULATOR_URL = sys.argv[1:3]
DIRECT = BASE_URL == EMULATOR_URL
# Read by the SDK when it is imported.
os.environ["RUNPOD_ENDPOINT_BASE_URL"] = f"{BASE_URL}/v2"


def ask(path, method="GET", body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{EMULATOR_URL}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def stats():
    return ask("/__emulator/stats")


def faults(**wanted):
    ask("/__emulator/faults", "POST", wanted)


def arrived(endpoint, group):
    return stats()["endpoints"][endpoint][group]["arrived"]


def refused():
    """Every group that was refused anything: why, and how often."""
    found = {}
    for endpoint, groups in stats()["endpoints"].items():
        for group, seen in groups.items():
            reasons = {why: times for why, times in seen["refused"].items() if times}
            if reasons:
                found[endpoint, group] = reasons
    return found


def submitted_once_each(jobs):
    """Every submission that arrived is one of `jobs`, which its caller knows of."""
    assert len(set(jobs)) == len(jobs)
    submissions = stats()["submissions"]
    assert submissions == {"distinct": len(jobs), "repeated": 0}, (len(jobs), submissions)


def health(completed=0, failed=0, in_progress=0, in_queue=0):
    """The whole answer of an endpoint with one worker."""
    idle = 1 - in_progress
    return {
        "jobs": {
            "completed": completed,
            "failed": failed,
            "inProgress": in_progress,
            "inQueue": in_queue,
            "retried": 0,
        },
        "workers": {
            "idle": idle,
            "initializing": 0,
            "ready": idle,
            "running": in_progress,
            "throttled": 0,
            "unhealthy": 0,
        },
    }
