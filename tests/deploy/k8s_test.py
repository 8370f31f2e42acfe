"""deploy/k8s without a cluster: what can be checked of the manifests offline.

Needs PyYAML; with the package kubernetes-validate objects and pod templates are compared with Kubernetes' own schemas.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from harness import binary, main  # noqa: E402

MANIFESTS = ROOT / "deploy/k8s"
R1 = ROOT / "tests/data/configs/deepseek-r1"
# LeaderWorkerSet v1: the fields of spec and of spec.leaderWorkerTemplate, and their enumerations.
SPEC = {"replicas", "leaderWorkerTemplate", "rolloutStrategy", "startupPolicy", "networkConfig"}
TEMPLATE = {"leaderTemplate", "workerTemplate", "size", "restartPolicy", "subGroupPolicy", "volumeClaimTemplates"}


def has(module):
    return importlib.util.find_spec(module) is not None


def objects(name):
    import yaml

    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def substituted(args, values):
    for name, value in values.items():
        args = [arg.replace(f"$({name})", str(value)) for arg in args]
    return args


@unittest.skipUnless(has("yaml"), "PyYAML is not installed (Debian: python3-yaml)")
class ManifestsTest(unittest.TestCase):
    def group(self, role):
        (group,) = objects(f"{role}.yaml")
        return group

    def test_the_shape_is_that_of_the_recipe(self):
        shape = {role: self.group(role)["spec"]["leaderWorkerTemplate"]["size"] for role in ("prefill", "decode")}
        self.assertEqual(shape, {"prefill": 2, "decode": 12})

    def test_leader_worker_sets_have_the_fields_of_their_definition(self):
        for role in ("prefill", "decode"):
            group = self.group(role)
            self.assertEqual((group["apiVersion"], group["kind"]), ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"))
            self.assertLessEqual(set(group), {"apiVersion", "kind", "metadata", "spec"})
            spec = group["spec"]
            self.assertLessEqual(set(spec), SPEC)
            self.assertIn(spec["startupPolicy"], ("LeaderCreated", "LeaderReady"))
            template = spec["leaderWorkerTemplate"]
            self.assertLessEqual(set(template), TEMPLATE)
            self.assertIn(template["restartPolicy"], ("RecreateGroupOnPodRestart", "None"))

    def test_every_node_of_every_group_resolves_its_flags(self):
        for role in ("prefill", "decode"):
            template = self.group(role)["spec"]["leaderWorkerTemplate"]
            (container,) = template["workerTemplate"]["spec"]["containers"]
            for node in (0, template["size"] - 1):
                values = {
                    "LWS_GROUP_SIZE": template["size"],
                    "LWS_WORKER_INDEX": node,
                    "LWS_LEADER_ADDRESS": f"tandem-{role}-0.tandem-{role}",
                    "POD_IP": "10.0.0.1",
                }
                args = substituted(container["args"], values)
                self.assertFalse([arg for arg in args if "$(" in arg])
                args = [f"--model-path={R1}" if arg.startswith("--model-path=") else arg for arg in args]
                command = [binary(), *container["command"][1:], *args, "--check-config"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_router_names_the_leaders_and_the_ports_that_servers_have(self):
        args = objects("router.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        for role in ("prefill", "decode"):
            self.assertIn(f"http://tandem-{role}-0.tandem-{role}:30000", args)
            (container,) = self.group(role)["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
            self.assertIn("--port=30000", container["args"])
            self.assertEqual(container["ports"][0]["containerPort"], 30000)
        self.assertEqual(args[args.index("--prefill") + 2], "30001")

    def test_the_kustomization_lists_all_manifests(self):
        (kustomization,) = objects("kustomization.yaml")
        others = {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"}
        self.assertEqual(set(kustomization["resources"]), others)

    @unittest.skipUnless(has("kubernetes_validate"), "kubernetes-validate is not installed (PyPI)")
    def test_objects_and_pod_templates_fit_the_schemas_of_kubernetes(self):
        import kubernetes_validate

        checked = objects("router.yaml")
        for role in ("prefill", "decode"):
            pod = self.group(role)["spec"]["leaderWorkerTemplate"]["workerTemplate"]
            checked.append(
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": role},
                    "spec": {"selector": {"matchLabels": pod["metadata"]["labels"]}, "template": pod},
                }
            )
        for item in checked:
            kubernetes_validate.validate(item, os.environ.get("KUBERNETES_SCHEMA", "1.30"), strict=True)


if __name__ == "__main__":
    main()
