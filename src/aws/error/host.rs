//! Which host an error is about.

use std::sync::{Arc, OnceLock};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;

/// Remembers the host that a client calls, which only the SDK knows before it calls it.
#[derive(Debug, Clone)]
pub(crate) struct HostSeen {
    service: &'static str,
    host: Arc<OnceLock<String>>,
}

impl HostSeen {
    pub(crate) fn new(service: &'static str) -> Self {
        Self { service, host: Arc::default() }
    }

    pub(crate) fn name(&self) -> String {
        self.host.get().cloned().unwrap_or_else(|| self.service.to_owned())
    }
}

impl Intercept for HostSeen {
    fn name(&self) -> &'static str {
        "HostSeen"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Ok(uri) = context.request().uri().parse::<http::Uri>()
            && let Some(authority) = uri.authority()
        {
            self.host.get_or_init(|| place(authority));
        }
        Ok(())
    }
}

/// Returns host and port of a URL, and never what may stand before them: an endpoint may be given with a password.
pub(crate) fn place(authority: &http::uri::Authority) -> String {
    match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    }
}
