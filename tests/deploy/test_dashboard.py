"""The dashboard and the rules, asked of a real Prometheus that watches a real podgate under load."""

import json
import math
import re
import unittest

from common import DEPLOY
from prometheus import Watched

BOARD = json.loads((DEPLOY / "grafana/podgate.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VALUES = {
    "$__rate_interval": "5s",
    "$__range": "1m",
    "$job": "podgate",
    "$instance": ".*",
    "$endpoint": ".*",
}
# Rules and marks that have nothing to say in this test.
EMPTY = {
    "PodgateCertificateExpires": "there is no TLS listener",
    "configuration": "no configuration is read again",
    "started": "it starts once, before the first scrape",
}
# Series no panel shows.
UNSHOWN = {
    "process_virtual_memory_bytes": "says nothing on a 64-bit system",
    "process_threads": "as many as configured",
}


def asked(expr):
    """The query as Grafana sends it."""
    for name, value in VALUES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


class Board(unittest.TestCase):
    """What can be seen without a Prometheus."""

    def test_it_can_be_imported_again_under_the_same_address(self):
        self.assertEqual(BOARD["uid"], "podgate")
        self.assertNotIn("id", BOARD)
        ids = [panel["id"] for panel in BOARD["panels"]]
        self.assertEqual(len(ids), len(set(ids)))

    def test_every_panel_says_what_it_shows_in_which_unit(self):
        for panel in PANELS:
            with self.subTest(panel=panel["title"]):
                self.assertGreater(len(panel["description"]), 15)
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"])
                self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                for target in panel["targets"]:
                    self.assertEqual(target["datasource"]["uid"], "${datasource}")

    def test_the_two_promises_are_on_top(self):
        first, second = PANELS[:2]
        self.assertIn("podgate_upstream_throttled_total", first["targets"][0]["expr"])
        self.assertIn("podgate_idle_budget_seconds_total", second["targets"][0]["expr"])
        for panel in (first, second):
            self.assertEqual(panel["gridPos"]["y"], 0)
            self.assertGreater(panel["gridPos"]["w"], max(p["gridPos"]["w"] for p in PANELS[2:6]))

    def test_no_two_panels_share_a_place(self):
        taken = {}
        for panel in BOARD["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24)
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    taken[x, y] = panel["title"]

    def test_rates_are_over_an_interval_that_fits_the_scrapes(self):
        for panel in PANELS:
            for target in panel["targets"]:
                for span in re.findall(r"\brate\([^\[]*\[([^\]]*)\]", target["expr"]):
                    self.assertEqual(span, "$__rate_interval", panel["title"])


class Asked(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.watched = cls.enterClassContext(Watched())

    def test_every_panel_has_data(self):
        for panel in PANELS:
            for target in panel["targets"]:
                with self.subTest(panel=panel["title"], query=target["expr"]):
                    expr = asked(target["expr"])
                    if target.get("instant"):
                        values = [value for _, value in self.watched.instant(expr)]
                    else:
                        series = self.watched.over_time(expr)
                        values = [value for _, values in series for value in values]
                    self.assertTrue([value for value in values if not math.isnan(value)])

    def test_legends_name_labels_that_are_there(self):
        for panel in PANELS:
            for target in panel["targets"]:
                for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                    with self.subTest(panel=panel["title"], label=label):
                        for labels, _ in self.watched.over_time(asked(target["expr"])):
                            self.assertIn(label, labels)

    def test_the_promises_are_kept_and_the_rest_moves(self):
        value = {
            panel["title"]: self.watched.instant(asked(panel["targets"][0]["expr"]))[0][1]
            for panel in PANELS[:6]
        }
        self.assertEqual(value["429s from Runpod"], 0)
        # How near to none depends on how busy this machine is.
        self.assertGreaterEqual(value["Budget unused while somebody waited"], 0)
        self.assertGreater(value["Fullest window"], 0.5)
        self.assertGreater(value["Refused by podgate"], 0)
        self.assertEqual(value["podgates up"], 1)

    def test_marks_and_variables_are_answered(self):
        for mark in BOARD["annotations"]["list"]:
            found = self.watched.instant(asked(mark["target"]["expr"]))
            self.assertEqual(bool(found), mark["name"] not in EMPTY, mark["name"])
        for variable in BOARD["templating"]["list"]:
            if variable["type"] == "query":
                with self.subTest(variable=variable["name"]):
                    series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                    found = self.watched.api(f"label/{label}/values", **{"match[]": asked(series)})
                    self.assertTrue(found)

    def test_what_is_scraped_is_shown(self):
        shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
        families = re.findall(r"^# TYPE (\S+)", self.watched.metrics(), re.MULTILINE)
        self.assertIn("podgate_requests_total", families)
        for family in families:
            with self.subTest(family=family):
                self.assertEqual(family in shown, family not in UNSHOWN)

    def test_every_rule_is_evaluated_and_every_record_has_data(self):
        self.watched.wait('podgate:turn_late:ratio_rate6h{operation="run"} > 0')
        groups = self.watched.api("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        self.assertTrue(rules)
        for rule in rules:
            with self.subTest(rule=rule["name"]):
                self.assertEqual(rule["health"], "ok", rule.get("lastError"))
                if rule["type"] == "recording":
                    self.assertTrue(self.watched.instant(rule["name"]))

    def test_what_alerts_ask_for_exists(self):
        groups = self.watched.api("rules")["groups"]
        for rule in (rule for group in groups for rule in group["rules"] if rule["type"] == "alerting"):
            with self.subTest(alert=rule["name"]):
                if rule["name"] not in EMPTY:
                    names = re.findall(r"[a-z_]+(?::[a-z0-9_]+)*(?=[{\[ ]|$)", rule["query"])
                    known = [name for name in names if name.startswith(("podgate", "up"))]
                    self.assertTrue(known)
                    for name in known:
                        self.assertTrue(self.watched.instant(name), name)

    def test_a_podgate_that_is_only_overloaded_raises_no_false_alarm(self):
        # What overload means, and what a machine does that is busy with other tests.
        meant = {"PodgateTurnsLateFast", "PodgateTurnsLateSlow", "PodgateQuotaNearFull", "PodgateBudgetIdle"}
        for alert in self.watched.api("alerts")["alerts"]:
            self.assertIn(alert["labels"]["alertname"], meant)


if __name__ == "__main__":
    unittest.main()
