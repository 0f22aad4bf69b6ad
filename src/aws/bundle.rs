//! Bundles of certificate authorities: PEM files as people have them.
//!
//! Invariants:
//!
//! * Every block of a bundle is a certificate that is trusted, or named: nothing is lost in silence.
//! * What is in the file is never shown, but for where it is and what kind it says it is of.

use std::{path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{RootCertStore, pki_types::CertificateDer};

use super::{error::AwsError, profile::ProfileSettings};
use crate::{settings::AwsSettings, util::read::read};

/// Largest bundle, in bytes; those of systems have some 250 KB.
const MAX_LEN: u64 = 16 << 20;

/// Additional certificate authorities, checked once so that nothing stumbles over them later.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
}

/// What is wrong with a bundle that can be read.
#[derive(Debug, thiserror::Error)]
enum BundleError {
    #[error("it is in DER format, but must be PEM: convert it with `openssl x509 -inform DER -in FILE -out FILE.pem`")]
    Der,
    #[error("it has no certificates")]
    Empty,
    #[error("line {line} looks like the beginning or end of a block, but does not have five dashes on both sides")]
    Header { line: usize },
    #[error("the block `{kind}` that begins on line {line} has no end")]
    Endless { kind: String, line: usize },
    #[error("the certificate that begins on line {line} is not base64")]
    Base64 { line: usize },
    #[error("the certificate that begins on line {line} cannot be parsed")]
    Certificate {
        line: usize,
        #[source]
        source: rustls::Error,
    },
}

