//! One worker's own of what all of them share: memory that two threads write to costs each of their
//! requests more than most of what it asks for, so what every request writes is kept apart.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::admission::resolved::Resolved;
use crate::gateway::Shared;
use crate::gateway::ahead::Ahead;
use crate::gateway::authorize::Recent;
use crate::gateway::live::Live;
use crate::gateway::request_id::RequestIds;
use crate::gateway::trace::Traces;

/// Where one worker's requests begin.
pub(super) struct Desk {
    pub shared: Arc<Shared>,
    pub worker: usize,
    pub request_ids: RequestIds,
    pub traces: Traces,
    /// Credentials that this worker has seen accepted.
    pub recent: Recent,
    pub lanes: Resolved,
    view: Mutex<Arc<View>>,
}

/// What is in effect, as requests of one worker hold it: each holds one of these and nothing else, and
/// how many do is counted where no other worker counts.
pub(super) struct View {
    pub shared: Arc<Shared>,
    pub live: Arc<Live>,
    /// How far answers are read ahead.
    pub ahead: Ahead,
    /// Reloads before it.
    reloads: u64,
}

impl Desk {
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        Self {
            request_ids: RequestIds::default(),
            traces: Traces::default(),
            recent: Recent::default(),
            lanes: Resolved::default(),
            view: Mutex::new(Arc::new(View::now(&shared))),
            shared,
            worker,
        }
    }

    /// What is in effect now.
    pub fn view(&self) -> Arc<View> {
        let mut view = self.view.lock();
        if view.reloads != self.shared.reloads.load(Ordering::Acquire) {
            *view = Arc::new(View::now(&self.shared));
        }
        view.clone()
    }
}

impl View {
    fn now(shared: &Arc<Shared>) -> Self {
        // First: of a reload in between, the next request takes notice once more.
        let reloads = shared.reloads.load(Ordering::Acquire);
        let live = shared.live();
        let config = &live.config;
        let ahead = Ahead {
            buffer: config.buffers.per_request,
            total: config.buffers.total,
            budget: shared.budget.clone(),
            idle: config.upstream.idle_timeout,
            least_in: config.timeouts.write,
        };
        Self {
            shared: shared.clone(),
            ahead,
            live,
            reloads,
        }
    }
}
