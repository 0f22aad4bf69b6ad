//! Values that the kernel of macOS has by name.

use std::io;

use sysctl::{Ctl, CtlValue, Sysctl, SysctlError};

/// Returns a structure, as it is.
///
/// # Errors
/// `NotFound` if there is none of this name, `PermissionDenied` if it is not for this process, and what the system says.
pub fn structure(name: &str) -> io::Result<Vec<u8>> {
    let CtlValue::Struct(bytes) = value(name)? else { return Err(io::ErrorKind::InvalidData.into()) };
    Ok(bytes)
}

/// Returns a text.
#[must_use]
pub fn text(name: &str) -> Option<String> {
    let Ok(CtlValue::String(text)) = value(name) else { return None };
    Some(text)
}

fn value(name: &str) -> io::Result<CtlValue> {
    Ctl::new(name).and_then(|control| control.value()).map_err(|error| {
        let kind = match &error {
            SysctlError::IoError(error) => error.kind(),
            SysctlError::NotFound(_) => io::ErrorKind::NotFound,
            SysctlError::NoReadAccess => io::ErrorKind::PermissionDenied,
            SysctlError::ExtractionError
            | SysctlError::ParseError
            | SysctlError::MissingImplementation
            | SysctlError::Utf8Error(_)
            | SysctlError::NoWriteAccess
            | SysctlError::NotSupported
            | SysctlError::ShortRead { .. }
            | SysctlError::InvalidCStr(_)
            | SysctlError::InvalidCString(_) => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    })
}
