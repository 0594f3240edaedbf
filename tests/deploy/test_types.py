"""What only others' own types and schemas can tell: Grafana's of its dashboards, the Prometheus operator's."""

import json
import os
import subprocess
import unittest

from common import DEPLOY, ROOT, kustomized, run

NODE = ROOT / "target/deploy-node"
# Where Grafana's types name an enum, JSON has the word.
TYPED = """
import type { Dashboard } from '@grafana/schema';
type Plain<T> = T extends string ? (string extends T ? string : `${T}`)
  : T extends (infer Item)[] ? Plain<Item>[]
  : T extends object ? { [Key in keyof T]: Plain<T[Key]> }
  : T;
export const board: Plain<Dashboard> = %s;
"""


def typed(board):
    """What Grafana's own compiler says of a dashboard."""
    path = NODE / "board.ts"
    path.write_text(TYPED % json.dumps(board, indent=1))
    options = "--noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext".split()
    done = subprocess.run(["npx", "tsc", *options, path.name], cwd=NODE, capture_output=True, text=True)
    return done.stdout + done.stderr


@unittest.skipUnless(os.environ.get("PODGATE_TEST_FULL"), "needs npm packages: tests/deploy/run --full")
class Types(unittest.TestCase):
    def board(self):
        board = json.loads((DEPLOY / "grafana/podgate.json").read_text())
        for mark in board["annotations"]["list"]:
            # The data source's own, which Grafana's types leave out; those of panels may hold anything.
            mark["target"] = {"refId": mark["target"]["refId"]}
            mark.pop("titleFormat")
        return board

    def test_the_dashboard_is_what_grafana_calls_one(self):
        self.assertEqual(typed(self.board()), "")

    def test_a_misspelt_field_of_it_is_found(self):
        board = self.board()
        board["panels"][0]["fieldConfig"]["defaults"]["units"] = "s"
        self.assertIn("units", typed(board))

    def test_the_operator_takes_its_resources(self):
        manifests = kustomized(DEPLOY / "kustomize/overlays/monitored-service")
        custom = [one for one in manifests if one["apiVersion"].startswith("monitoring.")]
        self.assertEqual({one["kind"] for one in custom}, {"PodMonitor", "PrometheusRule"})
        run("node", NODE / "custom.mjs", input=json.dumps(custom))
        del custom[1]["spec"]["groups"][0]["rules"][0]["expr"]
        with self.assertRaisesRegex(AssertionError, "expr"):
            run("node", NODE / "custom.mjs", input=json.dumps(custom))


if __name__ == "__main__":
    unittest.main()
