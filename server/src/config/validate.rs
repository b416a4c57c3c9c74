//! From what was typed to what may be relied on.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::args::{Args, Bygone, Command, Serve};
use super::{Base, Config, Invalid, Keeping, Task};
use crate::agent_auth::{Account, Mode};
use crate::annotations::{SESSION_DURATION_MAX, SESSION_DURATION_MIN};
use crate::arn::BaseArn;
use crate::nodes::Kind;
use crate::pods::Source;
use crate::policy::{ClusterTags, Matching, SourceIdentity};
use crate::sts::schedule::Limits;
use crate::tls::{Clients, Files};

/// Beyond this a role that another role assumes cannot go.
const CHAINED_SESSION_MAX: Duration = Duration::from_hours(1);
const AGE_MIN: Duration = Duration::from_secs(10);

pub(super) fn validate(args: Args) -> Result<Task, Invalid> {
    let Args { serve, command } = args;
    let serve = match command {
        None => serve,
        Some(Command::Server(serve)) => *serve,
        Some(Command::Health(health)) => return Ok(Task::Health(health)),
        Some(Command::Why(why)) => return Ok(Task::Why(why)),
        Some(Command::Completion { shell }) => return Ok(Task::Completion(shell)),
    };
    let print = serve.print_config;
    let config = config(serve)?;
    Ok(if print {
        Task::PrintConfig(config.shown)
    } else {
        Task::Serve(Box::new(config))
    })
}

fn refused<T>(sentence: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid::Contradiction(sentence.into()))
}

#[expect(
    clippy::too_many_lines,
    reason = "every flag is named once, here, so that one without a use does not compile"
)]
fn config(serve: Serve) -> Result<Config, Invalid> {
    let shown = serde_json::to_string_pretty(&serve)
        .map_err(|error| Invalid::Contradiction(format!("--print-config: {error}")))?;
    // No `..`: a flag that is parsed and never used does not compile.
    let Serve {
        bind,
        cert,
        key,
        ca,
        agent_auth,
        agent_service_account,
        legacy_agents,
        grpc_keepalive_time_duration,
        grpc_keepalive_timeout_duration,
        grpc_max_connection_age_duration,
        grpc_max_connection_age_grace_duration,
        kubeconfig,
        service_account_roles,
        disable_strict_namespace_regexp,
        startup_taint,
        role_base_arn,
        role_base_arn_autodetect,
        assume_role_arn,
        region,
        session,
        session_duration,
        session_tags,
        cluster_name,
        cluster_arn,
        source_identity,
        fetchers,
        sts_rate,
        admin_listen_addr,
        json_log,
        level,
        dry_run,
        print_config: _,
        bygone,
    } = serve;
    let mut warnings = Vec::new();
    let mut keeping = Keeping {
        ping_every: grpc_keepalive_time_duration.0,
        ping_timeout: grpc_keepalive_timeout_duration.0,
        age_max: grpc_max_connection_age_duration.0,
        age_grace: grpc_max_connection_age_grace_duration.0,
    };
    bygone_flags(&bygone, session_duration.0, &mut keeping, &mut warnings)?;
    check_keeping(keeping)?;
    check_session(session_duration.0, &assume_role_arn, &mut warnings)?;
    let tls = tls(cert, key, ca, agent_auth, legacy_agents, dry_run)?;
    let base = base(role_base_arn, role_base_arn_autodetect, &mut warnings)?;
    if !session_tags && (cluster_name.is_some() || cluster_arn.is_some()) {
        return refused(
            "--cluster-name and --cluster-arn are only used with --session-tags: add it, or leave them out",
        );
    }
    let source_identity = source_identity
        .map(|template| SourceIdentity::parse(&template))
        .transpose()
        .map_err(|error| Invalid::Contradiction(format!("--source-identity {error}")))?;
    if agent_auth == Mode::SharedCertificate {
        warnings.push(
            "with --agent-auth shared-certificate whoever holds an agent's certificate can have \
             every pod's credentials; move to token or certificate"
                .to_owned(),
        );
    }
    if legacy_agents {
        warnings.push(
            "with --legacy-agents whoever holds an agent's certificate can have every pod's \
             credentials; leave it out once all agents have moved"
                .to_owned(),
        );
    }
    let mut kinds = vec![Kind::Pods, Kind::Namespaces];
    if service_account_roles {
        kinds.push(Kind::ServiceAccounts);
    }
    Ok(Config {
        bind,
        admin: admin_listen_addr.filter(|address| !address.is_empty()),
        kubernetes: if kubeconfig.is_empty() {
            Source::InCluster
        } else {
            Source::Kubeconfig(kubeconfig.into())
        },
        kinds,
        clients: clients(agent_auth, tls.as_ref(), legacy_agents),
        tls,
        agent_auth,
        agent_accounts: accounts(agent_auth, &agent_service_account)?,
        base,
        assume_role: Some(assume_role_arn).filter(|role| !role.is_empty()),
        region: Some(region).filter(|region| !region.is_empty()),
        session_name: session,
        session_duration: session_duration.0,
        service_account_roles,
        session_tags: session_tags.then_some(ClusterTags {
            arn: cluster_arn,
            name: cluster_name,
        }),
        source_identity,
        matching: if disable_strict_namespace_regexp {
            Matching::Anywhere
        } else {
            Matching::Whole
        },
        limits: limits(fetchers, sts_rate)?,
        startup_taint: startup_taint.filter(|key| !key.is_empty()),
        legacy_agents,
        dry_run,
        keeping,
        level,
        json_log,
        warnings,
        shown,
    })
}

