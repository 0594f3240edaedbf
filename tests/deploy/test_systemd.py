"""The systemd unit: it is understood as it is meant, and shut in as far as it can be."""

import subprocess
import tempfile
import unittest
from pathlib import Path

from common import DEPLOY, PODGATE, run

UNIT = DEPLOY / "systemd/podgate.service"
# Of 100, the most that may be left open to the process.
EXPOSURE = 20


class Unit(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # What is started must be there to be verified.
        self.text = UNIT.read_text().replace("ExecStart=/usr/local/bin/podgate", f"ExecStart={PODGATE}")
        self.unit = Path(folder.name) / "podgate.service"
        self.unit.write_text(self.text)

    def verified(self):
        # An unknown word is only a warning, and no failure.
        verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(self.unit)]
        return subprocess.run(verify, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    def test_every_word_of_it_is_understood(self):
        self.assertEqual(self.verified(), "")

    def test_a_misspelt_word_is_found(self):
        self.unit.write_text(self.text.replace("ProtectClock=yes", "ProtectClocks=yes"))
        self.assertIn("ProtectClocks", self.verified())

    def test_little_is_left_open_to_it(self):
        run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", self.unit)

    def test_it_outlasts_the_window_and_the_longest_call(self):
        settings = dict(
            line.split("=", 1) for line in self.text.splitlines() if "=" in line and line[0] not in "#["
        )
        self.assertEqual(settings["Type"], "notify")
        self.assertGreater(int(settings["RestartSec"]), 10)
        self.assertGreater(int(settings["TimeoutStopSec"]), 330 + 30)


if __name__ == "__main__":
    unittest.main()
