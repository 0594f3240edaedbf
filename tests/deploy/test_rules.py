"""The rules: promtool takes them, and each alert is seen firing and keeping quiet."""

import tempfile
import unittest
from pathlib import Path

import yaml

from common import DEPLOY, ROOT, run

RULES = DEPLOY / "prometheus/rules.yaml"
CASES = Path(__file__).with_name("rules_test.yaml")


def alerts(rules):
    return [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


class Rules(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rules = yaml.safe_load(RULES.read_text())

    def test_promtool_takes_them_and_the_example_that_loads_them(self):
        run("promtool", "check", "config", DEPLOY / "prometheus/scrape.example.yaml")

    def test_every_case_holds(self):
        for rule in alerts(self.rules):
            # promtool compares every word of them.
            rule["annotations"] = {"summary": rule["annotations"]["summary"]}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "rules.yaml").write_text(yaml.safe_dump(self.rules))
            cases = Path(folder) / CASES.name
            cases.write_text(CASES.read_text())
            run("promtool", "test", "rules", cases)

    def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not(self):
        fires, quiet = set(), set()
        for test in yaml.safe_load(CASES.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case["exp_alerts"] else quiet).add(case["alertname"])
        names = {rule["alert"] for rule in alerts(self.rules)}
        self.assertEqual((fires, quiet), (names, names))

    def test_every_alert_says_how_bad_it_is_and_what_to_do(self):
        readme = (ROOT / "README.md").read_text()
        for rule in alerts(self.rules):
            with self.subTest(alert=rule["alert"]):
                self.assertIn(rule["labels"]["severity"], ("critical", "warning", "info"))
                for note in ("summary", "description", "runbook"):
                    self.assertTrue(rule["annotations"][note])
                self.assertTrue(f"| `{rule['alert']}` |" in readme, "the README's table has no row for it")


if __name__ == "__main__":
    unittest.main()
