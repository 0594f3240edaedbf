use std::process::ExitCode;

use clap::Parser;
use podgate::emulator::cli::{self, EmulateArgs};

#[derive(Parser)]
#[command(name = "podgate")]
enum Command {
    Emulate(EmulateArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Emulate(args) => cli::main(&args),
    }
}