impl Bundle {
    /// Reads the one that the settings or the profile name.
    ///
    /// # Errors
    /// [`AwsError::CaBundle`].
    pub(super) async fn of(settings: &AwsSettings, profile: &ProfileSettings) -> Result<Option<Self>, AwsError> {
        match settings.ca_bundle.as_ref().or(profile.ca_bundle.as_ref()) {
            Some(path) => Self::read(path).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads a bundle.
    ///
    /// # Errors
    /// [`AwsError::CaBundle`].
    pub(super) async fn read(path: &Path) -> Result<Self, AwsError> {
        let failed = |source| AwsError::CaBundle { path: path.to_owned(), source };
        let file = path.to_owned();
        let bytes = tokio::task::spawn_blocking(move || read(&file, MAX_LEN)).await;
        let bytes = bytes.map_err(|error| failed(Arc::new(error)))?.map_err(|error| failed(Arc::new(error)))?;
        let (bundle, left_out) = Self::parse(&bytes).map_err(|error| failed(Arc::new(error)))?;
        for left_out in left_out {
            tracing::warn!(bundle = %path.display(), "{left_out}");
        }
        Ok(bundle)
    }

    /// Returns the certificates, and sentences about what was left out.
    fn parse(bytes: &[u8]) -> Result<(Self, Vec<String>), BundleError> {
        let text = String::from_utf8_lossy(bytes);
        let (mut certificates, mut left_out, mut unusable) = (Vec::new(), Vec::new(), None);
        for block in Blocks::of(&text) {
            let Block { kind, line, body } = match block {
                // A sentence between the blocks may have such words in it.
                Err(error @ BundleError::Header { .. }) => {
                    left_out.push(format!("{error}: ignored"));
                    unusable.get_or_insert(error);
                    continue;
                }
                block => block?,
            };
            let der = match kind {
                "CERTIFICATE" | "X509 CERTIFICATE" => decode(body),
                // What OpenSSL trusts it for stands behind the certificate itself.
                "TRUSTED CERTIFICATE" => decode(body).map(first_value),
                _ => {
                    left_out.push(format!("the block `{}` on line {line} is not a certificate: ignored", shown(kind)));
                    continue;
                }
            };
            let der = CertificateDer::from(der.ok_or(BundleError::Base64 { line })?);
            match RootCertStore::empty().add(der.clone()) {
                Ok(()) => certificates.push(der),
                Err(source) => {
                    left_out.push(format!("the certificate on line {line} cannot be used: {source}: ignored"));
                    unusable.get_or_insert(BundleError::Certificate { line, source });
                }
            }
        }
        match (certificates.is_empty(), unusable) {
            (false, _) => Ok((Self { certificates }, left_out)),
            (true, Some(error)) => Err(error),
            (true, None) if bytes.starts_with(&[0x30, 0x82]) => Err(BundleError::Der),
            (true, None) => Err(BundleError::Empty),
        }
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Returns them in the plainest PEM.
    pub(super) fn pem(&self) -> Vec<u8> {
        let block = |der: &CertificateDer<'_>| {
            let base64 = STANDARD.encode(der);
            let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
        };
        self.certificates.iter().map(block).collect::<String>().into_bytes()
    }
}

/// A block of a PEM file.
struct Block<'a> {
    kind: &'a str,
    /// Where it begins, from 1.
    line: usize,
    body: &'a str,
}

/// The blocks of a PEM file. Text before, between and behind them is comment; they need no lines of their own.
struct Blocks<'a> {
    rest: &'a str,
    /// That of the rest, from 1.
    line: usize,
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

impl<'a> Blocks<'a> {
    fn of(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// Leaves a piece behind.
    fn skip(&mut self, len: usize) {
        let (piece, rest) = self.rest.split_at(len);
        self.line += piece.bytes().filter(|byte| *byte == b'\n').count();
        self.rest = rest;
    }

    /// Returns where the next block begins, which is the end of the text if there is none.
    fn until_begin(&self) -> usize {
        self.rest.find(BEGIN).unwrap_or(self.rest.len())
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, BundleError>;

    fn next(&mut self) -> Option<Self::Item> {
        let begin = self.until_begin();
        if let Some(end) = self.rest[..begin].find(END) {
            self.skip(end);
            let line = self.line;
            self.skip(END.len());
            return Some(Err(BundleError::Header { line }));
        }
        self.skip(begin);
        let line = self.line;
        let behind = self.rest.strip_prefix(BEGIN)?;
        let Some((kind, _)) = behind.split_once("-----").filter(|(kind, _)| !kind.contains('\n')) else {
            self.skip(BEGIN.len());
            // What would have been its end is no other fault.
            if let Some(end) = self.rest[..self.until_begin()].find(END) {
                self.skip(end + END.len());
            }
            return Some(Err(BundleError::Header { line }));
        };
        self.skip(BEGIN.len() + kind.len() + 5);
        let end = format!("{END}{kind}-----");
        // The end that is found may be that of a later block.
        let body = self.rest.split_once(&end).map(|(body, _)| body).filter(|body| !body.contains(BEGIN));
        let Some(body) = body else {
            self.rest = "";
            return Some(Err(BundleError::Endless { kind: shown(kind), line }));
        };
        self.skip(body.len() + end.len());
        Some(Ok(Block { kind, line, body }))
    }
}

/// Makes the kind of a block fit a sentence.
fn shown(kind: &str) -> String {
    kind.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ' ').take(40).collect()
}

/// Decodes base64 with line ends in it, or what stands for them where a file was once a variable.
fn decode(body: &str) -> Option<Vec<u8>> {
    let body = body.replace("\\n", "").replace("\\r", "");
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(body).ok()
}

/// Returns the first value of DER.
fn first_value(mut der: Vec<u8>) -> Vec<u8> {
    let len = match der.get(1) {
        Some(len @ 0..=0x7f) => 2 + usize::from(*len),
        Some(count @ 0x81..=0x84) => {
            let count = usize::from(count & 0x7f);
            let digits = der.get(2..2 + count).unwrap_or_default();
            let len = digits.iter().fold(0_usize, |len, digit| len << 8 | usize::from(*digit));
            len.saturating_add(2 + count)
        }
        Some(_) | None => der.len(),
    };
    der.truncate(len);
    der
}

#[cfg(test)]
#[cfg(feature = "demo")]
mod tests {
    use super::*;
    use crate::util::peer_text::sentence;

    fn certificate() -> Vec<u8> {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        key.cert.der().to_vec()
    }

    fn block(kind: &str, der: &[u8]) -> String {
        format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
    }

    fn parsed(text: &str) -> (usize, Vec<String>) {
        let (bundle, left_out) = Bundle::parse(text.as_bytes()).unwrap();
        (bundle.certificates.len(), left_out)
    }

