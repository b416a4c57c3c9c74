//! What is, said slowly: which pods there are, what their namespaces permit, whose an address is.

use std::collections::{BTreeMap, BTreeSet};

/// A pod as the API shows it.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) uid: u32,
    pub(crate) node: u8,
    pub(crate) namespace: u8,
    pub(crate) role: Option<u8>,
    pub(crate) ip: Option<u8>,
    pub(crate) stops: bool,
}

/// The cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reference {
    pub(crate) pods: BTreeMap<u8, Pod>,
    /// 0: nothing, 1: role 0, 2: everything.
    pub(crate) permits: BTreeMap<u8, u8>,
    uids: u32,
}

/// What one node's agent may do, once it has been told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// The role of whoever has an address.
    pub(crate) by_ip: BTreeMap<u8, u8>,
    /// The uid of whoever has an address, with or without a role.
    pub(crate) owners: BTreeMap<u8, u32>,
    /// Roles of its pods, whether they have an address or not.
    pub(crate) roles: BTreeSet<u8>,
}

impl Reference {
    /// No pods; what each namespace permits.
    pub(crate) fn permitting(permits: &[(u8, u8)]) -> Self {
        Self {
            permits: permits.iter().copied().collect(),
            ..Self::default()
        }
    }

    pub(crate) fn bind(
        &mut self,
        pod: u8,
        node: u8,
        namespace: u8,
        role: Option<u8>,
        ip: Option<u8>,
    ) {
        self.uids += 1;
        let uid = self.uids;
        self.pods.insert(
            pod,
            Pod {
                uid,
                node,
                namespace,
                role,
                ip,
                stops: false,
            },
        );
    }

    /// The node and the address of a pod that has one.
    pub(crate) fn place(&self, pod: u8) -> Option<(u8, u8)> {
        let pod = self.pods.get(&pod)?;
        Some((pod.node, pod.ip?))
    }

    fn granted(&self, pod: &Pod) -> Option<u8> {
        let role = pod.role?;
        match self.permits.get(&pod.namespace) {
            Some(2) => Some(role),
            Some(1) if role == 0 => Some(role),
            _ => None,
        }
    }

    /// Of a node's pods the one that does not stop; of those that all stop, the newest; nobody while
    /// two do not stop.
    fn owner(&self, node: u8, ip: u8) -> Option<&Pod> {
        let claims: Vec<&Pod> = self
            .pods
            .values()
            .filter(|pod| pod.node == node && pod.ip == Some(ip))
            .collect();
        let running: Vec<&&Pod> = claims.iter().filter(|pod| !pod.stops).collect();
        match running.as_slice() {
            [] => claims.into_iter().max_by_key(|pod| pod.uid),
            [one] => Some(**one),
            _ => None,
        }
    }

    pub(crate) fn allowed(&self, node: u8) -> Allowed {
        let here = |pod: &&Pod| pod.node == node;
        let roles = self.pods.values().filter(here);
        let roles = roles.filter_map(|pod| self.granted(pod)).collect();
        let by_ip = (0..crate::IPS).filter_map(|ip| {
            let owner = self.owner(node, ip)?;
            Some((ip, self.granted(owner)?))
        });
        let owners = (0..crate::IPS).filter_map(|ip| Some((ip, self.owner(node, ip)?.uid)));
        Allowed {
            by_ip: by_ip.collect(),
            owners: owners.collect(),
            roles,
        }
    }
}
