//! What a control group's path says: which container of which pod.
//!
//! Knows the shapes that kubelet and the container runtimes write; must never look at the host.

/// A container, as the path of its control group names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    /// 64 hexadecimal digits.
    pub(super) container_id: &'a str,
    /// The component that names the pod, if one does.
    pod: Option<&'a str>,
    /// The path of the container's own group, a prefix of what was read.
    pub(super) group: &'a str,
}

/// What runtimes write before the id (containerd's CRI plugin, dockershim and Docker, CRI-O, Podman).
const RUNTIME_PREFIXES: [&str; 5] = ["cri-containerd-", "docker-", "crio-", "libpod-", "containerd-"];

impl<'a> Named<'a> {
    /// The container that `path` belongs to: itself, or the group that it lies in. `None` for the host's own groups.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let mut pod = None;
        let mut end = 0;
        for component in path.split('/') {
            let start = end;
            end = start + component.len();
            // `<pod's slice>:<runtime>:<id>` names both.
            let first = component.split(':').next().unwrap_or(component);
            if is_pod(first) {
                pod = Some(first);
            }
            if let Some(container_id) = container_id(component) {
                return Some(Self { container_id, pod, group: path.get(..end)? });
            }
            end += 1;
        }
        None
    }

    /// The pod's uid in its canonical form, empty for a container without a pod.
    pub(super) fn pod_uid(&self) -> String {
        let Some(component) = self.pod else { return String::new() };
        let name = component.strip_suffix(".slice").unwrap_or(component);
        let uid = name.rsplit_once("pod").map_or(name, |(_, uid)| uid);
        // systemd gives '-' a meaning of its own, so kubelet writes '_' for it.
        uid.replace('_', "-")
    }
}

/// `pod<uid>` (cgroupfs driver) or `kubepods[-qos]-pod<uid>.slice` (systemd driver).
fn is_pod(component: &str) -> bool {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let Some((before, uid)) = name.rsplit_once("pod") else { return false };
    let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || b"-_".contains(&byte));
    is_uid && (before.is_empty() || before.ends_with('-') && before.contains("kubepods"))
}

fn container_id(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    // `<slice>:cri-containerd:<id>`, where containerd was left with the cgroupfs driver below systemd's slices.
    let name = name.rsplit(':').next().unwrap_or(name);
    let id = RUNTIME_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4a0c5e8b7d6a1290817263544536271809fafbfcfdfeff0011223344556677";
    const UID: &str = "0d1f6b0e-8a54-4f6e-9f0b-1c2d3e4f5a6b";

    /// Scenario: paths as kubelet with either driver and the common runtimes write them, also nested in a node image.
    /// Guarantees: container and pod are the same whatever the spelling.
    #[test]
    fn every_runtime_is_understood() {
        let underscored = UID.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{underscored}.slice/crio-{ID}.scope"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{underscored}.slice/docker-{ID}.scope"
            ),
            format!(
                "/system.slice/containerd.service/kubepods-besteffort-pod{underscored}.slice:cri-containerd:{ID}"
            ),
        ] {
            let named = Named::parse(&path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(named.container_id, ID, "{path}");
            assert_eq!(named.pod_uid(), UID, "{path}");
            assert_eq!(named.group, path);
        }
    }

    /// Scenario: groups that are no container's, and one inside a container.
    /// Guarantees: none is invented, and the inner one belongs to its container.
    #[test]
    fn the_host_is_not_a_container() {
        for path in [
            "/",
            "",
            "/init.scope",
            "/system.slice/ssh.service",
            "/kubepods",
            &format!("/kubepods/burstable/pod{UID}"),
        ] {
            assert_eq!(Named::parse(path), None, "{path}");
        }
        let group = format!("/kubepods/pod{UID}/{ID}");
        let inner = format!("{group}/init/worker");
        assert_eq!(Named::parse(&inner).unwrap().group, group);
        assert_eq!(Named::parse(&format!("/docker/{ID}")).unwrap().pod_uid(), "");
        assert_eq!(Named::parse(&format!("/kubepods/podinfo/crio-conmon-{ID}.scope")), None);
    }
}
