//! Binding what others connect to.

use std::io;

use tokio::net::TcpListener;

const EVERYWHERE: &str = "[::]:";

/// Binds an address as Go writes it. Without a host, or with `[::]`, it is every address of both
/// families (the socket takes IPv4 in IPv6 clothes), or of IPv4 where the kernel has no IPv6.
pub(super) async fn listen_on(address: &str) -> io::Result<TcpListener> {
    let full = match address.strip_prefix(':') {
        Some(port) => format!("{EVERYWHERE}{port}"),
        None => address.to_owned(),
    };
    match TcpListener::bind(&full).await {
        Ok(listener) => Ok(listener),
        Err(error) => match instead(&full, &error) {
            Some(narrower) => TcpListener::bind(narrower).await,
            None => Err(error),
        },
    }
}

/// Where to listen when there is no IPv6; `None` when that is not what is wrong.
fn instead(address: &str, error: &io::Error) -> Option<String> {
    let port = address.strip_prefix(EVERYWHERE)?;
    let has_no_ipv6 = [
        rustix::io::Errno::AFNOSUPPORT,
        rustix::io::Errno::ADDRNOTAVAIL,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    has_no_ipv6.then(|| format!("0.0.0.0:{port}"))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn without_a_host_both_families_are_served() {
        let has_ipv6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
        for address in [":0", "[::]:0"] {
            let listener = listen_on(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let v4: SocketAddr = ([127, 0, 0, 1], port).into();
            TcpStream::connect(v4).await.unwrap();
            if has_ipv6 {
                TcpStream::connect(format!("[::1]:{port}")).await.unwrap();
            }
        }
        let listener = listen_on("127.0.0.1:0").await.unwrap();
        assert!(listener.local_addr().unwrap().is_ipv4());
    }

    #[test]
    fn ipv4_alone_is_for_want_of_ipv6() {
        let no_ipv6 = io::Error::from(rustix::io::Errno::AFNOSUPPORT);
        let taken = io::Error::from(rustix::io::Errno::ADDRINUSE);
        assert_eq!(instead("[::]:1", &no_ipv6).unwrap(), "0.0.0.0:1");
        assert_eq!(instead("[::]:1", &taken), None);
        assert_eq!(instead("[::1]:1", &no_ipv6), None);
    }
}
