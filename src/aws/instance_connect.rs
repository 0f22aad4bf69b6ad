//! EC2 Instance Connect: keys that are let in for a minute.

use super::{
    Aws,
    error::{AwsError, Call},
};

const SEND: &str = "ec2-instance-connect:SendSSHPublicKey";

impl Aws {
    /// Publishes a public key, as a line of its kind and its base64, for a user of an instance: for 60 s it lets everybody
    /// in who has the other half. Whether the instance has such a user, and asks for such keys, is not known by this.
    ///
    /// # Errors
    /// [`Refusal::Absent`](super::error::Refusal::Absent) if there is no such instance; else see [`AwsError`].
    pub async fn send_ssh_public_key(&self, instance: &str, user: &str, key: &str) -> Result<(), AwsError> {
        let api = &self.inner.instance_connect;
        let call = Call { action: SEND, resource: instance, region: self.region(), host: &api.host };
        let request = api.client.send_ssh_public_key().instance_id(instance).instance_os_user(user).ssh_public_key(key);
        let answer = request.send().await.map_err(|error| self.failed(call, error))?;
        if answer.success { Ok(()) } else { Err(AwsError::malformed(SEND, "word of success")) }
    }
}

#[cfg(test)]
mod tests;
