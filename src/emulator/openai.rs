//! The OpenAI-compatible routes.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::answer::Answer;
use super::operations::Begun;
use super::shared::{Endpoint, Shared};

pub(super) struct Call;

pub(super) fn begin(_: &Arc<Shared>, _: &Endpoint, _tail: &str, _body: &Bytes) -> Begun {
    Begun::OpenAi(Call)
}

impl Call {
    pub async fn answer(self, _: &Arc<Shared>, _: &Endpoint) -> Answer {
        Answer::problem(StatusCode::NOT_FOUND, "no such path")
    }
}
