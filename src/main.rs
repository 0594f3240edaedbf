//! podgate: the commands, and who owns the exit codes: 0 well, 1 failed while running, 2 bad usage
//! or configuration.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use podgate::config::check::{self, Verdict};

#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Check a configuration file: print every fault in it, or the limits it amounts to.
    Check { file: PathBuf },
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Check { file } => {
            let out = std::io::stdout();
            let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            match check::check(&file, colours, &mut out.lock()) {
                Ok(Verdict::Good) => ExitCode::SUCCESS,
                Ok(Verdict::Refused) => ExitCode::from(2),
                Err(_) => ExitCode::FAILURE, // nobody reads what we write
            }
        }
    }
}
