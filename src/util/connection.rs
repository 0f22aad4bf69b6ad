//! Connections of any kind.

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of any kind: TCP, TLS, or a pipe within the process.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
