//! What is in effect: the configuration, and what is made of it to forward by. A reload makes
//! another one and puts it in the place of this; a request that is under way ends by the one it began
//! with.

use std::sync::Arc;

use http::HeaderValue;

use crate::config::Config;
use crate::config::process::Roots;
use crate::config::secret::SecretError;
use crate::gateway::connect::SetupError;
use crate::gateway::tls::Complaints;
use crate::gateway::upstream::Upstream;

/// One configuration, ready to forward by.
pub struct Live {
    pub config: Arc<Config>,
    pub(super) host: HeaderValue,
    /// In the place of what clients send, where a key is injected.
    pub(super) authorization: Option<HeaderValue>,
    /// One a worker.
    upstreams: Box<[Upstream]>,
    complaints: Complaints,
}

/// Why nothing can be forwarded by a configuration.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error("`upstream.api_key`: {0}")]
    Key(#[from] SecretError),
    #[error("`upstream`: {0} cannot stand in a header field")]
    Field(&'static str),
    #[error("`upstream`: {0}")]
    Setup(#[from] SetupError),
}

impl Live {
    /// For `workers` of them. Connections of the one `before` go on being used where nothing about
    /// them is different.
    ///
    /// # Errors
    /// [`LiveError`]: as it says.
    pub fn new(config: Config, workers: usize, before: Option<&Live>) -> Result<Self, LiveError> {
        let settings = &config.upstream;
        let host = HeaderValue::try_from(settings.target.authority())
            .map_err(|_| LiveError::Field("the upstream's host"))?;
        let key = settings.api_key.as_ref().map(|key| key.resolve());
        let authorization = key.transpose()?.map(|key| {
            let mut field = HeaderValue::try_from(format!("Bearer {}", key.expose()))
                .map_err(|_| LiveError::Field("the API key"))?;
            field.set_sensitive(true);
            Ok::<_, LiveError>(field)
        });
        let complaints = before.map_or_else(Complaints::default, |live| live.complaints.clone());
        let same = before.filter(|before| {
            // Files may have other contents than when they were read.
            settings.trust_ca.is_empty()
                && settings.roots == Roots::Bundled
                && before.config.upstream == *settings
                && before.upstreams.len() == workers
        });
        let upstreams = match same {
            Some(before) => before.upstreams.clone(),
            None => (0..workers)
                .map(|_| Upstream::new(settings, complaints.clone()))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            config: Arc::new(config),
            host,
            authorization: authorization.transpose()?,
            upstreams,
            complaints,
        })
    }

    /// How many workers it is for.
    pub(super) fn workers(&self) -> usize {
        self.upstreams.len()
    }

    /// Where this worker's requests go.
    ///
    /// # Panics
    /// There is no such worker.
    pub(super) fn upstream(&self, worker: usize) -> &Upstream {
        &self.upstreams[worker]
    }
}
