"""The Helm chart, by Helm's own library: what it renders is what kustomize builds."""

import copy
import os
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml

from common import DEPLOY, PODGATE, documents, kustomized, pod_of, podgate_of, run
from restricted import faults

CHART = DEPLOY / "helm/podgate"
VERSIONS = ("1.29", kubernetes_validate.latest_version())
EVERYTHING = {
    "pods": 4,
    "image": {"repository": "registry.example.com/podgate", "tag": "1", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "config": {"upstream": {"api_key": {"env": "RUNPOD_API_KEY"}, "allow_remote_injection": True}},
    "env": [{"name": "RUNPOD_API_KEY", "valueFrom": {"secretKeyRef": {"name": "runpod", "key": "api-key"}}}],
    "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
    "podAnnotations": {"c": "d"},
    "podLabels": {"e": "f"},
    "nodeSelector": {"g": "h"},
    "tolerations": [{"key": "i", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
    "networkPolicy": {"enabled": True},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
}


def by_kind(manifests):
    return {(one["kind"], one["metadata"].get("labels", {}).get("grafana_dashboard")): one for one in manifests}


@unittest.skipUnless(os.environ.get("PODGATE_TEST_FULL"), "needs Helm's library: tests/deploy/run --full")
class Chart(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Seventy megabytes: only where it is asked for.
        import helm_python

        cls.helm = helm_python
        cls.chart = cls.enterClassContext(helm_python.chart.Chart.load(CHART))

    def rendered(self, values=None):
        pages = self.chart.render(values or {}, name="podgate", namespace="podgate")
        return [
            one for path, text in sorted(pages.items()) if path.endswith(".yaml") for one in documents(text)
        ]

    def assert_same(self, ours, theirs):
        """But for what only one of the two tools has."""
        ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
        name = theirs["metadata"]["name"]
        if ours["kind"] == "ConfigMap" and "podgate.yaml" in ours["data"]:
            theirs["metadata"]["name"] = name.rsplit("-", 1)[0]
            for one in (ours, theirs):
                one["data"] = yaml.safe_load(one["data"]["podgate.yaml"])
        for labels in (ours["metadata"]["labels"], (pod_of(ours) or {}).get("metadata", {}).get("labels", {})):
            self.assertEqual(labels.pop("app.kubernetes.io/managed-by", "Helm"), "Helm")
            self.assertEqual(labels.pop("helm.sh/chart", "podgate-0.1.0"), "podgate-0.1.0")
        if ours["kind"] == "Deployment":
            # How either makes a roll-out of a change: by an annotation, by the ConfigMap's name.
            checksum = pod_of(ours)["metadata"].pop("annotations").pop("checksum/config")
            self.assertEqual(len(checksum), 64)
            volume = pod_of(theirs)["spec"]["volumes"][0]["configMap"]
            self.assertRegex(volume["name"], "^podgate-")
            volume["name"] = "podgate"
        ours["metadata"].pop("namespace", None)
        theirs["metadata"].pop("namespace", None)
        self.assertEqual(ours, theirs)

    def test_helm_finds_nothing_to_complain_about(self):
        found = self.helm.chart.lint(str(CHART), {})
        self.assertEqual([one for one in found["messages"] if one["severity"] > 1], [])

    def test_as_it_comes_it_is_the_base(self):
        ours, base = self.rendered(), kustomized(DEPLOY / "kustomize/base")
        self.assertEqual(set(by_kind(ours)), set(by_kind(base)))
        for kind, manifest in by_kind(ours).items():
            with self.subTest(kind=kind):
                self.assert_same(manifest, by_kind(base)[kind])

    def test_network_policy_and_rules_are_those_of_the_components(self):
        ours = by_kind(self.rendered({"networkPolicy": {"enabled": True}, "monitoring": {"enabled": True}}))
        theirs = by_kind(kustomized(DEPLOY / "kustomize/overlays/monitored-service"))
        self.assertEqual(set(ours), set(theirs))
        for kind in (("NetworkPolicy", None), ("PrometheusRule", None), ("PodMonitor", None), ("ConfigMap", "1")):
            for part in ("spec", "data"):
                want, have = theirs[kind].get(part), ours[kind].get(part)
                if kind[0] == "PodMonitor":
                    # There is one release to watch, and no sidecar.
                    want, have = want["podMetricsEndpoints"] if want else None, have and have["podMetricsEndpoints"]
                self.assertEqual(have, want, kind)

    def test_one_pod_is_the_single_overlay(self):
        ours, theirs = by_kind(self.rendered({"pods": 1})), by_kind(kustomized(DEPLOY / "kustomize/overlays/single"))
        self.assertEqual(set(ours), set(theirs))
        for kind, manifest in ours.items():
            with self.subTest(kind=kind):
                self.assert_same(manifest, theirs[kind])

    def test_every_value_makes_something_a_cluster_takes(self):
        for manifest in self.rendered(EVERYTHING):
            with self.subTest(kind=manifest["kind"]):
                if not manifest["apiVersion"].startswith("monitoring."):
                    for version in VERSIONS:
                        kubernetes_validate.validate(manifest, version, strict=True)
                if podgate_of(manifest):
                    self.assertEqual(faults(pod_of(manifest)["spec"]), [])

    def test_every_value_is_used(self):
        plain, changed = self.rendered(), yaml.safe_dump(self.rendered(EVERYTHING))
        self.assertNotIn("NetworkPolicy", {one["kind"] for one in plain})
        for word in ("registry.example.com/podgate:1", "Always", "pull", "LoadBalancer", "/etc/ca", "high", "release: prometheus"):
            self.assertIn(word, changed)

    def test_podgate_takes_the_configuration_and_shares_come_from_the_pods(self):
        for values, replicas in [({}, 3), (EVERYTHING, 5), ({"pods": 1}, 1), ({"config": {"replicas": 9}}, 9)]:
            text = by_kind(self.rendered(values))["ConfigMap", None]["data"]["podgate.yaml"]
            with self.subTest(values=values), tempfile.TemporaryDirectory() as folder:
                self.assertEqual(yaml.safe_load(text)["replicas"], replicas)
                path = Path(folder) / "podgate.yaml"
                path.write_text(text)
                self.assertIn(": ok", run(PODGATE, "check", path))

    def test_a_slip_in_the_values_is_refused(self):
        self.chart.validate_schema({})
        self.chart.validate_schema(EVERYTHING)
        for values in (
            {"replicaCount": 3},
            {"pods": 0},
            {"image": {"pullPolicy": "Sometimes"}},
            {"monitoring": {"enabled": "yes"}},
            {"config": {"listen": "8080"}},
        ):
            with self.subTest(values=values), self.assertRaises(self.helm.errors.HelmError):
                self.chart.validate_schema(values)


if __name__ == "__main__":
    unittest.main()
