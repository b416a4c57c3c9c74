//! What was understood, written once at the start: one line for each group of flags.
//!
//! Nothing here is a secret: secrets come from files, and only the files are named.

use tracing::{info, warn};

use super::{Config, Intercept, Node, Pods, Server};

impl Config {
    /// Logs what was understood, and what was ignored.
    pub fn log(&self) {
        let Self {
            server,
            node,
            pods,
            intercept,
            limits,
            log: _,
            ignored,
        } = self;
        node.log();
        server.log();
        pods.log();
        intercept.log();
        info!(?limits, "limits");
        warn_of(ignored, pods, intercept);
    }
}

fn warn_of(ignored: &[&str], pods: &Pods, intercept: &Intercept) {
    if !ignored.is_empty() {
        let flags = ignored.join(" ");
        warn!(%flags, "these flags of kiam's have no meaning here and are ignored");
    }
    if pods.allow_ip_query {
        warn!("--allow-ip-query: anyone who reaches the port gets any pod's credentials");
    }
    if intercept.remove_at_exit {
        warn!("--iptables-remove: pods reach the node's own credentials while no agent runs");
    }
}

impl Node {
    fn log(&self) {
        let Self {
            name,
            admin,
            handover_dir,
            shutdown_grace,
        } = self;
        info!(node = ?name, ?admin, ?handover_dir, ?shutdown_grace, "node");
    }
}

impl Server {
    fn log(&self) {
        let Self {
            address,
            ca,
            identity,
            token_file,
            connect_timeout,
            first_update_timeout,
            keepalive,
            reconnect,
        } = self;
        info!(
            %address, ?ca, ?identity, ?token_file, ?connect_timeout, ?first_update_timeout,
            ?keepalive, ?reconnect, "server",
        );
    }
}

impl Pods {
    fn log(&self) {
        let Self {
            listen,
            workers,
            imds_v2_only,
            token_hop_limit,
            min_remaining,
            container,
            passthrough,
            region,
            availability_zone,
            allow_ip_query,
            audit_log,
        } = self;
        info!(
            %listen, ?workers, imds_v2_only, ?token_hop_limit, ?min_remaining,
            ?region, ?availability_zone, allow_ip_query, audit_log, "pods",
        );
        info!(?container, "container credentials");
        info!(?passthrough, "other metadata paths");
    }
}

impl Intercept {
    fn log(&self) {
        let Self {
            with,
            remove_at_exit,
            rules,
        } = self;
        info!(?with, ?rules, remove_at_exit, "interception");
    }
}
