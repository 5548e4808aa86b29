"""Renders the chart with Helm's own engine for several sets of values, and checks what comes out with Kubernetes' schemas.

Called by deploy/check. What a mistaken value leads to is checked, too: the chart refuses it by its schema.
"""

import kubernetes_validate
import yaml
from helm_python import Chart, lint

CHART = "deploy/helm/headwater"
URLS = {"source": "postgresql://a@db/forum", "destination": "postgresql://b@other/forum"}
GOOD = {
    "addresses": {"urls": URLS},
    "a Secret of one's own": {"urls": {"existingSecret": "mine"}, "certificates": {"existingSecret": "authorities"}},
    "everything": {
        "urls": URLS,
        "replicas": 3,
        "imagePullSecrets": [{"name": "registry"}],
        "extraEnv": [{"name": "RUST_LOG", "value": "headwater=debug"}],
        "podAnnotations": {"team": "forum"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "database", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "networkPolicy": {"databasePorts": [5432, 6543]},
        "serviceMonitor": {"enabled": True},
    },
    "as little as possible": {
        "urls": URLS,
        "replicas": 1,
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}
BAD = {
    "no addresses": {},
    "half of the addresses": {"urls": {"source": "postgresql://a@db/forum"}},
    "no instance": {"urls": URLS, "replicas": 0},
    "a key that there is none of": {"urls": URLS, "replica": 2},
    "a port that is none": {"urls": URLS, "networkPolicy": {"databasePorts": ["postgresql"]}},
}


def manifests(rendered):
    """The objects of a rendered chart; its notes are text."""
    for path, text in sorted(rendered.items()):
        if path.endswith(".yaml"):
            yield from (one for one in yaml.safe_load_all(text) if one)


def check_good(chart, what, values):
    found = list(manifests(chart.render(values, name="forum", namespace="databases")))
    for one in found:
        # A ServiceMonitor is the Prometheus operator's own kind, which no schema of Kubernetes describes.
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            for version in ("1.29", "1.33"):
                kubernetes_validate.validate(one, version, strict=True)
    kinds = {one["kind"]: one for one in found}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert kinds["Service"]["spec"]["selector"].items() <= kinds["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert container["readinessProbe"]["httpGet"]["path"] == "/rolloutz", "a standby is ready"
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    secret = container["envFrom"][0]["secretRef"]["name"]
    assert ("Secret" in kinds) == (secret == "forum"), "the addresses come from one place"
    print(f"Helm: {what}:", ", ".join(sorted(kinds)))


def main():
    messages = [m for m in lint(CHART, values=GOOD["addresses"])["messages"] if m["severity"] > 1]
    assert not messages, messages
    with Chart.load(CHART) as chart:
        for what, values in GOOD.items():
            check_good(chart, what, values)
        for what, values in BAD.items():
            try:
                chart.render(values, name="forum", namespace="databases")
            except Exception as refused:
                print(f"Helm: refused: {what}: {str(refused).splitlines()[-1].strip()}")
            else:
                raise AssertionError(f"not refused: {what}")


main()
