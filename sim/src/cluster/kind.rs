//! The resources that exist here, and what they are called.

/// A kind of object that the cluster keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pods, with their status and binding.
    Pod,
    /// Namespaces.
    Namespace,
    /// Service accounts, with their tokens.
    ServiceAccount,
    /// Nodes, with their status.
    Node,
    /// Events, kept once and shown as core/v1 and as events.k8s.io/v1.
    Event,
}

/// The API under which a kind is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// `/api/v1`.
    Core,
    /// `/apis/events.k8s.io/v1`.
    Events,
}

impl Group {
    pub(crate) const fn api_version(self) -> &'static str {
        match self {
            Self::Core => "v1",
            Self::Events => "events.k8s.io/v1",
        }
    }

    /// The group's name, empty for core.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Core => "",
            Self::Events => "events.k8s.io",
        }
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Pod,
        Self::Namespace,
        Self::ServiceAccount,
        Self::Node,
        Self::Event,
    ];

    /// The kind as objects name it, for instance `Pod`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Node => "Node",
            Self::Event => "Event",
        }
    }

    /// The kind as paths name it, for instance `pods`.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Namespace => "namespaces",
            Self::ServiceAccount => "serviceaccounts",
            Self::Node => "nodes",
            Self::Event => "events",
        }
    }

    pub(crate) const fn singular(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
            Self::ServiceAccount => "serviceaccount",
            Self::Node => "node",
            Self::Event => "event",
        }
    }

    pub(crate) const fn short_name(self) -> &'static str {
        match self {
            Self::Pod => "po",
            Self::Namespace => "ns",
            Self::ServiceAccount => "sa",
            Self::Node => "no",
            Self::Event => "ev",
        }
    }

    pub(crate) const fn namespaced(self) -> bool {
        matches!(self, Self::Pod | Self::ServiceAccount | Self::Event)
    }

    /// Whether `…/NAME/status` exists, and the main resource therefore ignores `status`.
    pub(crate) const fn has_status(self) -> bool {
        matches!(self, Self::Pod | Self::Namespace | Self::Node)
    }

    pub(crate) fn from_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }
}
