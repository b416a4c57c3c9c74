//! The kiam agent.
pub mod config;
