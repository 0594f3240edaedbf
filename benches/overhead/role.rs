//! This program's other roles, processes of their own: so their CPU time is not the proxies', and they
//! can be held to a core.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::generator::{Order, Outcome};
use crate::proxy;

/// One that runs, ended with this.
pub struct Role {
    pub child: Child,
    orders: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Role {
    pub fn start(core: Option<usize>, arguments: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = proxy::command(core, &program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            orders: child.stdin.take().unwrap(),
            said: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// The next line it says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it has ended, and said above why");
        line.trim_end().to_owned()
    }

    /// Has a generator do something.
    pub fn order(&mut self, order: &Order) -> Outcome {
        let line = serde_json::to_string(order).unwrap();
        writeln!(self.orders, "{line}").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
