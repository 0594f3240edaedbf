"""The kustomizations: they build, a cluster old or new takes them, and podgate takes what is in them."""

import copy
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml

from common import DEPLOY, PODGATE, documents, kustomized, pod_of, podgate_of, run
from restricted import faults

# The oldest Kubernetes that has native sidecars on, and the newest whose schemas there are.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
CUSTOM = {"PodMonitor", "PrometheusRule"}
KUSTOMIZE = DEPLOY / "kustomize"
BUILT = {
    path.name: kustomized(path)
    for path in [KUSTOMIZE / "base", *sorted((KUSTOMIZE / "overlays").iterdir())]
}
# The window of the documented limits, in seconds, and what podgate adds to it.
WINDOW = 10 + 0.26


def each(kind=None):
    """Every manifest with the name of its kustomization."""
    for name, manifests in BUILT.items():
        for manifest in manifests:
            if kind in (None, manifest["kind"]):
                yield name, manifest


def makers():
    """What makes pods with a podgate in them, with the configuration it mounts."""
    for name, manifest in each():
        if podgate_of(manifest):
            yield name, manifest, config_of(name, manifest)


def config_of(name, manifest):
    spec = pod_of(manifest)["spec"]
    (mount,) = (one for one in podgate_of(manifest)["volumeMounts"] if one["mountPath"] == "/etc/podgate")
    (volume,) = (one for one in spec["volumes"] if one["name"] == mount["name"])
    (config,) = (
        one["data"]
        for one in BUILT[name]
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == volume["configMap"]["name"]
    )
    return config["podgate.yaml"]


def seconds(text):
    return int(text.removesuffix("s"))


def surge(manifest):
    """The most pods at once, above those wanted."""
    if manifest["spec"].get("strategy", {}).get("type") == "Recreate":
        return 0
    return manifest["spec"]["strategy"]["rollingUpdate"]["maxSurge"]


