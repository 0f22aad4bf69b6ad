//! The way through an SSH server, beside OpenSSH's client with the same cipher through the same server.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::sleep;

use super::{
    super::{
        BoxError,
        emulator::{self, World},
        load::{
            Bulk, Direction, REQUEST, Slow, connects, connects_at_once, open_one, request_rate, requests, requests_for,
            transfer,
        },
        openssh::{Agreed, OpenSsh, Programs},
        processes::{Role, Up, Workshop},
        report::{Figure, Unit},
    },
    CONNECTIONS, Plan, count_of,
    latency::{PERCENTILES, push},
};

/// What OpenSSH's client is called.
const REFERENCE: &str = "ssh -L";

/// How often both take turns in one run where single answers are measured, and how often each of many connects.
const TURNS: usize = 8;

/// Connections that make the load under which memory is looked at.
const LOADED: usize = 64;

/// What a slow program reads, in bytes a second.
const SLOW_PACE: u64 = 1 << 20;

/// Bytes of a download after which every queue on its way is full.
const FILLED: u64 = 8 << 20;

/// An SSH server, and both clients of it.
struct Stage {
    up: Up,
    ssh: OpenSsh,
    _aws: Role<emulator::Hello>,
}

impl Stage {
    async fn start(workshop: &Workshop, programs: &Programs, cipher: &str) -> Result<Self, BoxError> {
        let aws = server(workshop, programs).await?;
        let server = aws.hello.ssh.clone().ok_or("there is no SSH server")?;
        let up = workshop.up(&aws.hello, &["--bastion", &server.bastion]).await?;
        let ssh = OpenSsh::start(&programs.ssh, &workshop.home()?, &server, cipher, aws.hello.destination).await?;
        Ok(Self { up, ssh, _aws: aws })
    }

    /// The near ends of both, OpenSSH's first.
    fn addresses(&self) -> [SocketAddr; 2] {
        [self.ssh.address, self.up.address]
    }
}

/// How often a server is started that ends at once.
const ATTEMPTS: usize = 3;

async fn server(workshop: &Workshop, programs: &Programs) -> Result<Role<emulator::Hello>, BoxError> {
    let world = World { sshd: Some(programs.sshd.clone()), ..World::default() };
    // The port behind it is free when it is chosen, and somebody else may be faster to take it.
    for _ in 1..ATTEMPTS {
        if let Ok(aws) = workshop.emulator(&world).await {
            return Ok(aws);
        }
    }
    workshop.emulator(&world).await
}

/// What the program agrees on with a server.
async fn agreed(workshop: &Workshop, programs: &Programs) -> Result<Agreed, BoxError> {
    let aws = server(workshop, programs).await?;
    let bastion = aws.hello.ssh.as_ref().map(|ssh| ssh.bastion.clone()).unwrap_or_default();
    let up = workshop.up(&aws.hello, &["-vv", "--bastion", &bastion]).await?;
    let log = std::fs::read_to_string(&up.log)?;
    up.stop().await?;
    let field = |name: &str| {
        let line = log.lines().find(|line| line.contains("exchanged keys with the server"))?;
        line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(|value| value.trim_matches('"').to_owned())
    };
    match (field("exchange="), field("cipher=")) {
        (Some(exchange), Some(cipher)) => Ok(Agreed { exchange, cipher }),
        _ => Err("the program does not say what it has agreed on with the server".into()),
    }
}

/// All of it, if OpenSSH is there.
pub(crate) async fn measure(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => {
            writeln!(io::stderr(), "{missing}")?;
            return Ok(Vec::new());
        }
    };
    let ours = agreed(workshop, &programs).await?;
    let stage = Stage::start(workshop, &programs, &ours.cipher).await?;
    let theirs = &stage.ssh.agreed;
    writeln!(io::stderr(), "autoheal-pa: {}, {}", ours.exchange, ours.cipher)?;
    writeln!(io::stderr(), "ssh -L:      {}, {}", theirs.exchange, theirs.cipher)?;
    let mut figures = vec![idle_memory(&stage)?];
    figures.extend(throughput(&stage, plan).await?);
    figures.extend(latency(&stage, plan).await?);
    figures.extend(many(&stage, plan).await?);
    figures.extend(cpu(&stage, plan).await?);
    drop(stage);
    figures.push(loaded_memory(workshop, &programs, &ours.cipher, plan).await?);
    figures.extend(fairness(workshop, &programs, &ours.cipher, plan).await?);
    Ok(figures)
}