    #[tokio::test]
    async fn names_a_bundle_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let name = format!("the CA bundle `{}` cannot be used: ", path.display());
        let error = async |content: Option<&[u8]>| {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            sentence(&Bundle::read(&path).await.unwrap_err()).strip_prefix(&name).unwrap().to_owned()
        };
        assert!(error(None).await.contains("No such file"));
        assert_eq!(error(Some(b"hello")).await, "it has no certificates");
        let damaged = b"# x\n-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
        assert_eq!(error(Some(damaged)).await, "the certificate that begins on line 2 is not base64");
        let short = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(error(Some(short)).await.starts_with("the certificate that begins on line 1 cannot be parsed: "));
        let endless = b"-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert_eq!(error(Some(endless)).await, "the block `CERTIFICATE` that begins on line 1 has no end");
        assert!(error(Some(&certificate())).await.starts_with("it is in DER format"));
        let folder = sentence(&Bundle::read(folder.path()).await.unwrap_err());
        assert!(folder.ends_with("cannot be used: it is not a regular file"), "{folder}");
    }

    #[test]
    fn every_block_of_a_bundle_is_read_or_named() {
        let (one, two) = (certificate(), certificate());
        let trusted = [&one[..], &[0x30, 0x03, 0x02, 0x01, 0x01]].concat();
        let bundle = [
            "# Corporate CA\r\n".to_owned(),
            block("TRUSTED CERTIFICATE", &trusted),
            "Subject: x\n".to_owned(),
            block("CERTIFICATE", &two),
            block("PRIVATE KEY", b"hunter2"),
            block("X509 CERTIFICATE", &one),
        ];
        let (count, left_out) = parsed(&bundle.concat());
        assert_eq!(count, 3);
        assert_eq!(left_out, ["the block `PRIVATE KEY` on line 9 is not a certificate: ignored"]);
        // On one line, with line ends written out, and with line ends of another system.
        let plain = block("CERTIFICATE", &two);
        for text in
            [plain.replace('\n', ""), plain.replace('\n', "\\n"), plain.replace('\n', "\r\n"), plain.replace('\n', " ")]
        {
            assert_eq!(parsed(&text), (1, Vec::new()), "{text}");
        }
        // One that cannot be used takes nothing away from the others.
        let (count, left_out) = parsed(&(block("CERTIFICATE", b"no") + &plain));
        assert_eq!(count, 1);
        assert!(left_out[0].starts_with("the certificate on line 1 cannot be used: "), "{left_out:?}");
    }

    #[test]
    fn a_damaged_header_is_named() {
        let (good, bad) = (block("CERTIFICATE", &certificate()), block("CERTIFICATE", &certificate()));
        let shorter = |from: &str, to: &str| bad.replace(from, to);
        for damaged in [
            shorter("CERTIFICATE-----\nM", "CERTIFICATE----\nM"),
            shorter("-----BEGIN", "----BEGIN"),
            shorter("-----BEGIN CERTIFICATE-----", "-----BEGIN "),
        ] {
            let (count, left_out) = parsed(&format!("# x\n{damaged}{good}"));
            assert_eq!((count, left_out.len()), (1, 1), "{left_out:?}");
            assert!(left_out[0].ends_with("five dashes on both sides: ignored"), "{left_out:?}");
            let alone = Bundle::parse(damaged.as_bytes()).unwrap_err();
            assert!(matches!(alone, BundleError::Header { .. }), "{alone}");
        }
        let (_, left_out) = parsed(&format!("{good}{}", shorter("CERTIFICATE-----\nM", "CERTIFICATE----\nM")));
        assert!(left_out[0].starts_with("line 4 looks like"), "{left_out:?}");
    }

    #[test]
    fn the_time_that_a_bundle_takes_grows_with_its_length() {
        // Counted from the start for each of them, these would be thousands of millions of lines.
        let text = "\n-----BEGIN X-----\n-----END X-----\n".repeat(100_000);
        let last = Blocks::of(&text).last().unwrap().unwrap();
        assert_eq!(last.line, 299_999);
    }

    #[test]
    fn what_the_sdk_is_given_is_what_was_read() {
        let (bundle, _) = Bundle::parse(block("CERTIFICATE", &certificate()).replace('\n', "").as_bytes()).unwrap();
        let again = Bundle::parse(&bundle.pem()).unwrap().0;
        assert_eq!(again.certificates, bundle.certificates);
        assert!(bundle.pem().split(|byte| *byte == b'\n').all(|line| line.len() <= 64));
    }
}
