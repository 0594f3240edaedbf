"""Kubernetes' pod security standard "restricted" (v1.29 and later), as far as our manifests can break it."""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def faults(pod):
    """What keeps a pod spec from being admitted into a restricted namespace."""
    found = []
    whole = pod.get("securityContext", {})
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(flag):
            found.append(flag)
    if whole.get("sysctls"):
        found.append("sysctls")
    for volume in pod.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            found.append(f"volume {volume['name']} is a {kind}")
    for container in pod.get("initContainers", []) + pod.get("containers", []):
        name, own = container["name"], container.get("securityContext", {})

        def effective(key):
            return own.get(key, whole.get(key))

        if own.get("privileged"):
            found.append(f"{name} is privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name} may gain privileges")
        if effective("runAsNonRoot") is not True:
            found.append(f"{name} may be root")
        if effective("runAsUser") == 0:
            found.append(f"{name} is root")
        if (effective("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name} has no seccomp profile")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            found.append(f"{name} keeps capabilities")
        if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            found.append(f"{name} has more capabilities")
        if own.get("procMount", "Default") != "Default":
            found.append(f"{name} has an odd /proc")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append(f"{name} has a port of the host")
    return found