fn check_session(
    duration: Duration,
    assume_role_arn: &str,
    warnings: &mut Vec<String>,
) -> Result<(), Invalid> {
    if duration < SESSION_DURATION_MIN {
        return refused("session-duration should be at least 15 minutes");
    }
    if duration > SESSION_DURATION_MAX {
        return refused("--session-duration is more than the 12h that AWS allows: lower it");
    }
    if !assume_role_arn.is_empty() && duration > CHAINED_SESSION_MAX {
        warnings.push(
            "--session-duration is more than the 1h that AWS allows roles which are assumed \
             through --assume-role-arn; they will live for 1h"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_keeping(keeping: Keeping) -> Result<(), Invalid> {
    let Keeping {
        ping_every,
        ping_timeout,
        age_max,
        age_grace: _,
    } = keeping;
    if ping_every.is_zero() || ping_timeout.is_zero() {
        return refused(
            "--grpc-keepalive-time-duration and --grpc-keepalive-timeout-duration must be more than zero",
        );
    }
    if age_max < AGE_MIN {
        return refused(
            "--grpc-max-connection-age-duration is less than 10s: all agents would do nothing but reconnect; raise it",
        );
    }
    Ok(())
}

fn tls(
    cert: Option<std::path::PathBuf>,
    key: Option<std::path::PathBuf>,
    ca: Option<std::path::PathBuf>,
    agent_auth: Mode,
    legacy_agents: bool,
    dry_run: bool,
) -> Result<Option<Files>, Invalid> {
    let needs_ca = legacy_agents || agent_auth != Mode::Token;
    match (cert, key, ca) {
        (Some(certificate), Some(key), authority) => {
            if authority.is_none() && needs_ca && !dry_run {
                return refused(
                    "--ca is missing: agents show certificates (--agent-auth certificate, \
                     shared-certificate, or --legacy-agents), and something must verify them",
                );
            }
            Ok(Some(Files {
                certificate,
                key,
                authority,
            }))
        }
        (None, None, _) if dry_run => Ok(None),
        (None, _, _) => refused("--cert is missing: agents are only served over TLS"),
        (Some(_), None, _) => refused("--key is missing: it belongs to --cert"),
    }
}

/// With tokens, agents show no certificate; kiam's own agents and probes still do.
fn clients(agent_auth: Mode, tls: Option<&Files>, legacy_agents: bool) -> Clients {
    let authority = tls.is_some_and(|files| files.authority.is_some());
    match agent_auth {
        Mode::Certificate | Mode::SharedCertificate => Clients::Certified,
        Mode::Token if legacy_agents && authority => Clients::Optional,
        Mode::Token => Clients::Anonymous,
    }
}

fn accounts(agent_auth: Mode, given: &[String]) -> Result<Vec<Account>, Invalid> {
    match (agent_auth, given.is_empty()) {
        (Mode::Token, true) => {
            return refused(
                "--agent-auth token needs --agent-service-account NAMESPACE/NAME: without it \
                 every pod could pose as an agent",
            );
        }
        (Mode::Certificate | Mode::SharedCertificate, false) => {
            return refused(
                "--agent-service-account is only used with --agent-auth token: add that, or leave it out",
            );
        }
        (Mode::Token, false) | (Mode::Certificate | Mode::SharedCertificate, true) => {}
    }
    let account = |text: &String| {
        text.parse().map_err(|problem| {
            Invalid::Contradiction(format!("--agent-service-account {text:?} {problem}"))
        })
    };
    given.iter().map(account).collect()
}

fn base(
    given: Option<String>,
    autodetect: bool,
    warnings: &mut Vec<String>,
) -> Result<Base, Invalid> {
    let given = given.filter(|base| !base.is_empty());
    match (given, autodetect) {
        (Some(_), true) => {
            // kiam's order of preference.
            warnings.push(
                "--role-base-arn is ignored, as --role-base-arn-autodetect is given".to_owned(),
            );
            Ok(Base::Autodetect)
        }
        (None, true) => Ok(Base::Autodetect),
        (Some(base), false) => BaseArn::parse(&base)
            .map(Base::Given)
            .map_err(|error| Invalid::Contradiction(format!("--role-base-arn {base:?}: {error}"))),
        (None, false) => refused(
            "role-base-arn not specified and not auto-detected. please specify or use --role-base-arn-autodetect",
        ),
    }
}

fn limits(fetchers: usize, rate: f64) -> Result<Limits, Invalid> {
    let Some(fetchers) = NonZeroUsize::new(fetchers) else {
        return refused("--fetchers must be at least 1, or nothing would ever be fetched");
    };
    if !rate.is_finite() || rate <= 0.0 {
        return refused("--sts-rate must be more than zero, or nothing would ever be fetched");
    }
    Ok(Limits {
        fetchers,
        calls_per_s_max: rate,
    })
}

/// Takes over what old names still mean, and remarks on the rest in one warning.
fn bygone_flags(
    bygone: &Bygone,
    session_duration: Duration,
    keeping: &mut Keeping,
    warnings: &mut Vec<String>,
) -> Result<(), Invalid> {
    let Bygone {
        prefetch_buffer_size,
        sync,
        session_refresh,
        prometheus_sync_interval,
        pprof_listen_addr,
        grpc_max_connection_idle_duration,
        grpc_keepalive_time_ms,
        grpc_keepalive_timeout_ms,
        statsd,
        statsd_prefix,
        statsd_interval,
    } = bygone;
    if session_refresh.is_some_and(|refresh| refresh.0 >= session_duration) {
        return refused(
            "--session-refresh is not less than --session-duration: sessions would be replaced \
             before they begin; leave it out, they are renewed at half of their life",
        );
    }
    if let Some(every) = grpc_keepalive_time_ms {
        keeping.ping_every = every.0;
    }
    if let Some(timeout) = grpc_keepalive_timeout_ms {
        keeping.ping_timeout = timeout.0;
    }
    let given: Vec<&str> = [
        ("--prefetch-buffer-size", prefetch_buffer_size.is_some()),
        ("--sync", sync.is_some()),
        ("--session-refresh", session_refresh.is_some()),
        (
            "--prometheus-sync-interval",
            prometheus_sync_interval.is_some(),
        ),
        (
            "--pprof-listen-addr",
            pprof_listen_addr
                .as_ref()
                .is_some_and(|address| !address.is_empty()),
        ),
        (
            "--grpc-max-connection-idle-duration",
            grpc_max_connection_idle_duration.is_some(),
        ),
        (
            "--statsd",
            statsd.as_ref().is_some_and(|address| !address.is_empty()),
        ),
        ("--statsd-prefix", statsd_prefix.is_some()),
        ("--statsd-interval", statsd_interval.is_some()),
    ]
    .into_iter()
    .filter_map(|(flag, given)| given.then_some(flag))
    .collect();
    if !given.is_empty() {
        warnings.push(format!(
            "without a meaning here, ignored: {}",
            given.join(", ")
        ));
    }
    Ok(())
}
