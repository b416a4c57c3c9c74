//! Rewrites an expression in Go's syntax (RE2) into the `regex` crate's.
