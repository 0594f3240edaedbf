"""What the deployment tests share: where things are, the tools, and processes that end with the test."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
# Built by tests/deploy/run, or named by whoever runs a test alone.
PODGATE = os.environ.get("PODGATE", str(ROOT / "target/debug/podgate"))
PATIENCE = 60


def tool(name):
    """A program of the tests' own environment, which comes before whatever else is installed."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else name


def run(*command, **options):
    """Runs a command; what it said is in the error if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        said = done.stdout + done.stderr
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}")
    return done.stdout


class Once(yaml.SafeLoader):
    """YAML as a cluster reads it: a key that stands twice is a fault."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"a key stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def documents(text):
    return [one for one in yaml.load_all(text, Loader=Once) if one]


def kustomized(folder):
    """What `kubectl apply -k` would send, and nothing a cluster is needed for."""
    return documents(run(tool("kubectl"), "kustomize", folder))


def pod_of(manifest):
    """The pod template of whatever makes pods."""
    return manifest.get("spec", {}).get("template")


def podgate_of(manifest):
    """podgate's container in what makes pods, as the service's own or as a sidecar."""
    template = pod_of(manifest)
    if not template or manifest["kind"] == "PodMonitor":
        return None
    spec = template["spec"]
    every = spec.get("containers", []) + spec.get("initContainers", [])
    return next((one for one in every if one["name"] == "podgate"), None)


class Process:
    """A podgate, started as a user starts it, whose ready line has been read."""

    def __init__(self, *arguments, program=(PODGATE,), env=None):
        self.child = subprocess.Popen(
            [*program, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.said = []
        for line in self.child.stderr:
            self.said.append(line)
            if " ready on http://" in line:
                break
        else:
            self.child.wait()
            raise AssertionError("".join(self.said))
        self.addresses = re.findall(r"http://([^\s,]+)", line)
        # A full pipe would stop it.
        self.reader = threading.Thread(target=lambda: self.said.extend(self.child.stderr), daemon=True)
        self.reader.start()

    def end(self):
        self.child.terminate()
        try:
            return self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise
        finally:
            self.reader.join(PATIENCE)
            self.child.stderr.close()
