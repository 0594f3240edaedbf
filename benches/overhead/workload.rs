//! What is sent through both proxies.

use clap::ValueEnum;

use crate::peer::Kind;

/// The text in a large request, whose body is 1 MiB with it.
const LARGE: usize = (1 << 20) - r#"{"input":{"text":""}}"#.len();

/// Who asks what, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Status polls.
    Poll,
    /// Submissions with 1 KiB.
    Submit,
    /// Submissions with 1 MiB.
    Large,
    /// Status polls by HTTPS.
    TlsIn,
    /// Status polls, and the upstream is asked by HTTPS.
    TlsOut,
}

impl Workload {
    pub fn title(self) -> &'static str {
        match self {
            Workload::Poll => "GET status, 64 connections",
            Workload::Submit => "POST run 1 KiB, 64 connections",
            Workload::Large => "POST runsync 1 MiB, 16 connections",
            Workload::TlsIn => "GET status, HTTPS in, 64 connections",
            Workload::TlsOut => "GET status, HTTPS out, 64 connections",
        }
    }

    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.expect("none is skipped").get_name().to_owned()
    }

    pub fn connections(self) -> usize {
        match self {
            Workload::Large => 16,
            _ => 64,
        }
    }

    /// Requests a second where latency is measured: well below what either proxy can do.
    pub fn rate(self) -> u32 {
        match self {
            Workload::Large => 200,
            _ => 4_000,
        }
    }

    pub fn request(self) -> Vec<u8> {
        match self {
            Workload::Submit => Kind::Submit(1_000).request(),
            Workload::Large => Kind::Runsync(LARGE).request(),
            Workload::Poll | Workload::TlsIn | Workload::TlsOut => Kind::Poll.request(),
        }
    }

    /// Whether the proxy's own listener speaks TLS.
    pub fn tls_in(self) -> bool {
        self == Workload::TlsIn
    }

    /// Whether the upstream does.
    pub fn tls_out(self) -> bool {
        self == Workload::TlsOut
    }
}
