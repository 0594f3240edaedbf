"""The image: its Dockerfile is in order, and what is in it starts, as nobody in particular."""

import http.client
import json
import os
import platform
import tempfile
import unittest
from pathlib import Path

import yaml

import common
from common import DEPLOY, PATIENCE, ROOT, Process, run, tool

DOCKERFILE = DEPLOY / "docker/Dockerfile"
COMPOSE = DEPLOY / "docker/compose.yaml"


def owners(command):
    """The users whose processes were started by this command."""
    line = b"".join(word.encode() + b"\0" for word in command)
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes() == line:
                found.add(process.stat().st_uid)
        except (FileNotFoundError, ProcessLookupError):
            pass  # It has ended meanwhile.
    return found


class Written(unittest.TestCase):
    def test_hadolint_finds_nothing_in_the_dockerfile(self):
        run(tool("hadolint"), DOCKERFILE)

    def test_the_build_gets_all_it_needs_of_the_source(self):
        kept = {line[1:] for line in Path(f"{DOCKERFILE}.dockerignore").read_text().split() if line[0] == "!"}
        with tempfile.TemporaryDirectory() as folder:
            for name in kept:
                (Path(folder) / name).symlink_to(ROOT / name)
            run("cargo", "metadata", "--locked", "--offline", "--format-version=1", "--no-deps", cwd=folder)
        self.assertLessEqual({"Cargo.lock", "config", "src"}, kept)

    def test_what_compose_mounts_is_there(self):
        compose = yaml.safe_load(COMPOSE.read_text())
        for name, service in compose["services"].items():
            for mount in service.get("volumes", []):
                with self.subTest(service=name, mount=mount):
                    self.assertTrue((COMPOSE.parent / mount.split(":")[0]).exists())
        build = compose["services"]["podgate"]["build"]
        context = (COMPOSE.parent / build["context"]).resolve()
        self.assertEqual((context, context / build["dockerfile"]), (ROOT, DOCKERFILE))

    def test_compose_asks_podgate_itself_whether_it_is_well(self):
        test = yaml.safe_load(COMPOSE.read_text())["services"]["podgate"]["healthcheck"]["test"]
        self.assertEqual(test[:2], ["CMD", "/podgate"])
        run(common.PODGATE, *test[2:3], "--help")


@unittest.skipUnless(os.environ.get("PODGATE_TEST_FULL"), "builds a second podgate: tests/deploy/run --full")
class Built(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # No daemon, no namespaces, nothing outside of the folder. The builder's image cannot be had
        # everywhere, so what it would build is built here.
        target = f"{platform.machine()}-unknown-linux-gnu"
        run(
            "cargo", "build", "--locked", "--target", target, cwd=ROOT,
            env={**os.environ, "RUSTFLAGS": "-C target-feature=+crt-static"},
        )  # fmt: skip
        folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        (folder / "build").mkdir()
        run("cp", ROOT / "target" / target / "debug/podgate", folder / "build/podgate")
        cls.env = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
        cls.folder = folder
        cls.buildah(
            "build", "--target", "podgate", "--build-context", f"build={folder}/build",
            "--timestamp", "0", "-f", DOCKERFILE, "-t", "podgate:test", folder,
        )  # fmt: skip
        cls.container = cls.buildah("from", "podgate:test").strip()

    @classmethod
    def command(cls, *arguments):
        where = ("--root", cls.folder / "root", "--runroot", cls.folder / "run")
        return [str(part) for part in ("buildah", *where, *arguments)]

    @classmethod
    def buildah(cls, *arguments):
        return run(*cls.command(*arguments), env=cls.env)

    def test_it_is_one_file_that_nobody_may_change(self):
        mounted = Path(self.buildah("mount", self.container).strip())
        files = [path for path in mounted.rglob("*") if path.is_file()]
        self.assertEqual([path.name for path in files], ["podgate"])
        self.assertEqual(files[0].stat().st_mode & 0o777, 0o555)
        self.buildah("umount", self.container)

    def test_it_is_started_as_nobody_without_a_shell(self):
        config = json.loads(self.buildah("inspect", "--type", "image", "podgate:test"))["OCIv1"]["config"]
        self.assertEqual(config["User"], "65532:65532")
        self.assertEqual(config["Entrypoint"], ["/podgate"])
        self.assertEqual(config["Cmd"][0], "serve")
        self.assertNotIn("PODGATE_LISTEN", " ".join(config.get("Env", [])))

    def test_what_it_starts_serves_and_finds_its_upstream_by_name(self):
        emulator = Process("emulate", "--listen", "127.0.0.1:0")
        self.addCleanup(emulator.end)
        port = emulator.addresses[0].rsplit(":", 1)[1]
        upstream = f"http://localhost:{port}"
        serve = ["/podgate", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", upstream]
        podgate = Process(program=self.command("run", self.container, "--", *serve), env=self.env)
        self.addCleanup(podgate.end)
        self.assertEqual(owners(serve), {65532})
        connection = http.client.HTTPConnection(podgate.addresses[0], timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("POST", "/v2/e/run", b'{"input":{}}', {"Authorization": "Bearer k"})
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200, answer.read())


if __name__ == "__main__":
    unittest.main()
