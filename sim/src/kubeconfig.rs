//! The file that leads `kubectl`, `kube` and every other client to a cluster.
//!
//! It is written as JSON, which every YAML reader accepts, so that no value needs quoting rules.

use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::certificates::write_atomically;

/// What a client must know to reach a cluster.
#[derive(Clone)]
pub struct Kubeconfig {
    /// The API server's address, for instance `https://127.0.0.1:6443`.
    pub server: String,
    /// The authority to trust, in PEM; `None` over plain HTTP.
    pub authority_pem: Option<String>,
    /// The bearer token to present, if the cluster asks for one.
    pub token: Option<String>,
    /// The namespace meant when none is named.
    pub namespace: String,
}

impl std::fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubeconfig")
            .field("server", &self.server)
            .field("token", &self.token.as_ref().map(|_| "[REDACTED]"))
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Kubeconfig {
    /// Of a cluster that asks for no token and is reached over plain HTTP.
    pub fn plain(server: String) -> Self {
        Self {
            server,
            authority_pem: None,
            token: None,
            namespace: "default".to_owned(),
        }
    }

    /// The file's content.
    pub fn to_json(&self) -> Value {
        let mut cluster = json!({"server": self.server});
        if let (Some(pem), Some(cluster)) = (&self.authority_pem, cluster.as_object_mut()) {
            cluster.insert(
                "certificate-authority-data".into(),
                STANDARD.encode(pem).into(),
            );
        }
        let user = self
            .token
            .as_ref()
            .map_or_else(|| json!({}), |token| json!({"token": token}));
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "sim",
            "clusters": [{"name": "sim", "cluster": cluster}],
            "users": [{"name": "sim", "user": user}],
            "contexts": [{
                "name": "sim",
                "context": {"cluster": "sim", "user": "sim", "namespace": self.namespace},
            }],
        })
    }

    /// Writes the file in one step, readable by its owner alone (it may hold a token).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(&self.to_json())?;
        text.push('\n');
        write_atomically(path, &text, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::Kubeconfig;

    #[test]
    fn the_authority_travels_as_base64_and_the_token_is_not_printed() {
        let config = Kubeconfig {
            server: "https://127.0.0.1:1".to_owned(),
            authority_pem: Some("PEM".to_owned()),
            token: Some("secret".to_owned()),
            namespace: "default".to_owned(),
        };
        let json = config.to_json();
        assert_eq!(
            json["clusters"][0]["cluster"]["certificate-authority-data"],
            "UEVN"
        );
        assert_eq!(json["users"][0]["user"]["token"], "secret");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
