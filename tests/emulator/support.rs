//! An emulator on a port of its own, and a caller.

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use podgate::emulator::site::Fleet;
use podgate::emulator::{Config, Emulator};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Upstream {
    pub address: SocketAddr,
    pub emulator: Emulator,
    serving: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// `workers` workers at endpoint `ep`, and no other endpoint.
pub fn with_workers(workers: u32) -> Config {
    let fleet = Fleet {
        workers,
        ..Fleet::default()
    };
    Config {
        endpoints: [("ep".to_owned(), fleet)].into(),
        ..Config::default()
    }
}

pub async fn start(config: Config) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let emulator = Emulator::new(config);
    let serving = tokio::spawn(emulator.clone().serve(listener, pending()));
    Upstream {
        address,
        emulator,
        serving,
    }
}

pub async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn request(method: &str, path: &str, key: Option<&str>, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", key);
    }
    request
        .header("host", "emulator")
        .body(Full::new(body))
        .unwrap()
}

/// One exchange on a connection of its own; an error if it broke.
pub async fn call(address: SocketAddr, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let exchange = async {
        let response = connect(address).await.send_request(request).await?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    };
    let bounded = tokio::time::timeout(PATIENCE, exchange);
    bounded.await.expect("an answer within the test's patience")
}

impl Upstream {
    /// One exchange on a connection of its own; an error if it broke.
    pub async fn try_call(&self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        call(self.address, request).await
    }

    pub async fn call(&self, method: &str, rest: &str, body: impl Into<Bytes>) -> Answer {
        let path = format!("/v2/ep/{rest}");
        let request = request(method, &path, Some("Bearer key"), body.into());
        self.try_call(request).await.unwrap()
    }

    pub async fn get(&self, rest: &str) -> Answer {
        self.call("GET", rest, "").await
    }

    pub async fn post(&self, rest: &str, body: &Value) -> Answer {
        self.call("POST", rest, body.to_string()).await
    }

    /// Submits `input` by `/run`; the job's id.
    pub async fn run(&self, input: Value) -> String {
        let answer = self.post("run", &json!({ "input": input })).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Polls until the job is in `state`; its view.
    pub async fn until(&self, id: &str, state: &str) -> Value {
        let polls = async {
            loop {
                let view = self.get(&format!("status/{id}")).await.json();
                if view["status"] == state {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let bounded = tokio::time::timeout(PATIENCE, polls).await;
        bounded.unwrap_or_else(|_| panic!("{id} never came to be {state}"))
    }

    pub async fn control(&self, method: &str, name: &str, body: &Value) -> Answer {
        let path = format!("/__emulator/{name}");
        let body = body.to_string().into();
        self.try_call(request(method, &path, None, body))
            .await
            .unwrap()
    }

    pub async fn faults(&self, faults: Value) {
        let answer = self.control("POST", "faults", &faults).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    }

    /// The figures of one group at `ep`.
    pub fn seen(&self, group: &str) -> Value {
        self.emulator.stats_json()["endpoints"]["ep"][group].clone()
    }
}

/// Waits for `holds` to become true.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polls = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let bounded = tokio::time::timeout(PATIENCE, polls).await;
    bounded.unwrap_or_else(|_| panic!("never: {what}"));
}
