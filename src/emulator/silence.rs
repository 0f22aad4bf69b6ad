//! Silence on a connection whose end nobody sees: what goes one way, or either, is lost from now on.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gateway::Breakable;

/// Which way is lost, as the service sees it. There is no way back.
#[derive(Debug, Default)]
pub(super) struct Silence {
    upstream: AtomicBool,
    downstream: AtomicBool,
}

impl Silence {
    /// Nothing of the client is heard any more.
    pub(super) fn lose_upstream(&self) {
        self.upstream.store(true, Ordering::Relaxed);
    }

    /// Nothing is heard by the client any more.
    pub(super) fn lose_downstream(&self) {
        self.downstream.store(true, Ordering::Relaxed);
    }
}

/// The service's end of a connection that can fall silent.
///
/// It is below the WebSocket, so that pongs are lost with everything else that goes their way.
#[derive(Debug)]
pub(super) struct Silenceable<S> {
    inner: S,
    silence: Arc<Silence>,
}

impl<S> Silenceable<S> {
    pub(super) fn new(inner: S, silence: Arc<Silence>) -> Self {
        Self { inner, silence }
    }
}

impl<S: Breakable> Breakable for Silenceable<S> {
    fn reset_on_drop(&self) {
        self.inner.reset_on_drop();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Silenceable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.silence.upstream.load(Ordering::Relaxed) {
            // Nothing will come, so nobody needs to be woken.
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Silenceable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.silence.downstream.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(data.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
