//! What no single setting shows: settings that do not go together.

use std::net::SocketAddr;

use super::bridge::Places;
use super::faults::{Fault, Place};
use super::listen::{Address, ListenPlace, Listener};
use super::{Config, units};

/// All that is wrong between settings.
pub(super) fn check_across(config: &Config, places: &Places, faults: &mut Vec<Fault>) {
    faults.extend(same_places(config, places));
    let upstream = &config.upstream;
    if upstream.api_key.is_some() && !upstream.allow_remote_injection {
        let listeners = config.listen.iter().zip(&places.listen);
        let open = listeners.filter(|(listener, _)| listener.is_open());
        faults.extend(open.map(|(listener, place)| open_key(listener, place, &places.api_key)));
    }
    if config.buffers.per_request > config.buffers.total {
        let (place, path) = (places.per_request.clone(), "buffers.per_request");
        let fault = Fault::new(
            place,
            path,
            "one request may not hold more than all together",
        );
        let total = units::show_size(config.buffers.total);
        faults.push(fault.label(format!("`total` is {total}")));
    }
    if config.timeouts.body_idle > config.timeouts.body_total {
        let (place, path) = (places.body_idle.clone(), "timeouts.body_idle");
        let what = "a pause in a body may not be longer than the whole body";
        let total = units::show_duration(config.timeouts.body_total);
        faults.push(Fault::new(place, path, what).label(format!("`body_total` is {total}")));
    }
}

/// Listeners of which the second could not be bound, each told once, and those in `admin`'s way.
fn same_places(config: &Config, places: &Places) -> Vec<Fault> {
    let listeners: Vec<_> = config.listen.iter().zip(&places.listen).collect();
    let mut faults = Vec::new();
    for (nth, (listener, place)) in listeners.iter().enumerate() {
        let before = listeners[..nth].iter();
        let mut taken = before.filter(|(other, _)| collide(&listener.at, &other.at));
        if let Some((other, first)) = taken.next() {
            let fault = Fault::new(place.at.clone(), &place.path, "this place is taken already");
            let fault = fault.label(format!("a listener is at {}", other.at));
            faults.push(fault.also(first.at.clone(), "the first"));
        } else if collide(&listener.at, &Address::Tcp(config.admin)) {
            faults.push(same_port(listener, place, config.admin, &places.admin));
        }
    }
    faults
}

/// Whether the second of two sockets could not be bound.
fn collide(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Unix(a), Address::Unix(b)) => a == b,
        (Address::Tcp(a), Address::Tcp(b)) => {
            let all = a.ip().is_unspecified() || b.ip().is_unspecified();
            a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || all)
        }
        _ => false,
    }
}

/// Told at the one of the two that somebody wrote.
fn same_port(
    listener: &Listener,
    place: &ListenPlace,
    admin: SocketAddr,
    admin_place: &Place,
) -> Fault {
    let listen = listener.at.to_string();
    let (at, path, taken, by) = match admin_place {
        Place::Nowhere => (&place.at, place.path.as_str(), admin.to_string(), "admin"),
        admin => (admin, "admin", listen, "listen"),
    };
    let fault = Fault::new(at.clone(), path, format!("`{by}` has this port already"));
    let fault = fault.label(format!("`{by}` is {taken}"));
    match (by, &place.at) {
        ("listen", listen @ Place::Part(_)) => fault.also(listen.clone(), "here"),
        _ => fault,
    }
}

/// A key that everybody spends who reaches podgate.
fn open_key(listener: &Listener, place: &ListenPlace, api_key: &Place) -> Fault {
    let what = format!(
        "a key is injected into every request, and `{}` can be reached from other hosts",
        listener.at
    );
    let fault = match &place.at {
        Place::Nowhere => Fault::new(api_key.clone(), "upstream.api_key", what),
        listen => {
            Fault::new(listen.clone(), &place.path, what).also(api_key.clone(), "injected here")
        }
    };
    fault.label("whoever reaches it spends the account").help(
        "listen on `127.0.0.1`, ask clients for certificates (`client_auth: required`), or say \
         `upstream.allow_remote_injection: true`",
    )
}
