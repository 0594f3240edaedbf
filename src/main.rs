//! The one binary: wires everything, owns the exit codes.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use podgate::admin::health;
use podgate::config::Config;
use podgate::config::check::{self, Verdict};
use podgate::config::overrides::{Given, Overrides};
use podgate::config::schema;
use podgate::emulator::cli::{self, EmulateArgs};
use podgate::levels::Levels;
use podgate::listener::listening::ListenError;
use podgate::listener::sockets::Passed;
use podgate::notify::{self, State};
use podgate::reload::{Reloads, Source};
use podgate::serve::{Beside, StartError};
use podgate::{demo, listener, serve};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Bad usage or configuration.
const BAD_USAGE: u8 = 2;

/// Keeps a team's traffic inside the Runpod Serverless API's limits, and uses them fully.
#[derive(Parser)]
#[command(name = "podgate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as the gateway.
    Serve(ServeArgs),
    /// Check a configuration file and print the limits it comes to.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print the configuration's JSON Schema.
    Schema,
    /// Print what completes commands and flags in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual's pages into a folder.
    Man {
        /// The folder.
        folder: PathBuf,
    },
    /// Ask a running podgate whether it is ready: exit 0, or 1 and why not.
    Health(HealthArgs),
    /// Serve an emulated Runpod API.
    Emulate(EmulateArgs),
    /// Show the gateway at work before an emulated API: no account, no configuration.
    Demo(demo::DemoArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The configuration; without one, Runpod's documented limits.
    #[arg(long, env = "PODGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients come in: an address and a port, or `unix:` and a path.
    #[arg(long, env = "PODGATE_LISTEN", value_name = "ADDR")]
    listen: Option<String>,
    /// Where metrics and health are.
    #[arg(long, env = "PODGATE_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// The API to stand in front of.
    #[arg(long, env = "PODGATE_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,
    /// Worker threads; one a core unless set.
    #[arg(long, value_name = "N")]
    workers: Option<String>,
}

#[derive(Args)]
struct HealthArgs {
    /// Where its metrics and health are.
    #[arg(long, env = "PODGATE_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// The configuration it was started with, if that says where.
    #[arg(long, env = "PODGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    listener::raise_open_files();
    match Cli::parse().command {
        Command::Serve(args) => run_serve(args),
        Command::Check { file } => run_check(&file),
        Command::Schema => print_schema(),
        Command::Completions { shell } => print_completions(shell),
        Command::Man { folder } => write_manual(&folder),
        Command::Health(args) => run_health(args),
        Command::Emulate(args) => cli::main(&args),
        Command::Demo(args) => demo::main(&args),
    }
}

fn run_check(file: &Path) -> ExitCode {
    let out = std::io::stdout();
    let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match check::check(file, colours, &mut out.lock()) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Refused) => ExitCode::from(BAD_USAGE),
        // Nobody reads what we write.
        Err(_) => ExitCode::FAILURE,
    }
}

fn print_schema() -> ExitCode {
    match writeln!(std::io::stdout(), "{:#}", schema::json()) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads what we write.
        Err(_) => ExitCode::FAILURE,
    }
}

fn print_completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podgate", &mut script);
    match std::io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads what we write.
        Err(_) => ExitCode::FAILURE,
    }
}

fn write_manual(folder: &Path) -> ExitCode {
    match clap_mangen::generate_to(Cli::command(), folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "podgate: the manual cannot be written to `{}`: {error}",
                folder.display()
            );
            ExitCode::FAILURE
        }
    }
}

fn run_health(args: HealthArgs) -> ExitCode {
    let overrides = Overrides {
        admin: args.admin.map(|text| Given::new("--admin", text)),
        ..Overrides::default()
    };
    let admin = match Config::admin_address(args.config.as_deref(), &overrides) {
        Ok(admin) => admin,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    match health::ask(admin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("podgate: {why}");
            ExitCode::FAILURE
        }
    }
}

impl ServeArgs {
    fn source(self) -> Source {
        let given = |name: &str, text: Option<String>| text.map(|text| Given::new(name, text));
        Source {
            file: self.config,
            overrides: Overrides {
                listen: given("--listen", self.listen),
                admin: given("--admin", self.admin),
                upstream: given("--upstream", self.upstream),
                workers: given("--workers", self.workers),
            },
        }
    }
}

fn run_serve(args: ServeArgs) -> ExitCode {
    let passed = match Passed::from_environment() {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!("podgate: the sockets that were passed cannot be used: {error}");
            return ExitCode::FAILURE;
        }
    };
    let source = args.source();
    let config = match source.load() {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let levels = Levels::start(&config.log);
    // Before clients can come: the first of them may be followed by a signal, and many of them leave
    // no file to listen for one with.
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("podgate: signals cannot be received: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stdout = || Box::new(std::io::stdout()) as Box<dyn Write + Send>;
    let beside = Beside {
        access_log: config.log.access.then(stdout),
        source,
        levels,
        passed,
    };
    let running = match serve::start_with(config, beside) {
        Ok(running) => running,
        Err(error) => {
            eprintln!("podgate: {error}");
            return match error {
                StartError::Listen(ListenError::Bind { .. })
                | StartError::Admin { .. }
                | StartError::Metrics(_)
                | StartError::State(_)
                | StartError::Thread(_) => ExitCode::FAILURE,
                StartError::Live(_) | StartError::Token(_) | StartError::Listen(_) => {
                    ExitCode::from(BAD_USAGE)
                }
            };
        }
    };
    eprintln!(
        "podgate ready on {}, admin on http://{}, upstream {}",
        running.places(),
        running.admin,
        running.shared.live().config.upstream.target
    );
    notify::tell(State::Ready);
    signals.wait(&running.reloads());
    notify::tell(State::Stopping);
    tracing::info!("draining; a second signal stops at once");
    running.leave();
    std::thread::sleep(running.shared.live().config.timeouts.shutdown_delay);
    running.drain();
    ExitCode::SUCCESS
}

/// The signals that are listened for.
struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on they wait for whoever waits for them.
    fn listen() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (terminate, interrupt, hangup) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::hangup())?,
            )
        };
        Ok(Self {
            runtime,
            terminate,
            interrupt,
            hangup,
        })
    }

    /// Returns at the first SIGTERM or SIGINT; a second one ends the process. At SIGHUP the
    /// configuration is read again.
    fn wait(mut self, reloads: &Reloads) {
        self.end(Some(reloads));
        std::thread::spawn(move || {
            self.end(None);
            std::process::exit(1);
        });
    }

    fn end(&mut self, reloads: Option<&Reloads>) {
        let Self {
            runtime,
            terminate,
            interrupt,
            hangup,
        } = self;
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                    _ = hangup.recv() => if let Some(reloads) = reloads {
                        // What came of it is in the log.
                        let _ = reloads.ask().await;
                    },
                }
            }
        });
    }
}
