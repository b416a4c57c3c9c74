"""Every Kubernetes object is valid for the versions we claim, and holds what we promise of it.

Custom resources (cert-manager's, the Prometheus operator's) have no published schema here; they are
held against the few fields that we set.
"""

import pathlib
import re
import sys
import warnings

import kubernetes_validate
import yaml

CUSTOM = {
    ("cert-manager.io/v1", "Issuer"): {"selfSigned", "ca"},
    ("cert-manager.io/v1", "Certificate"): {
        "secretName", "isCA", "commonName", "duration", "renewBefore", "privateKey", "usages",
        "dnsNames", "ipAddresses", "issuerRef",
    },
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {"namespaceSelector", "selector", "endpoints"},
    ("monitoring.coreos.com/v1", "PodMonitor"): {"namespaceSelector", "selector", "podMetricsEndpoints"},
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups"},
}


# The chart's objects, and the examples that look after its rules.
OURS = {"kiam", "kiam-intercept-status", "kiam-intercept-remove"}

# The oldest that Chart.yaml claims, and the newest there is a schema for.
VERSIONS = ["1.26", ".".join(kubernetes_validate.latest_version().split(".")[:2])]


def name_fits(thing):
    """What the published schemas leave to the API server: a Service's name is a DNS label."""
    name = thing.get("metadata", {}).get("name", "")
    if thing["kind"] == "Service" and not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        yield f"{name} has {len(name)} characters and is no DNS label"


def promises(thing):
    """What no schema says: the security context of every container of ours."""
    spec = thing.get("spec", {})
    if thing["kind"] in ("DaemonSet", "Deployment"):
        spec = spec["template"]["spec"]
    elif thing["kind"] != "Pod":
        return
    if thing["kind"] == "Deployment" and not spec["securityContext"].get("runAsNonRoot"):
        yield "the server must not be root"
    for container in spec.get("initContainers", []) + spec["containers"]:
        name, context = container["name"], container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: readOnlyRootFilesystem"
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name}: does not drop all capabilities"
        if context.get("privileged"):
            yield f"{name}: privileged"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec.get("initContainers", []) + spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{container['name']}: mounts {mount['name']}, which is no volume"


def check(thing):
    kind = (thing.get("apiVersion"), thing.get("kind"))
    if kind in CUSTOM:
        unknown = set(thing["spec"]) - CUSTOM[kind]
        if unknown:
            yield f"fields we do not know: {sorted(unknown)}"
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except Exception as error:  # noqa: BLE001 - the library has several
            path = ".".join(map(str, getattr(error, "path", [])))
            yield f"Kubernetes {version}: {path} {getattr(error, 'message', error)}"
    yield from name_fits(thing)
    if thing.get("metadata", {}).get("labels", {}).get("app.kubernetes.io/name") in OURS:
        yield from promises(thing)


def main(folders):
    warnings.simplefilter("ignore")
    count = wrong = 0
    for folder in map(pathlib.Path, folders):
        for path in sorted(folder.rglob("*.yaml")):
            for thing in yaml.safe_load_all(path.read_text()):
                if thing is None:
                    continue
                count += 1
                for complaint in check(thing):
                    wrong += 1
                    name = thing.get("metadata", {}).get("name")
                    print(f"{path}: {thing.get('kind')} {name}: {complaint}")
    print(f"{count} objects, Kubernetes {' and '.join(VERSIONS)}, {wrong} wrong")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
