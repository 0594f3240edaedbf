"""A real Prometheus over a real podgate under load, for as long as the tests ask."""

import http.client
import json
import re
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

from common import DEPLOY, PATIENCE, Process

# Every limit is met within seconds: some wait, some are refused, and one group only counts.
CONFIG = """
groups:
  run: { rate: { requests: 60, per: 2s }, concurrency: 20, queue: 6, max_wait: 1s }
  cancel: { rate: { requests: 5, per: 2s }, mode: shadow }
endpoints:
  load: {}
"""
SCRAPES = 12
# What the callers ask for, again and again.
ASKED = [
    ("POST", "/v2/load/run", b'{"input":{"sleep":0.05}}'),
    ("POST", "/v2/load/runsync", b'{"input":{}}'),
    ("GET", "/v2/load/health", None),
    ("POST", "/v2/load/cancel/none", None),
    ("POST", "/v2/load/run", b'{"input":{}}'),
]
CALLERS = 16


class Watched:
    """An emulator, podgate before it, callers, and a Prometheus that scrapes each second."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.ended = threading.Event()
        self.processes, self.server = [], None
        try:
            self.start(Path(self.folder.name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self, folder):
        # Where podgate only counts, the API must be the more patient.
        emulator = Process("emulate", "--listen", "127.0.0.1:0", "--limit", "cancel=100000/1s")
        self.processes.append(emulator)
        config = folder / "podgate.yaml"
        config.write_text(CONFIG)
        upstream = f"http://{emulator.addresses[0]}"
        podgate = Process(
            "serve", "--config", config, "--upstream", upstream,
            "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        )  # fmt: skip
        self.processes.append(podgate)
        listen, self.admin = podgate.addresses[:2]
        self.callers = [threading.Thread(target=self.call, args=(listen, nth)) for nth in range(CALLERS)]
        for caller in self.callers:
            caller.start()
        (folder / "prometheus.yaml").write_text(
            f"global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n"
            f"rule_files: ['{DEPLOY}/prometheus/rules.yaml']\n"
            f"scrape_configs: [{{ job_name: podgate, static_configs: [{{ targets: ['{self.admin}'] }}] }}]\n"
        )
        self.server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yaml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.server.stderr:
            if found := re.search(r'msg="Listening on" address=(\S+)', line):
                self.address = found[1]
                break
        else:
            raise AssertionError("Prometheus did not start")
        self.reader = threading.Thread(target=self.server.stderr.read, daemon=True)
        self.reader.start()
        self.wait(f'count_over_time(up{{job="podgate"}}[5m]) >= {SCRAPES}')

    def call(self, address, nth):
        """A caller that never lets up; what it is answered is podgate's business."""
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer caller-{nth}", "Content-Type": "application/json"}
        while not self.ended.is_set():
            for method, path, body in ASKED:
                connection.request(method, path, body, headers)
                connection.getresponse().read()
        connection.close()

    def __exit__(self, *_):
        self.ended.set()
        for caller in getattr(self, "callers", []):
            caller.join()
        for process in reversed(self.processes):
            process.end()
        if self.server:
            self.server.terminate()
            self.server.wait(PATIENCE)
            self.reader.join(PATIENCE)
            self.server.stderr.close()
        self.folder.cleanup()

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=PATIENCE) as page:
            return page.read().decode()

    def api(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def wait(self, expr):
        """Until Prometheus says it is so."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self.instant(expr):
                    return
            except (ConnectionError, urllib.error.URLError, AssertionError):
                # It listens before it answers.
                pass
            if time.monotonic() > end:
                raise AssertionError(f"never came true: {expr}")
            time.sleep(0.2)

    def instant(self, expr):
        """(labels, value) of each series now."""
        result = self.api("query", query=expr)["result"]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def over_time(self, expr):
        """(labels, values) of each series in the last seconds."""
        now = time.time()
        result = self.api("query_range", query=expr, start=now - SCRAPES, end=now, step=1)["result"]
        return [(one["metric"], [float(value) for _, value in one["values"]]) for one in result]
