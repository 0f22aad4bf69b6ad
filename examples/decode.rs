//! Reads data channel messages as hexadecimal text, one a line, and prints what they say.
//!
//! ```text
//! echo 00000074696e7075745f73747265616d5f64617461… | cargo run --example decode
//! ```
//!
//! Lines of a recorded exchange (JSON with `dir` and `hex`) are read too. The smux frames of payload
//! type 1 are cut per direction, so the messages of a session have to come in order.

use std::{
    collections::HashMap,
    io::{self, BufRead, Write},
    process::ExitCode,
};

use autoheal_pa::route::ssm::proto::{
    message::{Message, MessageType, PayloadType},
    smux::frame::{Frame, FrameDecoder},
};
use bytes::Bytes;

fn main() -> ExitCode {
    match run(io::stdin().lock(), io::stdout().lock()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _written = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Decodes every line; returns how many could not be decoded.
fn run(input: impl BufRead, mut out: impl Write) -> io::Result<usize> {
    let mut streams: HashMap<String, FrameDecoder> = HashMap::new();
    let mut bad = 0;
    for line in input.lines() {
        let line = line?;
        let Some((direction, hex)) = parse(line.trim()) else { continue };
        let Some(bytes) = unhex(&hex) else {
            bad += 1;
            writeln!(out, "not hexadecimal: {hex:.60}")?;
            continue;
        };
        match Message::decode(bytes) {
            Ok(message) => print(&mut out, &direction, &message, &mut streams)?,
            Err(error) => {
                bad += 1;
                writeln!(out, "{direction}not a message: {error}")?;
            }
        }
    }
    Ok(bad)
}

/// Takes a bare line, or the fields of a recorded one; `None` for lines that hold no message.
fn parse(line: &str) -> Option<(String, String)> {
    if !line.starts_with('{') {
        return (!line.is_empty()).then(|| (String::new(), line.to_owned()));
    }
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    if value["kind"] != "binary" {
        return None;
    }
    Some((format!("{} ", value["dir"].as_str()?), value["hex"].as_str()?.to_owned()))
}

fn unhex(text: &str) -> Option<Bytes> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
}

fn print(
    out: &mut impl Write,
    direction: &str,
    message: &Message,
    streams: &mut HashMap<String, FrameDecoder>,
) -> io::Result<()> {
    let header = &message.header;
    write!(out, "{direction}{} number {} id {}", header.message_type, header.sequence_number, header.id)?;
    writeln!(out, " created {} ms flags {}", header.created_ms, header.flags.0)?;
    let sequenced = matches!(header.message_type, MessageType::InputStreamData | MessageType::OutputStreamData);
    if sequenced && header.payload_type == PayloadType::Output {
        let decoder = streams.entry(format!("{direction}{}", header.message_type)).or_default();
        decoder.push(message.payload.clone());
        loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Syn(id))) => writeln!(out, "  SYN stream {id}")?,
                Ok(Some(Frame::Fin(id))) => writeln!(out, "  FIN stream {id}")?,
                Ok(Some(Frame::Psh(id, data))) => writeln!(out, "  PSH stream {id}, {} bytes", data.len())?,
                Ok(Some(Frame::Nop)) => writeln!(out, "  NOP")?,
                Ok(None) => return Ok(()),
                Err(error) => return writeln!(out, "  {error}"),
            }
        }
    }
    writeln!(out, "  {:?}, {} bytes: {}", header.payload_type, message.payload.len(), message.payload.escape_ascii())
}
