//! How a request ended: one closed set for the metric label, the log field, the `Proxy-Status`
//! detail and the problem's `outcome`.

/// Every request ends as exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The upstream answered, whatever its status.
    Forwarded,
    /// Answered together with a request like it that was under way. Kept for what may share answers.
    Merged,
    /// Answered from memory. Kept likewise.
    Cached,
    BadRequest,
    NoRoute,
    MethodNotAllowed,
    Unauthorized,
    Forbidden,
    PayloadTooLarge,
    ClientTimeout,
    ClientGone,
    QueueFull,
    OutOfReach,
    WaitExpired,
    Paused,
    /// A client's own budget is spent.
    Quota,
    UpstreamUnreachable,
    UpstreamBroke,
    UpstreamTimeout,
    Draining,
    /// podgate has no capacity of its own left.
    Overloaded,
    Internal,
}

impl Outcome {
    pub const ALL: [Outcome; 22] = [
        Outcome::Forwarded,
        Outcome::Merged,
        Outcome::Cached,
        Outcome::BadRequest,
        Outcome::NoRoute,
        Outcome::MethodNotAllowed,
        Outcome::Unauthorized,
        Outcome::Forbidden,
        Outcome::PayloadTooLarge,
        Outcome::ClientTimeout,
        Outcome::ClientGone,
        Outcome::QueueFull,
        Outcome::OutOfReach,
        Outcome::WaitExpired,
        Outcome::Paused,
        Outcome::Quota,
        Outcome::UpstreamUnreachable,
        Outcome::UpstreamBroke,
        Outcome::UpstreamTimeout,
        Outcome::Draining,
        Outcome::Overloaded,
        Outcome::Internal,
    ];

    /// The word dashboards and scripts rely on.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Forwarded => "forwarded",
            Outcome::Merged => "merged",
            Outcome::Cached => "cached",
            Outcome::BadRequest => "bad_request",
            Outcome::NoRoute => "no_route",
            Outcome::MethodNotAllowed => "method_not_allowed",
            Outcome::Unauthorized => "unauthorized",
            Outcome::Forbidden => "forbidden",
            Outcome::PayloadTooLarge => "payload_too_large",
            Outcome::ClientTimeout => "client_timeout",
            Outcome::ClientGone => "client_gone",
            Outcome::QueueFull => "queue_full",
            Outcome::OutOfReach => "out_of_reach",
            Outcome::WaitExpired => "wait_expired",
            Outcome::Paused => "paused",
            Outcome::Quota => "quota",
            Outcome::UpstreamUnreachable => "upstream_unreachable",
            Outcome::UpstreamBroke => "upstream_broke",
            Outcome::UpstreamTimeout => "upstream_timeout",
            Outcome::Draining => "draining",
            Outcome::Overloaded => "overloaded",
            Outcome::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_indexed_by_position() {
        for (position, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, position);
        }
    }
}
