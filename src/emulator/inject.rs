//! Puts a [`Fault`] in force: as a setting, as a command that is given again and again, or as an outage that ends.

use std::time::Duration;

use super::{Command, Destination, Emulator, Failure, Fault, Resume, Settings, Upgrade};

/// Pauses that a scripted burst sends.
const PAUSE_BURST: u32 = 20;

/// Longer than any session waits for its handshake.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// All destinations that have no entry of their own.
const ALL_DESTINATIONS: &str = "*";

impl Emulator {
    /// Puts a fault in force until the emulator stops.
    pub fn inject(&self, fault: &Fault) {
        if let Some((every, command)) = repeated(fault) {
            let world = self.world.clone();
            self.world.tasks.spawn(async move {
                loop {
                    tokio::select! {
                        biased;
                        () = world.stop.cancelled() => return,
                        () = tokio::time::sleep(every) => {}
                    }
                    world.command(&command);
                }
            });
            return;
        }
        if let Fault::BastionOffline(time) = fault {
            let bastions: Vec<String> = self.world.config.bastions.iter().map(|bastion| bastion.id.clone()).collect();
            self.update(|settings| settings.offline_bastions.extend(bastions));
            self.command(&Command::KillAgent);
            self.after(*time, |settings| settings.offline_bastions.clear());
        } else if let Fault::RestartDestinations(time) = fault {
            self.update(|settings| {
                settings.destinations.insert(ALL_DESTINATIONS.to_owned(), Destination::Refused);
            });
            self.command(&Command::CloseDestinations);
            self.after(*time, |settings| {
                settings.destinations.remove(ALL_DESTINATIONS);
            });
        } else {
            self.update(|settings| apply(settings, fault));
        }
    }

    /// Changes the settings again later.
    fn after(&self, time: Duration, change: impl FnOnce(&mut Settings) + Send + 'static) {
        let world = self.world.clone();
        self.world.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = world.stop.cancelled() => return,
                () = tokio::time::sleep(time) => {}
            }
            world.update(change);
        });
    }
}

/// What a fault does again and again, and how often.
fn repeated(fault: &Fault) -> Option<(Duration, Command)> {
    Some(match fault {
        Fault::DropWebSocket(every) => (*every, Command::CutTransport),
        Fault::Silence(every) => (*every, Command::SilenceTransport),
        Fault::SilenceUpstream(every) => (*every, Command::SilenceUpstream),
        Fault::SilenceDownstream(every) => (*every, Command::SilenceDownstream),
        Fault::HalfOpen(every) => (*every, Command::HalfOpen),
        Fault::Pause(every) => (*every, Command::Pause { messages: PAUSE_BURST, start_after: Some(*every / 4) }),
        Fault::EndSession(every) => (*every, Command::CloseChannel { output: Some("ended by the demo".to_owned()) }),
        Fault::KillAgent(every) => (*every, Command::KillAgent),
        Fault::CloseWebSocket(_)
        | Fault::BastionOffline(_)
        | Fault::RestartDestinations(_)
        | Fault::Delay(_)
        | Fault::Loss(_)
        | Fault::Duplicate(_)
        | Fault::Reorder(_)
        | Fault::Line(_)
        | Fault::LineUp(_)
        | Fault::LineDown(_)
        | Fault::RefuseResume
        | Fault::ThrottleResume(_)
        | Fault::FailStart(_)
        | Fault::RejectToken(_)
        | Fault::RefuseSignedUpgrade
        | Fault::StandardTier
        | Fault::Deny(_)
        | Fault::DenyDocument(_)
        | Fault::SilentHandshake
        | Fault::SlowAgent(_)
        | Fault::AgentVersion(_)
        | Fault::Unresolvable
        | Fault::NoAccessEntry
        | Fault::NoViewPolicy
        | Fault::RefuseDestination
        | Fault::BlackHole
        | Fault::TextFrames
        | Fault::Fragment(_)
        | Fault::WrongDigest(_)
        | Fault::WrongCertificate
        | Fault::ForeignStreamUrl(_)
        | Fault::ClockSkew(_) => return None,
    })
}

/// Puts a fault that is a setting in force.
fn apply(settings: &mut Settings, fault: &Fault) {
    match fault {
        Fault::CloseWebSocket(age) => settings.transport_lifetime = Some(*age),
        Fault::Delay(delay) => {
            settings.upstream.delay = *delay;
            settings.downstream.delay = *delay;
        }
        Fault::Loss(fraction) => {
            settings.upstream.loss = *fraction;
            settings.downstream.loss = *fraction;
        }
        Fault::Duplicate(fraction) => {
            settings.upstream.duplicate = *fraction;
            settings.downstream.duplicate = *fraction;
        }
        Fault::Reorder(fraction) => {
            settings.upstream.reorder = *fraction;
            settings.downstream.reorder = *fraction;
        }
        Fault::Line(line) => (settings.line_up, settings.line_down) = (Some(*line), Some(*line)),
        Fault::LineUp(line) => settings.line_up = Some(*line),
        Fault::LineDown(line) => settings.line_down = Some(*line),
        Fault::RefuseResume => settings.resume = Resume::Refused,
        Fault::ThrottleResume(calls) => {
            settings.failing_actions.insert("ssm:ResumeSession".to_owned(), Failure::throttled(*calls));
        }
        Fault::FailStart(calls) => {
            settings.failing_actions.insert("ssm:StartSession".to_owned(), Failure::internal(*calls));
        }
        Fault::RejectToken(tokens) => settings.rejected_tokens = *tokens,
        Fault::RefuseSignedUpgrade => settings.upgrade = Upgrade::Unsigned,
        Fault::StandardTier => settings.standard_tier = true,
        Fault::Deny(action) => {
            settings.denied_actions.insert(action.clone());
        }
        Fault::DenyDocument(name) => {
            settings.denied_documents.insert(name.clone());
        }
        Fault::SilentHandshake => settings.agent.handshake_delay = NEVER,
        Fault::SlowAgent(time) => settings.agent.handshake_delay = *time,
        Fault::AgentVersion(version) => settings.agent.version = Some(version.clone()),
        Fault::Unresolvable => {
            settings.destinations.insert(ALL_DESTINATIONS.to_owned(), Destination::Unresolvable);
        }
        Fault::NoAccessEntry => settings.no_access_entry = true,
        Fault::NoViewPolicy => settings.no_view_policy = true,
        Fault::RefuseDestination => {
            settings.destinations.insert(ALL_DESTINATIONS.to_owned(), Destination::Refused);
        }
        Fault::BlackHole => {
            settings.destinations.insert(ALL_DESTINATIONS.to_owned(), Destination::BlackHole);
        }
        Fault::TextFrames => settings.text_frames = true,
        Fault::Fragment(len) => settings.fragment_len = Some(*len),
        Fault::WrongDigest(messages) => settings.agent.wrong_digests = *messages,
        Fault::WrongCertificate => settings.wrong_certificate = true,
        Fault::ForeignStreamUrl(host) => settings.foreign_stream_host = Some(host.clone()),
        Fault::ClockSkew(time) => settings.clock_skew_ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
        Fault::DropWebSocket(_)
        | Fault::Silence(_)
        | Fault::SilenceUpstream(_)
        | Fault::SilenceDownstream(_)
        | Fault::HalfOpen(_)
        | Fault::Pause(_)
        | Fault::EndSession(_)
        | Fault::KillAgent(_)
        | Fault::BastionOffline(_)
        | Fault::RestartDestinations(_) => {}
    }
}