/// Before anything has come through.
fn idle_memory(stage: &Stage) -> Result<Figure, BoxError> {
    let mut figure = Figure::new("ssh, memory, 1 idle tunnel", Unit::Memory).against(REFERENCE);
    figure.push(stage.up.usage()?.resident as f64, &[stage.ssh.usage()?.resident as f64]);
    Ok(figure)
}

async fn throughput(stage: &Stage, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = Vec::new();
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        for connections in CONNECTIONS {
            let name = format!("ssh, {name}, {}", count_of(connections, "connection"));
            let mut figure = Figure::new(name, Unit::Throughput).against(REFERENCE);
            for _ in 0..plan.runs {
                let mut values = [0.0; 2];
                for (value, address) in values.iter_mut().zip(stage.addresses()) {
                    *value = transfer(address, direction, connections, 4 * plan.near.bulk).await?;
                }
                figure.push(values[1], &values[..1]);
            }
            figures.push(figure);
        }
    }
    Ok(figures)
}

fn pair(name: &str) -> [Figure; 2] {
    PERCENTILES.map(|(percentile, _)| Figure::new(format!("{name}, {percentile}"), Unit::Time).against(REFERENCE))
}

async fn latency(stage: &Stage, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let (mut on_open, mut on_new) = (pair("ssh, request"), pair("ssh, connect and first byte"));
    let count = plan.near.requests.div_ceil(TURNS);
    for _ in 0..plan.runs {
        // In turns, as the machine is not equally busy all the time.
        let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (at, address) in stage.addresses().into_iter().enumerate() {
                times[at].extend(requests(address, count, Duration::ZERO).await?);
                times[at + 2].extend(connects(address, count).await?);
            }
        }
        let [ssh_open, up_open, ssh_new, up_new] = times;
        push(&mut on_open, &up_open, &[ssh_open]);
        push(&mut on_new, &up_new, &[ssh_new]);
    }
    Ok(on_open.into_iter().chain(on_new).collect())
}

/// Many connections at once.
async fn many(stage: &Stage, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let many = count_of(plan.many, "connection");
    let mut on_new = pair(&format!("ssh, connect and first byte, {many} at once"));
    let mut rate = Figure::new(format!("ssh, requests, {many}"), Unit::Rate).against(REFERENCE);
    for _ in 0..plan.runs {
        let [ssh, up] = stage.addresses();
        let reference = connects_at_once(ssh, plan.many, TURNS * plan.many).await?;
        push(&mut on_new, &connects_at_once(up, plan.many, TURNS * plan.many).await?, &[reference]);
        let count = plan.near.rated_requests.max(plan.many);
        let reference = request_rate(ssh, plan.many, count).await?;
        rate.push(request_rate(up, plan.many, count).await?, &[reference]);
    }
    Ok(on_new.into_iter().chain([rate]).collect())
}

/// Time on a processor for each GiB, of the clients alone.
async fn cpu(stage: &Stage, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = Vec::new();
    let per_gib = f64::from(1 << 30) / plan.near.costly_bulk as f64;
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        let mut figure = Figure::new(format!("ssh, processor, {name}"), Unit::Cost).against(REFERENCE);
        for _ in 0..plan.runs {
            let before = stage.ssh.usage()?.cpu;
            transfer(stage.ssh.address, direction, 1, plan.near.costly_bulk).await?;
            let reference = (stage.ssh.usage()?.cpu - before).as_secs_f64() * per_gib;
            let before = stage.up.usage()?.cpu;
            transfer(stage.up.address, direction, 1, plan.near.costly_bulk).await?;
            figure.push((stage.up.usage()?.cpu - before).as_secs_f64() * per_gib, &[reference]);
        }
        figures.push(figure);
    }
    Ok(figures)
}

/// The most resident memory under a load both ways.
async fn loaded_memory(
    workshop: &Workshop,
    programs: &Programs,
    cipher: &str,
    plan: &Plan,
) -> Result<Figure, BoxError> {
    let mut figure = Figure::new("ssh, memory, 64 downloads and uploads", Unit::Memory).against(REFERENCE);
    for _ in 0..plan.runs {
        let stage = Stage::start(workshop, programs, cipher).await?;
        for address in stage.addresses() {
            for direction in [Direction::Down, Direction::Up] {
                transfer(address, direction, LOADED, plan.near.bulk).await?;
            }
        }
        figure.push(stage.up.usage()?.peak as f64, &[stage.ssh.usage()?.peak as f64]);
    }
    Ok(figure)
}

