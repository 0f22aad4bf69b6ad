//! The files that libraries read by themselves: looked at first, since they would wait for ever for the other end of a pipe,
//! and read a device without an end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::error::{AwsError, chain};
use crate::{
    settings::SdkVariables,
    util::read::{ReadError, check, read},
};

/// Largest of these files, in bytes: dozens of times what is in them.
const MAX_LEN: u64 = 16 << 20;

/// Variables that name files with tokens.
const TOKENS: [&str; 2] = ["AWS_WEB_IDENTITY_TOKEN_FILE", OF_CONTAINER];
const OF_CONTAINER: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// Finds out whether what is there of these files can be read to its end: the system's certificate authorities, and what the
/// SDK finds in its environment.
///
/// # Errors
/// [`AwsError::TokenFile`], [`AwsError::CaBundle`].
pub(super) async fn check_all(authorities: Option<&Path>, variables: &SdkVariables) -> Result<(), AwsError> {
    let authorities = authorities.map(Path::to_owned);
    let tokens = TOKENS.map(|name| variables.get(name).map(PathBuf::from));
    let checked = tokio::task::spawn_blocking(move || {
        if let Some(path) = authorities {
            check_one(&path).map_err(|source| AwsError::CaBundle { path, source: Arc::new(source) })?;
        }
        let [of_identity, of_container] = tokens;
        if let Some(path) = of_identity {
            check_one(&path).map_err(|source| AwsError::TokenFile { path, source: Arc::new(source) })?;
        }
        if let Some(path) = of_container {
            check_one(&path).map_err(|source| AwsError::ContainerToken { path, source: Arc::new(source) })?;
        }
        Ok(())
    });
    // It has not panicked, and is not aborted.
    checked.await.unwrap_or(Ok(()))
}

/// Names the file in an error of the SDK, which says only that there is none.
pub(super) fn named(error: AwsError, variables: &SdkVariables) -> AwsError {
    let AwsError::CredentialSource { source } = &error else { return error };
    let Some(path) = variables.get(OF_CONTAINER).map(PathBuf::from) else { return error };
    let of_reading = chain(&**source).any(|cause| cause.is::<io::Error>());
    match read(&path, MAX_LEN) {
        Err(source) if of_reading => AwsError::ContainerToken { path, source: Arc::new(source) },
        Err(_) | Ok(_) => error,
    }
}

/// What is missing or may not be read is for whoever reads it to say.
fn check_one(path: &Path) -> Result<(), ReadError> {
    match check(path, MAX_LEN) {
        Err(ReadError::Io(_)) => Ok(()),
        // The common way to have none.
        Err(ReadError::NotRegular) if path == Path::new("/dev/null") => Ok(()),
        checked => checked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::peer_text::sentence;

    #[tokio::test]
    async fn pipes_and_devices_are_refused_before_a_library_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let of_token = |name: &'static str, path: &Path| {
            let mut variables = SdkVariables::default();
            variables.add(name, path.to_str().unwrap());
            variables
        };
        for path in [&pipe, Path::new("/dev/zero"), dir.path()] {
            let error = check_all(Some(path), &SdkVariables::default()).await.unwrap_err();
            let expected = format!("the CA bundle `{}` cannot be used: it is not a regular file", path.display());
            assert_eq!(sentence(&error), expected);
            for name in TOKENS {
                let error = check_all(None, &of_token(name, path)).await.unwrap_err();
                assert!(sentence(&error).ends_with("cannot be read: it is not a regular file"), "{error}");
            }
        }
        for fine in ["/dev/null", "/does/not/exist"].map(Path::new) {
            check_all(Some(fine), &of_token(TOKENS[0], fine)).await.unwrap();
        }
    }
}
