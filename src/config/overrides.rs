//! What flags and the environment say over the file.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;

use super::Config;
use super::across::check_across;
use super::bridge::{ADDRESS, Places, URL, meant_address};
use super::faults::{Fault, Faults, Place};
use super::keys::WORKERS;
use super::listen::{Address, LISTEN, ListenPlace, Listener, meant};
use super::process::Target;

/// One value from outside the file, and what it was given by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The flag's or the variable's name: `--listen`, `PODGATE_LISTEN`. Messages name it.
    pub name: String,
    pub text: String,
}

impl Given {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }

    fn place(&self) -> Place {
        Place::Given {
            name: self.name.clone(),
            text: self.text.clone(),
        }
    }

    fn fault(&self, expected: &str) -> Fault {
        Fault::new(self.place(), &self.name, format!("expected {expected}"))
    }
}

/// What was given; a flag wins over the environment before it comes here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub listen: Option<Given>,
    pub admin: Option<Given>,
    pub upstream: Option<Given>,
    pub workers: Option<Given>,
}

impl Overrides {
    /// Writes what is right over `config` and says where it came from.
    pub(super) fn write_over(
        &self,
        config: &mut Config,
        places: &mut Places,
        faults: &mut Vec<Fault>,
    ) {
        if let Some(given) = &self.listen
            && let Some(at) = listen(given, faults)
        {
            config.listen = vec![Listener::plain(at)];
            places.listen = vec![ListenPlace::new("listen", given.place())];
        }
        if let Some(given) = &self.admin
            && let Some(address) = address(given, 9090, faults)
        {
            (config.admin, places.admin) = (address, given.place());
        }
        if let Some(given) = &self.upstream {
            match Target::parse(&given.text) {
                Ok(target) => (config.upstream.target, places.url) = (target, given.place()),
                Err(why) => faults.push(given.fault(URL).label(why)),
            }
        }
        if let Some(given) = &self.workers {
            let number: Option<usize> = given.text.parse().ok();
            let number = number.filter(|n| WORKERS.contains(&(*n as u64)));
            match number.and_then(NonZeroUsize::new) {
                Some(threads) => config.workers = Some(threads),
                None => {
                    let (least, most) = (WORKERS.start(), WORKERS.end());
                    let expected = format!("a number of threads from {least} to {most}");
                    faults.push(given.fault(&expected).label("this is none"));
                }
            }
        }
    }
}

/// A relative path counts from where podgate was started.
fn listen(given: &Given, faults: &mut Vec<Fault>) -> Option<Address> {
    match Address::parse(&given.text, Path::new("")) {
        Ok(address) => Some(address),
        Err(why) => {
            let help = meant(&given.text).map(|meant| format!("write `{meant}`"));
            faults.push(given.fault(LISTEN).label(why).maybe_help(help));
            None
        }
    }
}

fn address(given: &Given, usual: u16, faults: &mut Vec<Fault>) -> Option<SocketAddr> {
    let read = given.text.parse();
    if read.is_err() {
        let help = meant_address(&given.text, usual).map(|meant| format!("write `{meant}`"));
        faults.push(given.fault(ADDRESS).label("this is none").maybe_help(help));
    }
    read.ok()
}

impl Config {
    /// Flags and environment over what is there. Faults name the flag or variable.
    pub fn with(mut self, overrides: &Overrides) -> Result<Config, Faults> {
        let (mut places, mut faults) = (Places::nowhere(), Vec::new());
        let nowhere = ListenPlace::new("listen", Place::Nowhere);
        places.listen.resize(self.listen.len(), nowhere);
        overrides.write_over(&mut self, &mut places, &mut faults);
        check_across(&self, &places, &mut faults);
        match faults.is_empty() {
            true => Ok(self),
            false => Err(Faults::new("", "", None, faults)),
        }
    }
}
