//! Listen addresses as Go writes them: `127.0.0.1:9620`, `[::1]:9620`, `localhost:9620`, `:9620`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(SocketAddr);

/// The same, or nothing when the flag is empty, which is how kiam's charts switch a port off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalListen(pub Option<Listen>);

/// Why a text is no listen address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected ADDRESS:PORT, for example 127.0.0.1:9620, [::1]:9620 or :9620")]
pub struct InvalidListen;

impl Listen {
    /// The address itself.
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or(InvalidListen)?;
        let port = port.parse().map_err(|_no_port| InvalidListen)?;
        let ip = match host {
            // Both families: the socket takes IPv4 in IPv6 clothes.
            "" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => return Err(InvalidListen),
        };
        Ok(Self(SocketAddr::new(ip, port)))
    }
}

impl FromStr for OptionalListen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|listen| Self(Some(listen)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = text.parse::<OptionalListen>().map_or_else(
            |InvalidListen| "refused".to_owned(),
            |listen| match listen.0 {
                Some(listen) => listen.address().to_string(),
                None => "off".to_owned(),
            },
        );
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn every_form_go_takes_for_a_local_address() {
        check("", "off");
        check("127.0.0.1:9620", "127.0.0.1:9620");
        check("localhost:9620", "127.0.0.1:9620");
        check(":9620", "[::]:9620");
        check("0.0.0.0:9620", "0.0.0.0:9620");
        check("[::1]:9620", "[::1]:9620");
        check("127.0.0.1:0", "127.0.0.1:0");
    }

    #[test]
    fn the_rest_is_refused() {
        check("9620", "refused");
        check("127.0.0.1", "refused");
        check("example.org:80", "refused");
        check("127.0.0.1:http", "refused");
        check(":65536", "refused");
    }
}
