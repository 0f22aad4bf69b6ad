//! EC2 Instance Connect: keys that the SSH servers of instances let in for a while, and endpoints that lead to them.
//!
//! The servers are real ones, of whoever has started the emulator.

mod tunnel;

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};

pub(super) use self::tunnel::serve;
use super::{
    api::{ApiError, Call},
    fleet::InstanceState,
    http::{FullRequest, Response, response},
    journal::Event,
    world::{World, lock},
};

/// What operations are called in the protocol, JSON 1.1.
pub(super) const TARGET_PREFIX: &str = "AWSEC2InstanceConnectService.";

/// Lengths that a key may have, in bytes.
const KEY_LEN: std::ops::RangeInclusive<usize> = 80..=4096;

/// Longest name of a user.
const MAX_USER_LEN: usize = 32;

/// The SSH server of an instance.
#[derive(Debug, Clone)]
pub struct SshServerConfig {
    /// Where it listens on this machine, whatever the instance's addresses are.
    pub address: SocketAddr,
    /// The user for whom the instance asks for keys.
    pub user: String,
    /// The file in which the server looks for them.
    pub keys: PathBuf,
    /// How long a key is let in; 60 s.
    pub key_life: Duration,
    /// Whether the instance asks for keys at all.
    pub installed: bool,
}

impl SshServerConfig {
    /// One that lets in who has a key in a file.
    #[must_use]
    pub fn new(address: SocketAddr, user: impl Into<String>, keys: impl Into<PathBuf>) -> Self {
        let key_life = Duration::from_secs(60);
        Self { address, user: user.into(), keys: keys.into(), key_life, installed: true }
    }
}

pub(super) fn answer(call: &Call<'_>, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    let input: Value = serde_json::from_slice(&request.body)
        .map_err(|_| ApiError::new(400, "SerializationException", "the body is not JSON"))?;
    if operation != "SendSSHPublicKey" {
        return Err(ApiError::new(400, "UnknownOperationException", format!("no operation {operation}")));
    }
    send_key(call, &input)?;
    let output = json!({ "RequestId": uuid::Uuid::new_v4().to_string(), "Success": true });
    Ok(response(200, "application/x-amz-json-1.1", output.to_string()))
}

/// The body of an error answer.
pub(super) fn error_document(error: &ApiError) -> Value {
    json!({ "__type": error.code, "message": error.message })
}

fn send_key(call: &Call<'_>, input: &Value) -> Result<(), ApiError> {
    let field = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default();
    let (id, user, key) = (field("InstanceId"), field("InstanceOSUser"), field("SSHPublicKey").trim());
    let invalid = |message: &str| ApiError::new(400, "InvalidArgsException", message);
    if !id.starts_with("i-") {
        return Err(invalid("Invalid instance id"));
    }
    if !(1..=MAX_USER_LEN).contains(&user.len()) {
        return Err(invalid("Invalid instance OS user"));
    }
    if !KEY_LEN.contains(&key.len()) || !key.starts_with("ssh-") || key.contains('\n') {
        return Err(invalid("Invalid SSH public key"));
    }
    call.authorize(&format!("arn:aws:ec2:{}:{}:instance/{id}", call.region, call.caller.account))?;
    let instance = call.world.fleet.find(id).filter(|_| call.region == call.world.config.region);
    let Some(instance) = instance else {
        return Err(ApiError::new(400, "EC2InstanceNotFoundException", "Instance not found"));
    };
    if instance.state != InstanceState::Running {
        let message = "Unable to connect, the instance is not in a valid state.";
        return Err(ApiError::new(400, "EC2InstanceStateInvalidException", message));
    }
    call.world.journal.record(Event::KeyPushed { instance: id.to_owned(), user: user.to_owned() });
    // What is pushed for a user that does not exist, or where nobody asks, is pushed all the same.
    match instance.config.ssh {
        Some(server) if server.installed && server.user == user => {
            let failed = |error: io::Error| ApiError::new(500, "ServiceException", error.to_string());
            let_in(call.world, server, key.to_owned()).map_err(failed)
        }
        _ => Ok(()),
    }
}

/// Has a key let in until its life is over.
fn let_in(world: &Arc<World>, server: SshServerConfig, key: String) -> io::Result<()> {
    change_keys(world, &server, |keys| keys.push(key.clone()))?;
    let (owner, world) = (world.clone(), world.clone());
    owner.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = world.stop.cancelled() => {}
            () = tokio::time::sleep(server.key_life) => {}
        }
        // One that was pushed again since has another life.
        let forget = |keys: &mut Vec<String>| {
            if let Some(at) = keys.iter().position(|known| *known == key) {
                keys.remove(at);
            }
        };
        if let Err(error) = change_keys(&world, &server, forget) {
            tracing::warn!(%error, "a key could not be taken back");
        }
        world.journal.touch();
    });
    Ok(())
}

fn change_keys(world: &World, server: &SshServerConfig, change: impl FnOnce(&mut Vec<String>)) -> io::Result<()> {
    let _alone = lock(&world.pushing);
    let text = match fs::read_to_string(&server.keys) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut keys: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut keys);
    let text: String = keys.iter().flat_map(|key| [key.as_str(), "\n"]).collect();
    let next = server.keys.with_extension("next");
    fs::write(&next, text)?;
    fs::rename(&next, &server.keys)
}