def check(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "podgate.yaml"
        path.write_text(text)
        return run(PODGATE, "check", path)


class Kustomizations(unittest.TestCase):
    def test_the_examples_are_those_we_know(self):
        names = {"base", "hot-reload", "monitored-service", "sidecar-example", "single"}
        self.assertEqual(set(BUILT), names)
        self.assertEqual({name for name, _, _ in makers()}, names)

    def test_an_old_and_a_new_cluster_take_every_object(self):
        for version in VERSIONS:
            for name, manifest in each():
                if manifest["kind"] in CUSTOM:
                    continue
                with self.subTest(version=version, built=name, kind=manifest["kind"]):
                    kubernetes_validate.validate(manifest, version, strict=True)

    def test_the_schemas_find_what_is_misspelt(self):
        (deployment,) = (one for one in BUILT["base"] if one["kind"] == "Deployment")
        wrong = copy.deepcopy(deployment)
        wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 390
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)

    def test_pods_are_admitted_into_a_restricted_namespace(self):
        for name, manifest, _ in makers():
            with self.subTest(built=name):
                self.assertEqual(faults(pod_of(manifest)["spec"]), [])

    def test_the_restricted_profile_is_checked_at_every_point(self):
        (deployment,) = (one for one in BUILT["base"] if one["kind"] == "Deployment")
        for path, value in [
            (("hostNetwork",), True),
            (("securityContext", "runAsNonRoot"), None),
            (("securityContext", "runAsUser"), 0),
            (("securityContext", "seccompProfile"), None),
            (("containers", 0, "securityContext", "allowPrivilegeEscalation"), None),
            (("containers", 0, "securityContext", "capabilities"), {}),
            (("containers", 0, "securityContext", "privileged"), True),
            (("volumes", 0), {"name": "config", "hostPath": {"path": "/"}}),
        ]:
            pod = copy.deepcopy(pod_of(deployment)["spec"])
            at = pod
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
            with self.subTest(path=path):
                self.assertEqual(len(faults(pod)), 1)

    def test_podgate_is_hardened_beyond_that(self):
        for name, manifest, _ in makers():
            pod, container = pod_of(manifest)["spec"], podgate_of(manifest)
            own = container["securityContext"]
            with self.subTest(built=name):
                self.assertIs(own["readOnlyRootFilesystem"], True)
                self.assertEqual(own.get("runAsUser", pod["securityContext"]["runAsUser"]), 65532)
                self.assertIs(pod["automountServiceAccountToken"], False)
                self.assertNotIn("cpu", container["resources"]["limits"])
                self.assertNotIn("command", container)

    def test_podgate_takes_every_configuration(self):
        for name, _, text in makers():
            with self.subTest(built=name):
                self.assertIn(": ok", check(text))

    def test_no_roll_out_spends_more_than_the_account_has(self):
        for name, manifest, text in makers():
            pods, more = manifest["spec"]["replicas"], surge(manifest)
            container = podgate_of(manifest)
            sidecar = container.get("restartPolicy") == "Always"
            # A sidecar serves at once, beside the last window of those whose place it takes. A service's
            # pod gets its first request when that window is over.
            with self.subTest(built=name):
                if not sidecar:
                    # The one before it still takes requests for a while.
                    last = seconds(yaml.safe_load(text)["timeouts"]["shutdown_delay"]) + WINDOW
                    self.assertGreater(container["readinessProbe"]["initialDelaySeconds"], last)
                most = pods + more * (2 if sidecar else 1)
                self.assertEqual(yaml.safe_load(text)["replicas"], most)

    def test_there_is_no_autoscaler(self):
        kinds = {manifest["kind"] for _, manifest in each()}
        self.assertNotIn("HorizontalPodAutoscaler", kinds)
        self.assertIn("No HorizontalPodAutoscaler", (KUSTOMIZE / "base/kustomization.yaml").read_text())

    def test_bodies_fit_into_the_memory(self):
        size = {"Mi": 1 << 20, "MiB": 1 << 20, "Gi": 1 << 30, "GiB": 1 << 30}

        def bytes_of(text):
            number = text.rstrip("GMiB")
            return int(number) * size[text[len(number):]]

        for name, manifest, text in makers():
            limit = bytes_of(podgate_of(manifest)["resources"]["limits"]["memory"])
            bodies = bytes_of(yaml.safe_load(text)["buffers"]["total"])
            with self.subTest(built=name):
                self.assertGreaterEqual(limit, bodies + bytes_of("128Mi"))

    def test_probes_ask_for_podgate_and_not_for_the_upstream(self):
        for name, manifest, _ in makers():
            container = podgate_of(manifest)
            paths = {
                probe: container[probe]["httpGet"]["path"]
                for probe in ("startupProbe", "readinessProbe", "livenessProbe")
            }
            with self.subTest(built=name):
                self.assertEqual(paths["startupProbe"], "/readyz")
                self.assertEqual(paths["readinessProbe"], "/readyz")
                self.assertEqual(paths["livenessProbe"], "/livez")
                ports = {container[probe]["httpGet"]["port"] for probe in paths}
                self.assertEqual(ports, {"podgate-admin"})

    def test_a_pod_outlives_the_longest_call(self):
        for name, manifest, text in makers():
            timeouts = yaml.safe_load(text)["timeouts"]
            drain, delay = seconds(timeouts["drain"]), seconds(timeouts.get("shutdown_delay", "0s"))
            with self.subTest(built=name):
                # What the API holds.
                self.assertGreater(drain, 330)
                grace = pod_of(manifest)["spec"]["terminationGracePeriodSeconds"]
                self.assertGreater(grace, drain + delay + 10)

    def test_what_podgate_keeps_is_kept_beyond_its_container(self):
        for name, manifest, text in makers():
            (state,) = (
                one for one in podgate_of(manifest)["volumeMounts"] if one["mountPath"] == "/var/lib/podgate"
            )
            volumes = {one["name"]: one for one in pod_of(manifest)["spec"]["volumes"]}
            with self.subTest(built=name):
                self.assertEqual(yaml.safe_load(text)["state_dir"], state["mountPath"])
                self.assertNotIn("readOnly", state)
                self.assertIn("emptyDir", volumes[state["name"]])

    def test_no_moment_of_a_roll_out_has_fewer_pods(self):
        for name, manifest, _ in makers():
            if name != "single":
                with self.subTest(built=name):
                    self.assertEqual(manifest["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0)

    def test_ports_are_those_podgate_is_told(self):
        for name, manifest, text in makers():
            container, config = podgate_of(manifest), yaml.safe_load(text)
            env = {one["name"]: one["value"] for one in container.get("env", [])}
            listen = env.get("PODGATE_LISTEN", config.get("listen"))
            admin = env.get("PODGATE_ADMIN", config.get("admin"))
            ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
            with self.subTest(built=name):
                self.assertEqual(admin, f"0.0.0.0:{ports['podgate-admin']}")
                if "http" in ports:
                    self.assertEqual(listen, f"0.0.0.0:{ports['http']}")
                else:
                    self.assertTrue(listen.startswith("127.0.0.1:"))

    def test_everything_that_selects_finds_the_pods(self):
        for name, manifest in each():
            spec = manifest.get("spec", {})
            selector = {
                "Service": spec.get("selector"),
                "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
                "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
            }.get(manifest["kind"])
            if selector:
                (pods,) = (pod_of(maker)["metadata"]["labels"] for at, maker, _ in makers() if at == name)
                with self.subTest(built=name, kind=manifest["kind"]):
                    self.assertLessEqual(selector.items(), pods.items())
        ports = {port["name"] for _, maker, _ in makers() for port in podgate_of(maker)["ports"]}
        for name, monitor in each("PodMonitor"):
            (label,) = monitor["spec"]["selector"]["matchExpressions"]
            for _, maker, _ in makers():
                self.assertIn(pod_of(maker)["metadata"]["labels"][label["key"]], label["values"])
            (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
            self.assertIn(endpoint["port"], ports)

    def test_a_changed_configuration_is_a_roll_out_or_a_reload(self):
        name_of = {
            name: pod_of(maker)["spec"]["volumes"][0]["configMap"]["name"] for name, maker, _ in makers()
        }
        self.assertRegex(name_of["base"], r"^podgate-[a-z0-9]{10}$")
        self.assertEqual(name_of["hot-reload"], "podgate")
        for name, maker, _ in makers():
            for mount in podgate_of(maker)["volumeMounts"]:
                self.assertNotIn("subPath", mount, name)

    def test_the_monitoring_objects_are_what_is_kept_elsewhere(self):
        run(DEPLOY / "generate", "--check")
        (rule,) = (manifest for _, manifest in each("PrometheusRule"))
        self.assertEqual(rule["spec"], yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text()))
        (board,) = (
            manifest["data"]["podgate.json"]
            for _, manifest in each("ConfigMap")
            if manifest["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
        )
        self.assertEqual(board, (DEPLOY / "grafana/podgate.json").read_text())


class Sidecars(unittest.TestCase):
    """The component over things it was not written for."""

    APPS = """
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: state }
spec:
  serviceName: state
  selector: { matchLabels: { app: state } }
  template:
    metadata: { labels: { app: state } }
    spec:
      initContainers: [{ name: migrate, image: migrate }]
      containers:
      - { name: one, image: one }
      - { name: two, image: two, env: [{ name: KEPT, value: "yes" }] }
---
apiVersion: batch/v1
kind: Job
metadata: { name: work }
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: work, image: work }]
---
apiVersion: v1
kind: Service
metadata: { name: state }
spec: { selector: { app: state }, ports: [{ port: 80 }] }
"""

    @classmethod
    def setUpClass(cls):
        # Within the tree, as a kustomization names its components by relative paths.
        target = DEPLOY.parent / "target"
        target.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as folder:
            folder = Path(folder)
            (folder / "apps.yaml").write_text(cls.APPS)
            (folder / "podgate.yaml").write_text("replicas: 2\n")
            (folder / "kustomization.yaml").write_text(
                "resources: [apps.yaml]\n"
                "components: [../../deploy/kustomize/components/sidecar]\n"
                "configMapGenerator: [{ name: podgate-sidecar, files: [podgate.yaml] }]\n"
            )
            cls.built = {manifest["kind"]: manifest for manifest in kustomized(folder)}

    def test_every_workload_gets_one_and_nothing_else_is_touched(self):
        before = {one["kind"]: one for one in documents(self.APPS)}
        self.assertEqual(set(self.built), {"StatefulSet", "Job", "Service", "ConfigMap"})
        self.assertEqual(self.built["Service"], before["Service"])
        for kind in ("StatefulSet", "Job"):
            self.assertEqual(podgate_of(self.built[kind])["restartPolicy"], "Always")
            for version in VERSIONS:
                kubernetes_validate.validate(self.built[kind], version, strict=True)

    def test_it_runs_before_the_init_containers_that_may_need_it(self):
        init = pod_of(self.built["StatefulSet"])["spec"]["initContainers"]
        self.assertEqual([one["name"] for one in init], ["podgate", "migrate"])

    def test_every_container_is_told_the_address_and_keeps_what_it_had(self):
        (listen,) = (
            one["value"]
            for one in podgate_of(self.built["Job"])["env"]
            if one["name"] == "PODGATE_LISTEN"
        )
        for kind in ("StatefulSet", "Job"):
            for container in pod_of(self.built[kind])["spec"]["containers"]:
                env = {one["name"]: one["value"] for one in container["env"]}
                self.assertEqual(env["RUNPOD_ENDPOINT_BASE_URL"], f"http://{listen}/v2")
                if container["name"] == "two":
                    self.assertEqual(env["KEPT"], "yes")


if __name__ == "__main__":
    unittest.main()
