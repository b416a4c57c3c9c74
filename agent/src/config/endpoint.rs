//! `--metadata-endpoint`: the real metadata service, as `http://ADDRESS[:PORT]`.
//!
//! An address and never a name: a name could be made to point anywhere by whoever answers DNS, and
//! the data plane looks nothing up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Where the real metadata service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataEndpoint(SocketAddr);

/// Why a text is no metadata endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected http://ADDRESS or http://ADDRESS:PORT, for example http://169.254.169.254")]
pub struct InvalidEndpoint;

impl MetadataEndpoint {
    /// The address itself.
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for MetadataEndpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let authority = text.strip_prefix("http://").ok_or(InvalidEndpoint)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let bare = authority
            .strip_prefix('[')
            .and_then(|ip| ip.strip_suffix(']'))
            .unwrap_or(authority);
        if let Ok(address) = authority.parse::<SocketAddr>() {
            return Ok(Self(address));
        }
        let ip: IpAddr = bare.parse().map_err(|_no_address| InvalidEndpoint)?;
        if ip.is_ipv6() && bare == authority {
            return Err(InvalidEndpoint);
        }
        Ok(Self(SocketAddr::new(ip, 80)))
    }
}

impl fmt::Display for MetadataEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = text.parse::<MetadataEndpoint>().map_or_else(
            |InvalidEndpoint| "refused".to_owned(),
            |endpoint| endpoint.to_string(),
        );
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn addresses_are_accepted_and_names_are_not() {
        check("http://169.254.169.254", "http://169.254.169.254:80");
        check("http://169.254.169.254/", "http://169.254.169.254:80");
        check("http://127.0.0.1:1338", "http://127.0.0.1:1338");
        check("http://[fd00:ec2::254]", "http://[fd00:ec2::254]:80");
        check("http://[fd00:ec2::254]:81", "http://[fd00:ec2::254]:81");
        check("http://fd00:ec2::254", "refused");
        check("http://localhost", "refused");
        check("https://169.254.169.254", "refused");
        check("169.254.169.254", "refused");
        check("http://169.254.169.254/latest", "refused");
    }
}
