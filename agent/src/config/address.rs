//! `--server-address`: a host to look up and to check the certificate against, and a port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::ServerName;

/// Where the servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Why a text is no server address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// No port.
    #[error("expected HOST:PORT, for example kiam-server:443")]
    NoPort,
    /// A port that is no number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// Neither a DNS name nor an address.
    #[error("the host is neither a DNS name nor an IP address (an IPv6 address goes in brackets)")]
    Host,
}

impl ServerAddress {
    /// What to look up: a name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What the server's certificate must be for.
    pub fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl FromStr for ServerAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        // gRPC's own way to write an address that DNS is asked for; kiam added it itself.
        let text = text.strip_prefix("dns:///").unwrap_or(text);
        let (host, port) = text.rsplit_once(':').ok_or(InvalidAddress::NoPort)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(InvalidAddress::Port)?;
        let (host, name) = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => {
                let ip: IpAddr = v6.parse().map_err(|_no_address| InvalidAddress::Host)?;
                (v6, ServerName::from(ip))
            }
            None if host.contains(':') => return Err(InvalidAddress::Host),
            None => {
                // A trailing dot stops the resolver's search list; certificates never have it.
                let name = host.strip_suffix('.').unwrap_or(host).to_owned();
                let name = ServerName::try_from(name).map_err(|_no_name| InvalidAddress::Host)?;
                (host, name)
            }
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            name,
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = text.parse::<ServerAddress>().map_or_else(
            |error| format!("{error:?}"),
            |address| format!("{address} as {}", address.name().to_str()),
        );
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn names_and_addresses_are_accepted() {
        check("kiam-server:443", "kiam-server:443 as kiam-server");
        check("localhost:9610", "localhost:9610 as localhost");
        check("dns:///kiam-server:443", "kiam-server:443 as kiam-server");
        check("a.b.svc.:443", "a.b.svc.:443 as a.b.svc");
        check("127.0.0.1:9610", "127.0.0.1:9610 as 127.0.0.1");
        check("[::1]:9610", "[::1]:9610 as ::1");
    }

    #[test]
    fn others_are_refused() {
        check("kiam-server", "NoPort");
        check("", "NoPort");
        check("kiam-server:", "Port");
        check("kiam-server:0", "Port");
        check("kiam-server:http", "Port");
        check("kiam-server:65536", "Port");
        check(":443", "Host");
        check("::1:443", "Host");
        check("[kiam]:443", "Host");
        check("kiam server:443", "Host");
    }
}
