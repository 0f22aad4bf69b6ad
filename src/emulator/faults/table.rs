//! The faults. One that is new is a row here; tests say what has to be written again.

use std::time::Duration;

use super::{
    super::{
        AccessStatus, AgentOutcome, Command, Destination, Failure, Resume, Settings, StartFailure, Upgrade, approval,
        ecs, fleet,
    },
    Effect::{Acts, Always, Counted, Every, For, Lined, Named, NamedAs, Partly, Timed},
    Matrix::{self, Elsewhere, Trials},
    Row, Trial,
};

/// Where the faults of tasks and instances are looked at.
const BASTIONS: Matrix = Elsewhere("src/emulator/tests/trouble.rs");

/// Where those of just-in-time access are.
const JUST_IN_TIME: Matrix = Elsewhere("src/emulator/tests/approval.rs");

/// Pauses that a burst of them has.
const PAUSE_BURST: u32 = 20;

/// Longer than any session waits for its handshake.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Tasks that are made from now on stop before they run, for this reason.
macro_rules! start_failure {
    ($failure:ident) => {
        Always(|settings| settings.tasks.start = Some(StartFailure::$failure))
    };
}

/// The faults.
pub static FAULTS: &[Row] = &[
    Row::new(
        "drop-websocket=30s",
        "cut every WebSocket's connection, again and again",
        Every(|_| Command::CutTransport),
        Trials(&[Trial::new("websocket-reset", "the WebSocket's connection is reset", 5)]),
    ),
    Row::new(
        "close-websocket=30s",
        "close every WebSocket of this age, as the service does after 60 minutes",
        Timed(|settings, age| settings.transport_lifetime = Some(age)),
        Trials(&[Trial::new("close-storm", "the service closes each WebSocket after 5 s, for two minutes", 5)
            .value("5s")
            .lasting(120)]),
    ),
    Row::new(
        "close-tunnel=30s",
        "close every tunnel of EC2 Instance Connect at this age, as the service does after an hour",
        Timed(|settings, age| settings.tunnel_lifetime = Some(age)),
        Elsewhere("src/route/ssh/tests.rs"),
    ),
    Row::new(
        "silence=30s",
        "go silent on every WebSocket, again and again",
        Every(|_| Command::SilenceTransport),
        Trials(&[Trial::new(
            "silence",
            "the connection to the gateway stays open and carries nothing, either way",
            60,
        )
        .silence()]),
    ),
    Row::new(
        "silence-upstream=30s",
        "lose all that clients send on their WebSockets, again and again",
        Every(|_| Command::SilenceUpstream),
        Trials(&[Trial::new("silence-upstream", "what goes to the gateway is lost, what comes from it arrives", 30)
            .silence()]),
    ),
    Row::new(
        "silence-downstream=30s",
        "lose all that is sent to clients on their WebSockets, again and again",
        Every(|_| Command::SilenceDownstream),
        Trials(&[Trial::new("silence-downstream", "what comes from the gateway is lost, what goes to it arrives", 60)
            .silence()]),
    ),
    Row::new(
        "half-open=30s",
        "forget every WebSocket without telling the client, again and again",
        Every(|_| Command::HalfOpen),
        Trials(&[
            Trial::new("half-open", "the service has lost the connection and the client is not told", 20).silence()
        ]),
    ),
    Row::new(
        "pause=30s",
        "send a burst of pause_publication and then a start, again and again",
        Every(|every| Command::Pause { messages: PAUSE_BURST, start_after: Some(every / 4) }),
        Trials(&[Trial::new("pause", "the service pauses publication for 30 s", 5).value("120s").lasting(30)]),
    ),
    Row::new(
        "end-session=60s",
        "end every session, again and again",
        Every(|_| Command::CloseChannel { output: Some("ended".to_owned()) }),
        Trials(&[Trial::new("session-ended", "the service ends the session", 10).resets(2)]),
    ),
    Row::new(
        "kill-agent=60s",
        "let every agent die silently, again and again",
        Every(|_| Command::KillAgent),
        Trials(&[Trial::new("agent-death", "the agent dies without a word", 60).resets(60).slow(60)]),
    ),
    Row::new(
        "bastion-offline=30s",
        "take the bastions offline once, for this long",
        For {
            begin: |settings, config| {
                settings.offline_bastions.extend(config.bastions.iter().map(|bastion| bastion.id.clone()));
            },
            with: || Command::KillAgent,
            end: |settings| settings.offline_bastions.clear(),
        },
        Trials(&[Trial::new("bastion-offline", "the bastion is offline for a minute", 15)
            .value("60s")
            .lasting(60)
            .resets(60)]),
    ),
    Row::new(
        "restart-destinations=10s",
        "let destinations close all connections once, and refuse others for this long",
        For {
            begin: |settings, _| all_destinations(settings, Destination::Refused),
            with: || Command::CloseDestinations,
            end: |settings| {
                settings.destinations.remove(Settings::ALL);
            },
        },
        Trials(&[Trial::new("api-restart", "the API server closes all connections and is back after 10 s", 10)
            .value("10s")
            .lasting(10)
            .resets(2)]),
    ),
    Row::new(
        "delay=50ms",
        "delay every message, each way",
        Timed(|settings, delay| (settings.upstream.delay, settings.downstream.delay) = (delay, delay)),
        Elsewhere("tests/lab/lab.rs"),
    ),
    Row::new(
        "loss=1%",
        "lose messages, each way",
        Partly(|settings, fraction| (settings.upstream.loss, settings.downstream.loss) = (fraction, fraction)),
        Trials(&[
            Trial::new("loss-1", "1 % of all messages are lost for 30 s", 10).value("1%").lasting(30),
            Trial::new("loss-5", "5 % of all messages are lost for 30 s", 20).value("5%").lasting(30),
            Trial::new("loss-20", "20 % of all messages are lost for 30 s", 30).value("20%").lasting(30),
        ]),
    ),
    Row::new(
        "duplicate=1%",
        "repeat messages, each way",
        Partly(|settings, fraction| {
            (settings.upstream.duplicate, settings.downstream.duplicate) = (fraction, fraction);
        }),
        Trials(&[Trial::new("duplication", "10 % of all messages come twice for 30 s", 5).value("10%").lasting(30)]),
    ),
    Row::new(
        "reorder=1%",
        "change the order of messages, each way",
        Partly(|settings, fraction| (settings.upstream.reorder, settings.downstream.reorder) = (fraction, fraction)),
        Trials(&[Trial::new("reordering", "10 % of all messages are overtaken for 30 s", 5).value("10%").lasting(30)]),
    ),
    Row::new(
        "line=125kB/s,1MB",
        "carry WebSockets over a line of this rate and buffer, each way; a third value is its delay",
        Lined(|settings, line| (settings.line_up, settings.line_down) = (Some(line), Some(line))),
        Elsewhere("tests/lab/line.rs"),
    ),
    Row::new(
        "line-up=125kB/s,1MB",
        "the same from client to gateway only",
        Lined(|settings, line| settings.line_up = Some(line)),
        Elsewhere("tests/lab/line.rs"),
    ),
    Row::new(
        "line-down=125kB/s,1MB",
        "the same from gateway to client only",
        Lined(|settings, line| settings.line_down = Some(line)),
        Elsewhere("tests/lab/line.rs"),
    ),
    Row::new(
        "refuse-resume",
        "refuse every ResumeSession",
        Always(|settings| settings.resume = Resume::Refused),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "throttle-resume=3",
        "throttle this many ResumeSession calls",
        Counted(|settings, calls| fail(settings, "ssm:ResumeSession", Failure::throttled(calls))),
        Trials(&[Trial::new(
            "resume-throttled",
            "the WebSocket is reset, and three calls of ResumeSession are throttled",
            30,
        )
        .value("3")
        .then("drop-websocket=30s")]),
    ),
    Row::new(
        "fail-start=3",
        "fail this many StartSession calls",
        Counted(|settings, calls| fail(settings, "ssm:StartSession", Failure::internal(calls))),
        Trials(&[Trial::new("start-fails", "the service ends the session, and StartSession fails three times", 20)
            .value("3")
            .then("end-session=60s")
            .resets(2)]),
    ),
    Row::new(
        "slow-api=5s",
        "answer every call of AWS this much later",
        Timed(|settings, time| settings.api_delay = time),
        Trials(&[Trial::new("api-slow", "the WebSocket is reset, and AWS takes 5 s for each call", 15)
            .value("5s")
            .then("drop-websocket=30s")]),
    ),
    Row::new(
        "reject-token=1",
        "do not take this many session tokens",
        Counted(|settings, tokens| settings.rejected_tokens = tokens),
        Trials(&[Trial::new(
            "token-rejected",
            "the WebSocket is reset, and the gateway does not take the next token",
            5,
        )
        .value("1")
        .then("drop-websocket=30s")]),
    ),
    Row::new(
        "refuse-signed-upgrade",
        "answer 403 to signed WebSocket upgrades, and take unsigned ones",
        Always(|settings| settings.upgrade = Upgrade::Unsigned),
        Elsewhere("tests/it/up.rs"),
    ),
    Row::new(
        "standard-tier",
        "refuse sessions on managed nodes, as without the advanced-instances tier",
        Always(|settings| settings.standard_tier = true),
        Elsewhere("tests/it/wrong_input.rs"),
    ),
    Row::new(
        "deny=ssm:ResumeSession",
        "deny an IAM action",
        NamedAs(
            |action| action.contains(':'),
            |settings, action| {
                settings.denied_actions.insert(action.to_owned());
            },
        ),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "just-in-time=approved",
        "take StartSession away, and have requests for access approved, rejected, revoked or expired, or leave them pending",
        NamedAs(|word| AccessStatus::parse(word).is_some(), approval::decide_from_now_on),
        JUST_IN_TIME,
    ),
    Row::new(
        "decide-after=30s",
        "let requests for access be decided this much later",
        Timed(|settings, time| settings.just_in_time.after = time),
        JUST_IN_TIME,
    ),
    Row::new(
        "access-window=10m",
        "let sessions be started for this long after an approval",
        Timed(|settings, time| settings.just_in_time.window = time),
        JUST_IN_TIME,
    ),
    Row::new(
        "revoke-access=60s",
        "revoke every approval, again and again",
        Acts(|world| approval::decide(world, AccessStatus::Revoked)),
        JUST_IN_TIME,
    ),
    Row::new(
        "shells-only",
        "let approved access allow shells alone, as the policies do that AWS publishes",
        Always(|settings| settings.just_in_time.shells_only = true),
        JUST_IN_TIME,
    ),
    Row::new(
        "deny-document=NAME",
        "deny StartSession on a session document",
        Named(|settings, name| {
            settings.denied_documents.insert(name.to_owned());
        }),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "silent-handshake",
        "let agents of new sessions never begin the handshake",
        Always(|settings| settings.agent.handshake_delay = NEVER),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "slow-agent=35s",
        "let agents of new sessions begin the handshake this much later",
        Timed(|settings, time| settings.agent.handshake_delay = time),
        Elsewhere("tests/it/up.rs"),
    ),
    Row::new(
        "agent-version=3.0.222.0",
        "let agents report another version",
        Named(|settings, version| settings.agent.version = Some(version.to_owned())),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "unresolvable",
        "make no destination resolve where the agent is",
        Always(|settings| all_destinations(settings, Destination::Unresolvable)),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "no-access-entry",
        "let API servers answer 401 to every token",
        Always(|settings| settings.no_access_entry = true),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "no-view-policy",
        "make API servers answer 403 to every request for a resource",
        Always(|settings| settings.no_view_policy = true),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "refuse-destination",
        "let every destination refuse connections",
        Always(|settings| all_destinations(settings, Destination::Refused)),
        Trials(&[Trial::new("destination-refuses", "the API server refuses new connections for 30 s", 10).lasting(30)]),
    ),
    Row::new(
        "black-hole",
        "let no destination answer",
        Always(|settings| all_destinations(settings, Destination::BlackHole)),
        Trials(&[Trial::new("destination-black-holed", "the API server does not answer new connections for 30 s", 60)
            .lasting(30)
            .slow(60)]),
    ),
    Row::new(
        "text-frames",
        "send messages in text frames",
        Always(|settings| settings.text_frames = true),
        Elsewhere("tests/it/faults.rs"),
    ),
    Row::new(
        "fragment=100",
        "cut WebSocket messages into frames of this many bytes",
        Counted(|settings, len| settings.fragment_len = usize::try_from(len).ok()),
        Elsewhere("tests/it/faults.rs"),
    ),
    Row::new(
        "wrong-digest=3",
        "send this many messages with a wrong digest",
        Counted(|settings, messages| settings.agent.wrong_digests = messages),
        Elsewhere("tests/it/faults.rs"),
    ),
    Row::new(
        "wrong-certificate",
        "let API servers show a certificate of another authority",
        Always(|settings| settings.wrong_certificate = true),
        Elsewhere("tests/it/doctor.rs"),
    ),
    Row::new(
        "foreign-stream-url=HOST",
        "name another host in stream URLs",
        Named(|settings, host| settings.foreign_stream_host = Some(host.to_owned())),
        Elsewhere("tests/it/profiles.rs"),
    ),
    Row::new(
        "clock-skew=10m",
        "set the emulator's clock ahead",
        Timed(|settings, time| settings.clock_skew_ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
        Elsewhere("tests/it/refusals.rs"),
    ),
    Row::new(
        "redeploy=30s",
        "deploy every ECS service anew, again and again",
        Acts(|world| {
            ecs::deploy(world, None);
        }),
        Elsewhere("tests/lab/replaced.rs"),
    ),
    Row::new(
        "stop-tasks=60s",
        "stop every task of ECS, as somebody would, again and again",
        Acts(|world| ecs::stop_all(world, "UserInitiated", "Task stopped by user")),
        BASTIONS,
    ),
    Row::new(
        "retire-tasks=60s",
        "stop every task of ECS, as AWS does for maintenance, again and again",
        Acts(|world| ecs::stop_all(world, "TerminationNotice", "Your task is being stopped for maintenance.")),
        BASTIONS,
    ),
    Row::new(
        "replace-instance=30s",
        "let Auto Scaling replace an instance of each group, again and again",
        Acts(fleet::replace_oldest),
        Elsewhere("tests/lab/replaced.rs"),
    ),
    Row::new(
        "stale-pings",
        "let Systems Manager tell of every node as online, whatever its agent is",
        Always(|settings| settings.stale_pings = true),
        BASTIONS,
    ),
    Row::new(
        "no-capacity=3",
        "let Fargate have no capacity for this many RunTask calls",
        Counted(|settings, calls| {
            let text =
                "Capacity is unavailable at this time. Please try again later or in a different availability zone";
            run_fails(settings, text, calls);
        }),
        BASTIONS,
    ),
    Row::new(
        "run-task-fails=RESOURCE:ENI",
        "answer every RunTask with this reason of a failure",
        Named(|settings, reason| run_fails(settings, reason, u32::MAX)),
        BASTIONS,
    ),
    Row::new(
        "no-service-role=1",
        "let ECS not have its service linked role for this many RunTask calls",
        Counted(|settings, calls| {
            let text =
                "Unable to assume the service linked role. Please verify that the ECS service linked role exists.";
            let failure = Failure::refused("InvalidParameterException", text);
            fail(settings, "ecs:RunTask", Failure { calls, ..failure });
        }),
        BASTIONS,
    ),
    Row::new(
        "role-not-trusted",
        "let the task role not trust ECS",
        Always(|settings| settings.tasks.role_untrusted = true),
        BASTIONS,
    ),
    Row::new(
        "vcpu-limit",
        "let the account have no vCPUs left for Fargate",
        Always(|settings| {
            let text = "You've reached the limit on the number of vCPUs you can run concurrently";
            fail(settings, "ecs:RunTask", Failure::refused("ClientException", text));
        }),
        BASTIONS,
    ),
    Row::new(
        "image-timeout",
        "let tasks not reach the registry of their image",
        start_failure!(ImageTimeout),
        BASTIONS,
    ),
    Row::new("image-missing", "let there be no image for tasks", start_failure!(ImageMissing), BASTIONS),
    Row::new("image-limited", "let the registry have too many requests", start_failure!(ImageLimited), BASTIONS),
    Row::new("no-registry-auth", "let tasks get no token for their registry", start_failure!(RegistryAuth), BASTIONS),
    Row::new("interface-timeout", "let tasks get no network interface", start_failure!(InterfaceTimeout), BASTIONS),
    Row::new("subnet-full", "let subnets have no free address for tasks", start_failure!(SubnetFull), BASTIONS),
    Row::new("no-shell", "let the image of tasks have no shell", start_failure!(NoShell), BASTIONS),
    Row::new(
        "out-of-memory=30s",
        "let containers of new tasks run out of memory after this long",
        Timed(|settings, time| settings.tasks.out_of_memory = Some(time)),
        BASTIONS,
    ),
    Row::new(
        "agent-stopped",
        "let the agents of new tasks end at once",
        Always(|settings| settings.tasks.agent = AgentOutcome::Stopped),
        BASTIONS,
    ),
    Row::new(
        "agent-pending",
        "let the agents of new tasks never be heard of",
        Always(|settings| settings.tasks.agent = AgentOutcome::Pending),
        BASTIONS,
    ),
    Row::new(
        "exec-disabled",
        "let tasks and services be without ECS Exec",
        Always(|settings| settings.tasks.no_exec = true),
        BASTIONS,
    ),
    Row::new(
        "slow-tasks=60s",
        "let new tasks take this much longer to start",
        Timed(|settings, time| settings.tasks.delay = time),
        BASTIONS,
    ),
    Row::new(
        "unseen-tasks=5s",
        "let new tasks not be seen for this long",
        Timed(|settings, time| settings.tasks.unseen = Some(time)),
        BASTIONS,
    ),
    Row::new(
        "next-tasks=2",
        "let this many more tasks have what is wrong with their start, agent or memory, and later ones not",
        Counted(|settings, tasks| settings.tasks.next_tasks = Some(tasks)),
        BASTIONS,
    ),
    Row::new(
        "session-limit=1",
        "let containers have this many sessions at a time",
        Counted(|settings, limit| settings.tasks.session_limit = usize::try_from(limit).ok()),
        BASTIONS,
    ),
    Row::new(
        "deny-task-sessions",
        "deny sessions with tasks explicitly, as the guide of ECS Exec recommends",
        Always(|settings| settings.tasks.sessions_denied = true),
        BASTIONS,
    ),
];

fn run_fails(settings: &mut Settings, reason: &str, calls: u32) {
    settings.tasks.run_failure = Some(reason.to_owned());
    settings.tasks.run_failures = calls;
}

fn all_destinations(settings: &mut Settings, destination: Destination) {
    settings.destinations.insert(Settings::ALL.to_owned(), destination);
}

fn fail(settings: &mut Settings, action: &str, failure: Failure) {
    settings.failing_actions.insert(action.to_owned(), failure);
}
