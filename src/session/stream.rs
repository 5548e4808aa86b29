//! The bytes of a session, whatever carries them: TCP, a Unix socket, TLS over either.
//!
//! Opened by [`super::connect`], read and written by [`super::connection`].

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a server: TCP or Unix socket, with or without TLS.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

pub(crate) type BoxedStream = Box<dyn ByteStream>;
