//! How large anything on the wire may be.
//!
//! Both sides check against these: the sender so that it never says what the other must refuse,
//! the receiver because the sender may be anyone. Where a limit comes from outside, it says so.

/// Bytes of one gRPC message in either direction. A node of 10,000 pods, each with credentials of
/// its own, needs about 20 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pods in one update. Kubernetes supports 110 a node by default and EKS 737 at most.
pub const PODS_MAX: usize = 20_000;
/// Credentials in one update: at most one for each pod.
pub const CREDENTIALS_MAX: usize = PODS_MAX;
/// Addresses of one pod: one of each family is usual, multi-homed pods have a few more.
pub const IPS_PER_POD_MAX: usize = 16;
/// Bytes of a Kubernetes object name (DNS subdomain, RFC 1123), a uid, or a key id.
pub const NAME_BYTES_MAX: usize = 253;
/// Bytes of a role ARN (STS API: `RoleArn`, 20 to 2048).
pub const ROLE_ARN_BYTES_MAX: usize = 2048;
/// Bytes of an access key id (STS API: 16 to 128).
pub const ACCESS_KEY_ID_BYTES_MAX: usize = 128;
/// Bytes of a secret access key; real ones have 40.
pub const SECRET_ACCESS_KEY_BYTES_MAX: usize = 512;
/// Bytes of a session token. AWS states no limit and asks callers to assume none; real ones reach
/// about 2 KiB.
pub const SESSION_TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the explanation of a refusal: it travels in a response header.
pub const REFUSAL_BYTES_MAX: usize = 512;
/// Verification keys in one set: the current one, the previous, the next, per API server.
pub const KEYS_MAX: usize = 64;
/// Bytes of an RSA modulus: 8192 bits.
pub const RSA_MODULUS_BYTES_MAX: usize = 1024;
/// Bytes of an issuer URL.
pub const ISSUER_BYTES_MAX: usize = 2048;
/// Peers in one `Waiting` message.
pub const WAITING_PEERS_MAX: usize = 1024;

const _: () = assert!(
    ACCESS_KEY_ID_BYTES_MAX + SECRET_ACCESS_KEY_BYTES_MAX + SESSION_TOKEN_BYTES_MAX
        < MESSAGE_BYTES_MAX / 1024,
    "one credential is a small part of a message"
);
