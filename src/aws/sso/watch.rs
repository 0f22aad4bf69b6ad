//! A sign-in that is looked after while tunnels are open: renewed, its end foretold, and a new one taken when there is one.

use std::time::{Duration, SystemTime};

use tokio::time::{sleep, timeout};

use super::SignIn;
use crate::{
    aws::{
        cache::{CredentialCache, SignInEnd},
        identity::Ambient,
    },
    clock,
};

/// Time between two looks at a sign-in that is good.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two looks at the file of a token that is to be replaced by a person.
const FILE_INTERVAL: Duration = Duration::from_secs(2);

/// From when on somebody may be about to sign in again.
const NEAR: Duration = Duration::from_secs(3600);

/// Renews the sign-in that credentials rest on, tells the cache when it ends and that it has ended, and has credentials loaded
/// when somebody has signed in again. Never ends.
///
/// # Cancel safety
/// Can be dropped at any time and called again.
pub(in crate::aws) async fn watch(ambient: &Ambient, cache: &CredentialCache) {
    loop {
        // Files are rewritten; what is wrong with them is said by those who need credentials.
        let Ok(Some(sign_in)) = ambient.sign_in().await else {
            cache.signed_in(None).await;
            sleep(LOOK_INTERVAL).await;
            continue;
        };
        let seen = sign_in.digest();
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        let (is_awaited, pause) = match sign_in.renew().await {
            Ok(validity) => {
                let left = validity.expires.duration_since(now).unwrap_or_default();
                let ends = validity.ends();
                let end = ends.map(|at| SignInEnd { profile: sign_in.profile().to_owned(), at });
                // A token may have been revoked before its time.
                let is_refused = cache.signed_in(end).await;
                (is_refused || (ends.is_some() && left < NEAR), left.clamp(FILE_INTERVAL, LOOK_INTERVAL))
            }
            Err(error) => {
                let is_over = error.wants_sign_in();
                if is_over {
                    cache.signed_out(error);
                }
                (is_over, LOOK_INTERVAL)
            }
        };
        if is_awaited {
            let _replaced = timeout(pause, replaced(&sign_in, seen)).await;
        } else {
            sleep(pause).await;
        }
    }
}

async fn replaced(sign_in: &SignIn, seen: Option<[u8; 32]>) {
    while sign_in.digest() == seen {
        sleep(FILE_INTERVAL).await;
    }
}