/// Who reads beside the requests.
#[derive(Debug, Clone, Copy)]
enum Beside {
    /// As fast as it can.
    Download,
    /// Not at all any more.
    Stalled,
    Slow,
}

/// What takes from others as little as it can, and is to be kept alive.
enum Reader {
    Eager(#[expect(dead_code, reason = "it is there until it is dropped")] Bulk),
    Slow(Slow),
}

impl Beside {
    async fn start(self, address: SocketAddr, plan: &Plan) -> Result<Reader, BoxError> {
        Ok(match self {
            Self::Download => Reader::Eager(Bulk::start(address, FILLED.min(plan.near.bulk)).await?),
            Self::Stalled => Reader::Slow(Slow::start(address, None).await?),
            Self::Slow => Reader::Slow(Slow::start(address, Some(SLOW_PACE)).await?),
        })
    }
}

/// Requests beside programs that read otherwise: on a connection that was there before, and on new ones.
async fn fairness(
    workshop: &Workshop,
    programs: &Programs,
    cipher: &str,
    plan: &Plan,
) -> Result<Vec<Figure>, BoxError> {
    let mut figures = Vec::new();
    for (name, beside) in [
        ("a download", Beside::Download),
        ("a program that has stopped to read", Beside::Stalled),
        ("a program that reads 1 MiB/s", Beside::Slow),
    ] {
        let figure = |on: &str| {
            PERCENTILES.map(|(percentile, _)| {
                Figure::new(format!("ssh, {on} beside {name}, {percentile}"), Unit::Time)
                    .against("the same alone")
                    .against("ssh -L, the same")
                    .against("ssh -L, alone")
            })
        };
        let (mut on_open, mut on_new) = (figure("request"), figure("connect and first byte"));
        for _ in 0..plan.runs {
            let stage = Stage::start(workshop, programs, cipher).await?;
            let [ssh, up] = stage.addresses();
            let theirs = beside.measure(ssh, plan).await?;
            let ours = beside.measure(up, plan).await?;
            if ours.is_cut || theirs.is_cut {
                writeln!(io::stderr(), "beside {name}: cut off: ours {}, theirs {}", ours.is_cut, theirs.is_cut)?;
            }
            push(&mut on_open, &ours.on_open, &[ours.alone_on_open, theirs.on_open, theirs.alone_on_open]);
            push(&mut on_new, &ours.on_new, &[ours.alone_on_new, theirs.on_new, theirs.alone_on_new]);
        }
        figures.extend(on_open.into_iter().chain(on_new));
    }
    Ok(figures)
}

/// How long things took, in seconds.
struct Times {
    alone_on_open: Vec<f64>,
    alone_on_new: Vec<f64>,
    on_open: Vec<f64>,
    on_new: Vec<f64>,
    /// The other reader is no longer there.
    is_cut: bool,
}

impl Beside {
    async fn measure(self, address: SocketAddr, plan: &Plan) -> Result<Times, BoxError> {
        let stream = open_one(address, REQUEST).await?;
        let (stream, alone_on_open) = requests_for(stream, plan.beside_slow).await?;
        let alone_on_new = connects_for(address, plan.beside_slow).await?;
        let mut reader = self.start(address, plan).await?;
        // Until all is full that can be, and what is dead is taken for dead.
        sleep(plan.beside_slow).await;
        let (_stream, on_open) = requests_for(stream, plan.beside_slow).await?;
        let on_new = connects_for(address, plan.beside_slow).await?;
        let is_cut = match &mut reader {
            Reader::Eager(_) => false,
            Reader::Slow(slow) => slow.is_cut(),
        };
        Ok(Times { alone_on_open, alone_on_new, on_open, on_new, is_cut })
    }
}

/// Connects for so long, one after the other.
async fn connects_for(address: SocketAddr, duration: Duration) -> Result<Vec<f64>, BoxError> {
    let clock = autoheal_pa::clock::Clock::start();
    let mut times = Vec::new();
    while times.is_empty() || clock.now().mono < duration {
        times.extend(connects(address, 1).await?);
    }
    Ok(times)
}
