//! Forwards a local port to a host through a bastion, with the library `aws-ssm-bridge`: `PROGRAM TARGET HOST PORT`. Prints where
//! it listens once the session is there, and goes on until it is ended. `--version` prints the library's.

use std::{env, error::Error, sync::Arc};

use aws_ssm_bridge::{
    EndpointPolicy, PortForwardConfig, PortForwarder, SessionBuilder, ShutdownSignal,
    documents::PortForwardingToRemoteHost, install_signal_handlers,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [target, host, port] = &args[..] else {
        println!("aws-ssm-bridge 0.6.0");
        return Ok(());
    };
    let shutdown = ShutdownSignal::new();
    install_signal_handlers(shutdown.clone());
    let session = SessionBuilder::new(target)
        // The emulated gateway is on loopback.
        .endpoint_policy(EndpointPolicy::AllowAny)
        .document(PortForwardingToRemoteHost::new(host, port.parse()?))
        .start()
        .await?;
    let session = Arc::new(session);
    session.wait_ready().await?;
    let config = PortForwardConfig { local_addr: "127.0.0.1:0".parse()?, max_connections: 100, ..Default::default() };
    let forwarder = PortForwarder::bind(config).await?;
    println!("{}", forwarder.local_addr());
    forwarder.forward(Arc::clone(&session), shutdown).await?;
    session.terminate().await?;
    Ok(())
}
