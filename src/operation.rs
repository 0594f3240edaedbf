//! What a request asks of Runpod, and which limit it shares: the vocabulary of every floor above.
//!
//! Nothing is parsed here: `gateway::classify` decides which operation a request is.

/// One documented operation of the job API, or [`Operation::Other`] for a name Runpod may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Run,
    RunSync,
    Status,
    StatusSync,
    Stream,
    Cancel,
    Retry,
    PurgeQueue,
    Health,
    Requests,
    OpenAi,
    /// What an endpoint's own workers ask: `job-take`, `job-take-batch`, `job-stop`, `job-done`,
    /// `job-stream` and `ping` (contract, section 6).
    Worker,
    Other,
}

impl Operation {
    pub const ALL: [Operation; 13] = [
        Operation::Run,
        Operation::RunSync,
        Operation::Status,
        Operation::StatusSync,
        Operation::Stream,
        Operation::Cancel,
        Operation::Retry,
        Operation::PurgeQueue,
        Operation::Health,
        Operation::Requests,
        Operation::OpenAi,
        Operation::Worker,
        Operation::Other,
    ];

    /// The name used in metric labels and logs; of most it is the path's word too.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Run => "run",
            Operation::RunSync => "runsync",
            Operation::Status => "status",
            Operation::StatusSync => "status-sync",
            Operation::Stream => "stream",
            Operation::Cancel => "cancel",
            Operation::Retry => "retry",
            Operation::PurgeQueue => "purge-queue",
            Operation::Health => "health",
            Operation::Requests => "requests",
            Operation::OpenAi => "openai",
            Operation::Worker => "worker",
            Operation::Other => "other",
        }
    }

    /// The limit this operation is counted against. The three status operations share one pool
    /// (seed, "Rate limits"); every other operation is a group of its own.
    pub const fn group(self) -> Group {
        match self {
            Operation::Run => Group::Run,
            Operation::RunSync => Group::RunSync,
            Operation::Status | Operation::StatusSync | Operation::Stream => Group::Status,
            Operation::Cancel => Group::Cancel,
            Operation::Retry => Group::Retry,
            Operation::PurgeQueue => Group::PurgeQueue,
            Operation::Health => Group::Health,
            Operation::Requests => Group::Requests,
            Operation::OpenAi => Group::OpenAi,
            Operation::Worker => Group::Worker,
            Operation::Other => Group::Other,
        }
    }

    /// Whether the upstream keeps this call open on purpose. `openai` may stream for minutes too,
    /// but shares its limit with nothing shorter, so there is nobody it could starve.
    pub const fn held(self) -> bool {
        matches!(
            self,
            Operation::RunSync | Operation::StatusSync | Operation::Stream
        )
    }

    /// Whether there is any answer of the upstream after which podgate may ask again. A worker does
    /// so itself, and a result posted twice is one too many. Which answers of the others allow it
    /// depends on the method, too.
    pub const fn repeats(self) -> bool {
        !matches!(self, Operation::Worker)
    }
}

/// Operations that share one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    Run,
    RunSync,
    Status,
    Cancel,
    Retry,
    PurgeQueue,
    Health,
    Requests,
    OpenAi,
    Worker,
    Other,
}

impl Group {
    pub const ALL: [Group; 11] = [
        Group::Run,
        Group::RunSync,
        Group::Status,
        Group::Cancel,
        Group::Retry,
        Group::PurgeQueue,
        Group::Health,
        Group::Requests,
        Group::OpenAi,
        Group::Worker,
        Group::Other,
    ];

    /// The name used in the configuration, metric labels and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Run => "run",
            Group::RunSync => "runsync",
            Group::Status => "status",
            Group::Cancel => "cancel",
            Group::Retry => "retry",
            Group::PurgeQueue => "purge-queue",
            Group::Health => "health",
            Group::Requests => "requests",
            Group::OpenAi => "openai",
            Group::Worker => "worker",
            Group::Other => "other",
        }
    }

    /// Position in [`Group::ALL`], for tables indexed by group.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_indexed_by_position() {
        for (position, group) in Group::ALL.into_iter().enumerate() {
            assert_eq!(group.index(), position);
        }
    }

    #[test]
    fn the_status_family_is_one_pool_and_nothing_else_is() {
        let shared: Vec<_> = Operation::ALL
            .into_iter()
            .filter(|o| o.group() == Group::Status)
            .collect();
        assert_eq!(
            shared,
            [Operation::Status, Operation::StatusSync, Operation::Stream]
        );
    }
}
