//! A host of releases on loopback, by a script of what it answers.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What comes back.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Whole(Vec<u8>),
    Status(u16),
    Redirect(String),
    /// Fewer bytes than were announced.
    Cut(Vec<u8>),
}

/// A request: its target, and its headers in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) target: String,
    head: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    _task: JoinSet<()>,
}

impl Host {
    /// Starts one that answers each request by a function of it and of how many had the same target before.
    pub(crate) async fn start(answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::<Request>::new()));
        let seen = Arc::clone(&requests);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One after the other, which is how they come. A client may go away in the middle.
                let _gone = serve(stream, &seen, &answer).await;
            }
        });
        Self { address, requests, _task: task }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// What was asked for.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.target).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request, usize) -> Answer + Send + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let request = Request { target, head: head.to_lowercase() };
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|other| other.target == request.target).count();
        seen.push(request.clone());
        before
    };
    let (status, header, body, announced) = match answer(&request, before) {
        Answer::Whole(body) => (200, String::new(), body.clone(), body.len()),
        Answer::Status(status) => (status, String::new(), Vec::new(), 0),
        Answer::Redirect(to) => (302, format!("location: {to}\r\n"), Vec::new(), 0),
        Answer::Cut(body) => (200, String::new(), body.clone(), body.len() + 1000),
    };
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {announced}\r\n{header}\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}
